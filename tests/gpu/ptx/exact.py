"""Arithmetic with one rounding, in every format and rounding mode: in vectors where that can be, else one by one.

Two devices do the vector work. The sum of two float64 has an error that is itself a float64, and it can be computed
(Knuth's two-sum). And a result that is first *rounded to odd* in a format wider by two bits or more can be rounded
again, to any narrower format, as if there had been no first rounding (Boldo and Melquiond, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tests.gpu.ptx.types import Array


@dataclass(frozen=True)
class Format:
    """A binary format of IEEE 754."""

    precision: int
    max_exponent: int

    @property
    def min_exponent(self) -> int:
        return 1 - self.max_exponent

    @property
    def largest(self) -> Fraction:
        return (2 - Fraction(2) ** (1 - self.precision)) * Fraction(2) ** self.max_exponent


FORMATS = {"f16": Format(11, 15), "bf16": Format(8, 127), "f32": Format(24, 127), "f64": Format(53, 1023)}
MODES = ("rn", "rz", "rm", "rp")


def round_exact(value: Fraction, format: Format, mode: str) -> float:
    """``value`` in ``format``; every format fits in a Python float. Zero comes out positive."""
    magnitude = abs(value)
    if not magnitude:
        return 0.0
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, format.min_exponent) - format.precision + 1)
    count, rest = divmod(magnitude, quantum)
    if mode == "rn":
        up = 2 * rest > quantum or (2 * rest == quantum and count % 2 == 1)
    else:
        up = bool(rest) and mode == ("rm" if value < 0 else "rp")
    rounded = (count + up) * quantum
    if rounded > format.largest:
        away = mode in ("rn", "rm" if value < 0 else "rp")
        rounded_to = math.inf if away else float(format.largest)
        return -rounded_to if value < 0 else rounded_to
    return -float(rounded) if value < 0 else float(rounded)


def _sqrt_exact(value: Fraction, format: Format, mode: str) -> float:
    # Enough bits below the last that counts, and a sticky one for the rest.
    shift = 2 * (format.precision + 2) + max(0, value.denominator.bit_length() - value.numerator.bit_length() + 1)
    scaled = value * Fraction(4) ** shift
    root = math.isqrt(scaled.numerator // scaled.denominator)
    sticky = Fraction(root) ** 2 != scaled
    return round_exact(Fraction(4 * root + sticky, 4) / Fraction(2) ** shift, format, mode)


def one_by_one(name: str, format: Format, mode: str, *arguments: float) -> float:
    """One exactly rounded operation on Python floats."""
    if name == "sub":
        return one_by_one("add", format, mode, arguments[0], -arguments[1])
    if name == "rcp":
        return one_by_one("div", format, mode, 1.0, arguments[0])
    special = not all(map(math.isfinite, arguments))
    if special or (name == "div" and not arguments[1]) or (name == "sqrt" and arguments[0] <= 0):
        return _special(name, *map(np.float64, arguments))
    exact = [Fraction(argument) for argument in arguments]
    if name == "sqrt":
        return _sqrt_exact(exact[0], format, mode)
    if name == "div":
        return math.copysign(round_exact(exact[0] / exact[1], format, mode), _sign(arguments[0]) * _sign(arguments[1]))
    product_sign = _sign(arguments[0]) * _sign(arguments[1])
    if name == "mul":
        return math.copysign(round_exact(exact[0] * exact[1], format, mode), product_sign)
    first, second = (exact[0], exact[1]) if name == "add" else (exact[0] * exact[1], exact[2])
    total = first + second
    if not total:  # the sign of an exact zero is a matter of the addends' signs and the mode
        signs = (_sign(arguments[0]), _sign(arguments[1])) if name == "add" else (product_sign, _sign(arguments[2]))
        return math.copysign(0.0, signs[0] if signs[0] == signs[1] else -1.0 if mode == "rm" else 1.0)
    return math.copysign(round_exact(total, format, mode), -1.0 if total < 0 else 1.0)


def _sign(value: float) -> float:
    return math.copysign(1.0, value)


def _special(name: str, *arguments: np.float64) -> float:
    if name == "fma":
        a, b, c = arguments
        return float(c if np.isfinite(a) and np.isfinite(b) else a * b + c)  # a·b may not overflow on its own
    if name == "sqrt":
        return float(np.sqrt(arguments[0]))
    a, b = arguments
    return float({"add": a + b, "mul": a * b, "div": np.divide(a, b)}[name])


def each(name: str, format: Format, mode: str) -> Callable[..., Array]:
    """``one_by_one`` on arrays; float64 arrays come out. Slow: for what is rare in kernels."""
    count = {"fma": 3, "sqrt": 1, "rcp": 1}.get(name, 2)
    function = np.frompyfunc(lambda *arguments: one_by_one(name, format, mode, *map(float, arguments)), count, 1)

    def apply(*arguments: Array) -> Array:
        return np.asarray(function(*arguments), np.float64)

    return apply


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its error; their sum is exact."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _to_odd(total: Array, error: Array) -> Array:
    """A float64 rounded to nearest and the sign of what it lacks, as the value rounded to odd."""
    bits = total.view(np.uint64)
    fix = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    if not fix.any():
        return total
    step = np.where((error > 0) == (total > 0), np.int64(1), np.int64(-1)).view(np.uint64)
    moved: Array = np.where(fix, bits + step, bits).view(np.float64)
    return moved


def odd_sum(a: Array, b: Array) -> Array:
    """The float64 sum, rounded to odd."""
    return _to_odd(*two_sum(a, b))


SPLITTER = 2.0**27 + 1


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its error (Dekker). Exact where nothing over- or underflows."""
    product = a * b
    t = SPLITTER * a
    a_high = t - (t - a)
    t = SPLITTER * b
    b_high = t - (t - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


_FMA_F64 = each("fma", FORMATS["f64"], "rn")


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a·b + c, rounded to nearest once (Boldo and Melquiond's algorithm)."""
    a, b, c = np.broadcast_arrays(a, b, c)
    product, product_error = two_product(a, b)
    low, low_error = two_sum(c, product_error)
    high, high_error = two_sum(product, low)
    result: Array = high + odd_sum(low_error, high_error)
    result = np.where(result == 0, product + c, result)  # for the sign of zero
    safe = (np.abs(a) < 2.0**500) & (np.abs(b) < 2.0**500) & (np.abs(c) < 2.0**1000)
    safe &= (np.abs(product) > 2.0**-900) | (a == 0) | (b == 0)
    if not safe.all():
        rare = ~safe
        result[rare] = _FMA_F64(a[rare], b[rare], c[rare])
    return result


def narrow(wide: Array, name: str, mode: str) -> Array:
    """A float64 that is exact, or rounded to odd, in a narrower format: float32 or float16, or the bits of bfloat16."""
    if name == "bf16":
        return _narrow_bf16(wide, mode)
    rounded = wide.astype(np.float32 if name == "f32" else np.float16)
    if mode == "rn":
        return rounded
    back = rounded.astype(np.float64)
    down, up = rounded.dtype.type(-np.inf), rounded.dtype.type(np.inf)
    if mode in ("rm", "rz"):
        wrong = (back > wide) & ((mode == "rm") | (wide > 0))
        rounded = np.where(wrong, np.nextafter(rounded, down), rounded)
    if mode in ("rp", "rz"):
        wrong = (back < wide) & ((mode == "rp") | (wide < 0))
        rounded = np.where(wrong, np.nextafter(rounded, up), rounded)
    if mode == "rz":
        rounded = np.copysign(rounded, wide).astype(rounded.dtype)
    return rounded


def _narrow_bf16(wide: Array, mode: str) -> Array:
    single = wide.astype(np.float32)
    back, bits = single.astype(np.float64), single.view(np.uint32)
    # Round to odd in float32 first: towards `wide` wherever the nearest is even.
    fix = (back != wide) & ((bits & 1) == 0) & ~np.isnan(wide)
    toward = np.nextafter(single, np.where(wide > back, np.float32(np.inf), np.float32(-np.inf)))
    bits = np.where(fix, toward.view(np.uint32), bits)
    if mode == "rn":
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    elif mode != "rz":
        raise NotImplementedError(f"rounding to bfloat16 by .{mode}")
    result: Array = np.where(np.isnan(wide), 0x7FFF, bits >> np.uint32(16)).astype(np.uint16)
    return result
