"""The oracle: norms by integer arithmetic, without a rounding until the last one.

A float is ``m·2^e`` with an integer ``m``. Magnitudes, and squares of magnitudes, are summed as
integers per exponent, and the few sums are joined as ``fractions.Fraction``. It shares nothing
with the library, and knows neither its order of additions nor its constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

# Pieces of 27 bits: 2^25 of them add up below 2^53, where ``numpy.bincount`` adds exactly.
_PIECE = 27
_MOST_ELEMENTS = 2**25
_DECIMAL = Context(prec=50, Emax=10**9, Emin=-(10**9))


def float64(x: Array) -> npt.NDArray[np.float64]:
    """The elements as float64, exactly; of a complex array the parts."""
    if x.dtype.kind == "c":
        x = np.ascontiguousarray(x).view(x.real.dtype)
    return np.asarray(x, np.float64).ravel()  # every type here is narrower, or float64 itself


def power_sum(arrays: Sequence[Array], power: int) -> Fraction:
    """``Σ |x|^power`` for power 1 or 2, exactly."""
    return sum((_power_sum(float64(x), power) for x in arrays), Fraction(0))


def largest(arrays: Sequence[Array]) -> Fraction:
    """``max |x|``, exactly."""
    return max((Fraction(float(np.max(np.abs(float64(x))))) for x in arrays if x.size), default=Fraction(0))


def norm(arrays: Sequence[Array], ord: float = 2) -> float:
    """The norm rounded once, to the nearest float64, ties to even. Infinite where that is beyond float64.

    Any ``ord`` but 1, 2 and inf is for small arrays: it takes 50 decimal digits an element.
    """
    if ord == 2:
        return root(power_sum(arrays, 2))
    if ord == 1:
        return nearest(power_sum(arrays, 1))
    if ord == math.inf:
        return nearest(largest(arrays))
    return float(decimal_norm(arrays, ord))


def norm_at_most(arrays: Sequence[Array], bound: float | Fraction, ord: float = 2) -> bool:
    """Whether the norm is ``<= bound``, decided without a rounding (ord 1, 2 and inf)."""
    bound = Fraction(bound)
    if ord == 2:
        return bound >= 0 and power_sum(arrays, 2) <= bound**2
    return (largest(arrays) if ord == math.inf else power_sum(arrays, 1)) <= bound


def norm_at_least(arrays: Sequence[Array], bound: float | Fraction, ord: float = 2) -> bool:
    """Whether the norm is ``>= bound``, decided without a rounding (ord 1, 2 and inf)."""
    bound = Fraction(bound)
    if ord == 2:
        return bound <= 0 or power_sum(arrays, 2) >= bound**2
    return (largest(arrays) if ord == math.inf else power_sum(arrays, 1)) >= bound


def within(computed: float, arrays: Sequence[Array], relative: float | Fraction, ord: float = 2) -> bool:
    """Whether ``|computed - norm| <= relative·norm``, decided without a rounding (ord 1, 2 and inf)."""
    if ord == math.inf:
        return close(computed, largest(arrays), relative, 1)
    return close(computed, power_sum(arrays, int(ord)), relative, int(ord))


def close(computed: float, sum_of_powers: Fraction, relative: float | Fraction, power: int) -> bool:
    """``within``, of a norm whose ``power_sum`` is known."""
    relative = Fraction(relative)
    least, most = (sum_of_powers * (1 + r) ** power for r in (-relative, relative))
    return least <= Fraction(computed) ** power <= most


def units_off(computed: float, arrays: Sequence[Array]) -> float:
    """``(computed / norm - 1) / 2^-53`` for the 2-norm: its error in units of roundoff, good to a few digits."""
    ratio = Fraction(computed) ** 2 / power_sum(arrays, 2)
    return float((ratio - 1) * 2**52)


def root(square: Fraction) -> float:
    """``sqrt(square)``, rounded once, to the nearest float64."""
    if square == 0:
        return 0.0
    # isqrt of square·4^shift has at least 64 bits; "something was cut off" is kept as one more bit, so
    # that the only rounding is the last division's, which Python does correctly (subnormals included).
    bits = square.numerator.bit_length() - square.denominator.bit_length()
    shift = 65 - bits // 2
    scaled = square * Fraction(4) ** shift
    whole = scaled.numerator // scaled.denominator
    floor = math.isqrt(whole)
    inexact = floor * floor != whole or scaled.denominator != 1
    return nearest(Fraction(2 * floor + inexact) / Fraction(2) ** (shift + 1))


def nearest(value: Fraction) -> float:
    """The nearest float64, ties to even; infinite beyond them."""
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return math.inf


def decimal_norm(arrays: Sequence[Array], ord: float) -> Decimal:
    """``(Σ |x|^ord)^(1/ord)`` to 40 digits or more, for any ``ord >= 1``."""
    total, power = Decimal(0), Decimal(ord)
    for x in arrays:
        for value in np.abs(float64(x)).tolist():
            if value:
                total = _DECIMAL.add(total, _DECIMAL.power(Decimal(value), power))
    return _DECIMAL.power(total, _DECIMAL.divide(Decimal(1), power)) if total else total


def _power_sum(x: npt.NDArray[np.float64], power: int) -> Fraction:
    if x.size > _MOST_ELEMENTS:
        return _power_sum(x[:_MOST_ELEMENTS], power) + _power_sum(x[_MOST_ELEMENTS:], power)
    if not np.isfinite(x).all():
        raise ValueError("the oracle has no infinities and no NaNs")
    fraction, exponent = np.frexp(np.abs(x[x != 0]))
    if not fraction.size:
        return Fraction(0)
    mantissa = np.ldexp(fraction, 53).astype(np.int64)
    lowest = int(exponent.min())
    index = exponent - lowest
    high, low = mantissa >> _PIECE, mantissa & (2**_PIECE - 1)
    if power == 1:
        parts = [(low, 0), (high, _PIECE)]
    else:
        parts = [(low * low, 0), (2 * high * low, _PIECE), (high * high, 2 * _PIECE)]
    total = 0
    for value, weight in parts:
        for piece, more in ((value & (2**_PIECE - 1), 0), (value >> _PIECE, _PIECE)):
            for bucket, exact in enumerate(np.bincount(index, weights=piece.astype(np.float64)).tolist()):
                total += int(exact) << (weight + more + power * bucket)
    return Fraction(total) * Fraction(2) ** (power * (lowest - 53))
