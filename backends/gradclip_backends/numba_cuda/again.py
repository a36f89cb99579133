"""Read passes over what ``measure`` has left in the record: scaled, in units, and for what rounding took.

Grid as for ``measure``. Launched by gradclip_backends/gpu/passes.py; each replaces the sums, or fills the
carries, of the segments that it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradclip_backends.gpu.layout import SANITIZE
from gradclip_backends.numba_cuda.arithmetic import (
    LARGEST_DOUBLE,
    is_finite,
    lost_in_product,
    magnitude,
    scale_by_power,
)
from gradclip_backends.numba_cuda.blocks import Reading, make_sum_elements
from gradclip_backends.numba_cuda.climb import climb, climb_carried
from gradclip_backends.numba_cuda.elements import load_64, load_double, mul, power, store_double
from gradclip_backends.numba_cuda.jit import device, kernel
from gradclip_backends.numba_cuda.machine import lane, warp_number, warps
from gradclip_backends.numba_cuda.record import (
    BFLOAT16,
    CARRIES,
    EXPONENTS,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    SUMS,
    UNITS,
    at,
    closed,
    find_block,
)
from gradclip_backends.numba_cuda.storage import STORAGES, sanitized
from gradclip_backends.numba_cuda.tree import CARRIED, Carried, make_tree_of

Function = Callable[..., Any]


@device
def _replace_sum(told: Any, place: Any, found: Any) -> None:
    """Sums alone: magnitudes and counts are known already."""
    done, total, _ = climb(told.nodes, place, found.sum, found.largest)
    if done and lane() == 0:
        store_double(at(told.record, SUMS, place.segment), total)


# ---- float64 beyond the range of its squares ------------------------------------------------------


@device
def _scaled_term(x: Any, order: Any, exponent: Any) -> Any:
    v = scale_by_power(x, -exponent)
    return mul(v, v) if order == 2.0 else magnitude(v)


_sum_scaled = make_sum_elements(STORAGES[FLOAT64], _scaled_term)


@kernel(blocks=2)
def rescale(rows: Any, told: Any, order: Any) -> None:
    """Sums of (x * 2^-exponent)², or of magnitudes, of the float64 segments that have an exponent."""
    if closed(told.gate):
        return
    for block in range(warp_number(), told.nodes.blocks, warps()):
        place = find_block(rows, told.buffers, block)
        if place.dtype == FLOAT64:
            exponent = load_64(at(told.record, EXPONENTS, place.segment))
            if exponent != 0:
                reading = Reading(told.options & SANITIZE, 0.0, 0.0, order, exponent)
                _replace_sum(told, place, _sum_scaled(place.pointer, place.n, reading))


# ---- general orders ------------------------------------------------------------------------------


@device
def _power_term(x: Any, unit: Any, order: Any) -> Any:
    return power(magnitude(x) / unit, order)


_halves, _brains, _floats, _doubles = (make_sum_elements(storage, _power_term) for storage in STORAGES)


@device
def _powers_of(place: Any, reading: Any) -> Any:
    if place.dtype == FLOAT16:
        return _halves(place.pointer, place.n, reading)
    if place.dtype == BFLOAT16:
        return _brains(place.pointer, place.n, reading)
    if place.dtype == FLOAT32:
        return _floats(place.pointer, place.n, reading)
    return _doubles(place.pointer, place.n, reading)


@kernel(blocks=2)
def powers(rows: Any, told: Any, order: Any) -> None:
    """Sums of (|x| / unit)^order."""
    if closed(told.gate):
        return
    for block in range(warp_number(), told.nodes.blocks, warps()):
        place = find_block(rows, told.buffers, block)
        largest = load_double(at(told.record, UNITS, place.segment))
        unit = 1.0 if largest == 0.0 else largest
        reading = Reading(told.options & SANITIZE, 0.0, 0.0, unit, order)
        _replace_sum(told, place, _powers_of(place, reading))


# ---- what rounding takes from the sums of float64 -------------------------------------------------


@device
def _carried_term(i: Any, context: Any) -> Any:
    pointer, order, exponent, sanitize = context
    x = load_double(pointer + 8 * i)
    if sanitize != 0 and not is_finite(x):
        x = sanitized(x, LARGEST_DOUBLE)
    v = scale_by_power(x, -exponent) if exponent != 0 else x
    if order != 2.0:
        return Carried(magnitude(v), 0.0)
    square = mul(v, v)
    return Carried(square, lost_in_product(v, v, square))


_carried_tree = make_tree_of(CARRIED, _carried_term)


@kernel(blocks=2)
def carries(rows: Any, told: Any, order: Any) -> None:
    """The same tree, over pairs of a sum and its carry. The record's sums stay as they are."""
    if closed(told.gate):
        return
    for block in range(warp_number(), told.nodes.blocks, warps()):
        place = find_block(rows, told.buffers, block)
        if place.dtype == FLOAT64:
            exponent = load_64(at(told.record, EXPONENTS, place.segment))
            context = (place.pointer, order, exponent, told.options & SANITIZE)
            found = _carried_tree(place.n, context)
            done, _, carry = climb_carried(told.nodes, place, found.sum, found.carry)
            if done and lane() == 0:
                store_double(at(told.record, CARRIES, place.segment), carry)
