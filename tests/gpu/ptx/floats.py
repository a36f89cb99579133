"""Floating-point instructions: what an opcode computes from arrays of its type.

Subnormals are flushed where the opcode says ``.ftz`` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.gpu.ptx import exact
from tests.gpu.ptx.types import TYPES, UNSIGNED, Array, Type

Compute = Callable[..., Array]
F32, F64 = TYPES["f32"], TYPES["f64"]
ROUNDED = ("add", "sub", "mul", "fma", "mad", "div", "sqrt", "rcp")
NAN_BITS = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def flush(array: Array) -> Array:
    """float32 with its subnormals made zeros of the same sign."""
    bits = array.view(np.uint32)
    subnormal = (bits & np.uint32(0x7FFFFFFF)) - np.uint32(1) < np.uint32(0x007FFFFF)
    if not subnormal.any():
        return array
    flushed: Array = np.where(subnormal, bits & np.uint32(0x80000000), bits).view(np.float32)
    return flushed


def canonical(type: Type, array: Array) -> Array:
    """With the one NaN that arithmetic gives in types narrower than float64."""
    nan = _isnan_bits(array) if type.name == "bf16" else np.isnan(array)
    if type.width == 8 or not nan.any():
        return array
    bits: Array = np.where(nan, UNSIGNED[type.width].type(NAN_BITS[type.name]), array.view(UNSIGNED[type.width]))
    return bits.view(type.dtype)


def _isnan_bits(bits: Array) -> Array:
    result: Array = (bits & np.uint16(0x7FFF)) > np.uint16(0x7F80)
    return result


def widen(type: Type, array: Array) -> Array:
    """As float64, exactly."""
    if type.name == "bf16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def narrow(type: Type, wide: Array, mode: str = "rn") -> Array:
    """The way back, from a float64 that is exact or rounded to odd."""
    return wide if type.width == 8 else canonical(type, exact.narrow(wide, type.name, mode))


def float_op(name: str, type: Type, modifiers: tuple[str, ...]) -> Compute | None:
    """What ``name`` computes, or None if it is no floating-point instruction that is known."""
    mode = next((modifier for modifier in modifiers if modifier in exact.MODES), "rn")
    approximate = "approx" in modifiers or "full" in modifiers
    if name in ("neg", "abs", "copysign"):
        compute: Compute | None = _sign_op(name, type)
    elif name in ("min", "max"):
        compute = _extremum(name, type, modifiers)
    elif name in ROUNDED and not approximate:
        compute = _rounded("fma" if name == "mad" else name, type, mode)
    else:
        compute = _approximate(name, type)
    if compute is None:
        return None
    if "sat" in modifiers:
        compute = _saturated(type, compute)
    if "relu" in modifiers:
        raise NotImplementedError(".relu")
    if "ftz" in modifiers and type is F32:
        return _flushed(compute)
    return compute


def _flushed(compute: Compute) -> Compute:
    return lambda *arguments: flush(compute(*map(flush, arguments)))


def _saturated(type: Type, compute: Compute) -> Compute:
    def apply(*arguments: Array) -> Array:
        wide = np.nan_to_num(widen(type, compute(*arguments)), nan=0.0).clip(0.0, 1.0)
        return narrow(type, wide + 0.0)

    return apply


def _sign_op(name: str, type: Type) -> Compute:
    bits = UNSIGNED[type.width]
    sign = bits.type(1 << (type.bits - 1))
    if name == "neg":
        return lambda a: (a.view(bits) ^ sign).view(type.dtype)
    if name == "abs":
        return lambda a: (a.view(bits) & ~sign).view(type.dtype)
    return lambda a, b: ((a.view(bits) & sign) | (b.view(bits) & ~sign)).view(type.dtype)


def _extremum(name: str, type: Type, modifiers: tuple[str, ...]) -> Compute:
    if "xorsign" in modifiers:
        raise NotImplementedError(".xorsign")
    spread_nan = "NaN" in modifiers
    bits = UNSIGNED[type.width]

    def compute(*arguments: Array) -> Array:
        result = arguments[0]
        for other in arguments[1:]:
            result = pair(result, other)
        return result

    def pair(a: Array, b: Array) -> Array:
        wide_a, wide_b = (a, b) if type.name in ("f32", "f64") else (widen(type, a), widen(type, b))
        nan_a, nan_b = np.isnan(wide_a), np.isnan(wide_b)
        first = wide_a < wide_b if name == "min" else wide_a > wide_b
        result = np.where(first | nan_b, a, b).view(bits)
        # -0 is less than +0 here, which a comparison does not see; of other equals the bits are the same.
        joined = a.view(bits) | b.view(bits) if name == "min" else a.view(bits) & b.view(bits)
        result = np.where(wide_a == wide_b, joined, result)
        result = np.where(nan_a & ~nan_b, b.view(bits), result)
        if spread_nan:
            result = np.where(nan_b, b.view(bits), np.where(nan_a, a.view(bits), result))
        return canonical(type, result.view(type.dtype))

    return compute


def _rounded(name: str, type: Type, mode: str) -> Compute:
    if type is F64:
        return exact.each(name, exact.FORMATS["f64"], mode) if mode != "rn" else _NEAREST[name]
    if type is F32 and mode == "rn" and name != "fma":
        nearest = _NEAREST[name]
        return lambda *arguments: canonical(type, nearest(*arguments))
    if name not in ("add", "sub", "mul", "fma"):
        one_by_one = exact.each(name, exact.FORMATS[type.name], mode)
        return lambda *arguments: narrow(type, one_by_one(*(widen(type, argument) for argument in arguments)))

    def compute(*arguments: Array) -> Array:
        wide = [widen(type, argument) for argument in arguments]
        if name == "mul":
            return narrow(type, wide[0] * wide[1], mode)  # the product of two narrow numbers is exact
        a, b = (wide[0] * wide[1], wide[2]) if name == "fma" else (wide[0], wide[1] if name == "add" else -wide[1])
        total = exact.odd_sum(a, b)
        if mode == "rm":
            total = np.where((total == 0) & (np.signbit(a) != np.signbit(b)), -0.0, total)
        return narrow(type, total, mode)

    return compute


def _reciprocal(a: Array) -> Array:
    result: Array = a.dtype.type(1) / a
    return result


_NEAREST: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": _reciprocal,
    "fma": exact.fma_f64,
}

_APPROXIMATE: dict[str, Compute] = {
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": _reciprocal,
    "rsqrt": lambda a: _reciprocal(np.sqrt(a)),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def _approximate(name: str, type: Type) -> Compute | None:
    """Nearly exact: the hardware's last bits are not known here."""
    function = _APPROXIMATE.get(name)
    if function is None:
        return None
    if type is not F64:
        return lambda *arguments: narrow(type, np.asarray(function(*(widen(type, a) for a in arguments)), np.float64))
    return function


def gross_f64(name: str) -> Compute:
    """``rcp.approx.ftz.f64`` and ``rsqrt.approx.ftz.f64``: the upper word alone is worked on, and computed."""
    function = _APPROXIMATE[name]

    def compute(a: Array) -> Array:
        result = _flush_f64(function(_flush_f64(a)))
        upper: Array = (result.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        return upper

    return compute


def _flush_f64(array: Array) -> Array:
    return np.where(np.abs(array) < np.finfo(np.float64).tiny, np.copysign(0.0, array), array)
