"""``cvt``: between any two of the number types, in the rounding mode the opcode names."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from tests.gpu.ptx import exact
from tests.gpu.ptx.floats import canonical, flush, narrow, widen
from tests.gpu.ptx.types import TYPES, Array, Type, packed

INTEGRAL: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def pack_pair(to: Type, modifiers: tuple[str, ...]) -> Callable[[Array, Array], Array]:
    """``cvt.rn.f16x2.f32 d, high, low``."""
    element = to.element
    assert element is not None
    single = conversion(element, TYPES["f32"], modifiers)

    def compute(high: Array, low: Array) -> Array:
        return packed(np.stack(np.broadcast_arrays(single(low), single(high)), axis=1))

    return compute


def conversion(to: Type, source: Type, modifiers: tuple[str, ...]) -> Callable[[Array], Array]:
    """One array of ``source`` to one of ``to``."""
    for unknown in ("relu", "satfinite", "rna", "rs", "scaled"):
        if unknown in modifiers:
            raise NotImplementedError(f"cvt with .{unknown}")
    mode = next((modifier for modifier in modifiers if modifier in exact.MODES), "rn")
    integral = next((INTEGRAL[modifier] for modifier in modifiers if modifier in INTEGRAL), None)
    saturate, ftz = "sat" in modifiers, "ftz" in modifiers
    if source.is_float:
        compute = _from_float(to, source, mode, integral, saturate)
    elif to.is_float:
        compute = _integer_to_float(to, source, mode)
    else:
        compute = _between_integers(to, source, saturate)
    if not ftz:
        return compute
    before = flush if source.name == "f32" else _same
    after = flush if to.name == "f32" else _same
    return lambda array: after(compute(before(array)))


def _same(array: Array) -> Array:
    return array


def _from_float(
    to: Type, source: Type, mode: str, integral: Callable[[Array], Array] | None, saturate: bool
) -> Callable[[Array], Array]:
    def compute(array: Array) -> Array:
        wide = widen(source, array)
        if integral is not None:
            wide = integral(wide)
        if not to.is_float:
            return _to_integer(wide, to, source)
        if saturate:
            wide = np.nan_to_num(wide, nan=0.0).clip(0.0, 1.0) + 0.0
        if to is source and integral is None and not saturate:
            return canonical(to, array)
        return narrow(to, wide, mode)

    return compute


def _to_integer(wide: Array, to: Type, source: Type) -> Array:
    """Clamped; a NaN is 0 from the narrower formats to 32 bits, else the top bit alone."""
    info = np.iinfo(to.dtype)
    low, high = float(info.min), float(info.max)
    result = np.where((wide > low) & (wide < high), wide, 0.0).astype(to.dtype)
    result = np.where(wide >= high, to.dtype.type(info.max), np.where(wide <= low, to.dtype.type(info.min), result))
    top = source.name == "f64" or to.width == 8
    nan_bits = np.array(1 << (to.bits - 1) if top else 0, np.uint64).astype(f"<u{to.width}").view(to.dtype)
    return np.where(np.isnan(wide), nan_bits, result)


def _integer_to_float(to: Type, source: Type, mode: str) -> Callable[[Array], Array]:
    if source.width < 8:  # every such integer is a float64
        return lambda array: narrow(to, array.astype(np.float64), mode)
    if mode == "rn" and to.name in ("f32", "f64"):
        return lambda array: array.astype(to.dtype)
    name = to.name

    def one(value: int) -> float:
        return exact.round_exact(Fraction(value), exact.FORMATS[name], mode)

    def compute(array: Array) -> Array:
        wide = np.array([one(int(value)) for value in array.reshape(-1)], np.float64)
        return narrow(to, wide)

    return compute


def _between_integers(to: Type, source: Type, saturate: bool) -> Callable[[Array], Array]:
    if not saturate:
        return lambda array: array.astype(to.dtype)
    low, high = np.iinfo(to.dtype).min, np.iinfo(to.dtype).max
    own = np.iinfo(source.dtype)
    return lambda array: array.clip(max(low, own.min), min(high, own.max)).astype(to.dtype)
