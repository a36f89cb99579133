"""The storage types: how 16-byte loads are summed, how an element is read, and what the write pass makes of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradclip_backends.numba_cuda.arithmetic import INFINITY_BITS, LARGEST_DOUBLE, MAGNITUDE_BITS, is_finite, is_nan
from gradclip_backends.numba_cuda.elements import (
    bits_of,
    bits_of_float,
    double_of,
    float_of,
    float_of_half,
    half_of_float,
    load_16,
    load_32,
    load_64,
    load_double,
    load_float,
    mul,
    multiply,
    store_16,
    store_32,
    store_64,
)
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.tree import fold_2, fold_4, fold_8

Function = Callable[..., Any]

_FLOAT32_INFINITY = 0x7F800000
_FLOAT32_MAGNITUDE = 0x7FFFFFFF


@dataclass(frozen=True)
class Storage:
    """All that depends on the storage type."""

    size: int
    """Bytes of an element."""
    largest: float
    read: Function
    """The element at an address, as a float64."""
    load_bits: Function
    store_bits: Function
    changed: Function
    """The bits of an element, and an action -> the bits that are stored."""
    codes: Function
    """A word of 8 bytes -> the bits of its elements' magnitudes, narrow ones as float32."""
    value: Function
    """Such bits -> the magnitude as a float64."""
    no_code: Function
    """The least of such bits."""
    infinity: int
    """Such bits of an infinity; a NaN's are larger."""
    fold: Function
    change_word: Function
    """The elements of a word of 8 bytes, each ``changed``."""


class Action(NamedTuple):
    """What happens to each element of a segment."""

    factor: Any
    low: Any
    high: Any
    coarse: Any
    fine: Any
    low_float: Any
    high_float: Any
    sanitize: Any


# ---- reading -------------------------------------------------------------------------------------


@device
def _float_of_brain(bits: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""
    return float_of((bits & 0xFFFF) << 16)


@device
def _read_half(address: Any) -> Any:
    return np.float64(float_of_half(load_16(address)))


@device
def _read_brain(address: Any) -> Any:
    return np.float64(_float_of_brain(load_16(address)))


@device
def _read_float(address: Any) -> Any:
    return np.float64(load_float(address))


@device
def _code_of_half(bits: Any) -> Any:
    return np.int32(bits_of_float(float_of_half(bits & 0x7FFF)))


@device
def _codes_of_halves(word: Any) -> Any:
    return _code_of_half(word), _code_of_half(word >> 16), _code_of_half(word >> 32), _code_of_half(word >> 48)


@device
def _code_of_brain(bits: Any) -> Any:
    return np.int32((bits & 0x7FFF) << 16)


@device
def _codes_of_brains(word: Any) -> Any:
    return _code_of_brain(word), _code_of_brain(word >> 16), _code_of_brain(word >> 32), _code_of_brain(word >> 48)


@device
def _codes_of_floats(word: Any) -> Any:
    return np.int32(word & _FLOAT32_MAGNITUDE), np.int32((word >> 32) & _FLOAT32_MAGNITUDE)


@device
def _codes_of_double(word: Any) -> Any:
    return (word & MAGNITUDE_BITS,)


@device
def _value_of_code(code: Any) -> Any:
    return np.float64(float_of(code))


@device
def _no_code() -> Any:
    return np.int32(0)


@device
def _no_double_code() -> Any:
    return 0


# ---- writing -------------------------------------------------------------------------------------


@device
def brain_of_float(y: Any) -> Any:
    """The bits of the nearest bfloat16, of the even one of two.

    A NaN stays one: rounding its payload could carry into an infinity.
    """
    bits = bits_of_float(y)
    if bits & _FLOAT32_MAGNITUDE > _FLOAT32_INFINITY:
        return ((bits >> 16) & 0x8000) | 0x7FC0
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


@device
def _clamped(y: Any, low: Any, high: Any) -> Any:
    """By comparing, not by minimum and maximum: NaN stays NaN, and so does the sign of a zero."""
    y = low if y < low else y
    return high if high < y else y


def _make_changed(widen: Function, narrow: Function, largest: float) -> Function:
    """For what is float32 or narrower."""
    top = np.float32(largest)

    @device
    def changed(bits: Any, action: Any) -> Any:
        x = widen(bits)
        if action.sanitize != 0:
            code = bits_of_float(x) & _FLOAT32_MAGNITUDE
            if code > _FLOAT32_INFINITY:
                x = np.float32(0.0)
            elif code == _FLOAT32_INFINITY:
                x = top if x > np.float32(0.0) else -top
        x = multiply(x, action.coarse)
        if action.fine != np.float32(1.0):
            x = multiply(x, action.fine)
        return narrow(_clamped(x, action.low_float, action.high_float))

    return changed


@device
def _changed_double(bits: Any, action: Any) -> Any:
    x = double_of(bits)
    if action.sanitize != 0 and not is_finite(x):
        x = sanitized(x, LARGEST_DOUBLE)
    return bits_of(_clamped(mul(x, action.factor), action.low, action.high))


@device
def sanitized(x: Any, largest: Any) -> Any:
    """What stands for an infinity or a NaN."""
    if is_nan(x):
        return 0.0
    return -largest if x < 0.0 else largest


def _make_change_word(size: int, changed: Function) -> Function:
    """All elements of a word of 8 bytes."""

    @device
    def change_halves(word: Any, action: Any) -> Any:
        low = changed(word & 0xFFFF, action) | (changed((word >> 16) & 0xFFFF, action) << 16)
        high = changed((word >> 32) & 0xFFFF, action) | (changed((word >> 48) & 0xFFFF, action) << 16)
        return low | (high << 32)

    @device
    def change_floats(word: Any, action: Any) -> Any:
        return changed(word & 0xFFFFFFFF, action) | (changed((word >> 32) & 0xFFFFFFFF, action) << 32)

    return {2: change_halves, 4: change_floats, 8: changed}[size]


def _narrow(
    size: int, largest: float, read: Function, codes: Function, fold: Function, widen: Function, narrow: Function
) -> Storage:
    changed = _make_changed(widen, narrow, largest)
    load_bits, store_bits = (load_16, store_16) if size == 2 else (load_32, store_32)
    return Storage(
        *(size, largest, read, load_bits, store_bits, changed, codes, _value_of_code, _no_code, _FLOAT32_INFINITY),
        *(fold, _make_change_word(size, changed)),
    )


STORAGES = (
    _narrow(2, 65504.0, _read_half, _codes_of_halves, fold_8, float_of_half, half_of_float),
    _narrow(2, 255.0 * 2.0**120, _read_brain, _codes_of_brains, fold_8, _float_of_brain, brain_of_float),
    _narrow(4, (2.0**24 - 1) * 2.0**104, _read_float, _codes_of_floats, fold_4, float_of, bits_of_float),
    Storage(
        *(8, LARGEST_DOUBLE, load_double, load_64, store_64, _changed_double, _codes_of_double, double_of),
        *(_no_double_code, INFINITY_BITS, fold_2, _make_change_word(8, _changed_double)),
    ),
)
"""By the code of the storage type."""
