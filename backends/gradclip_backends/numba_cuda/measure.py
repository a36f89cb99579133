"""The read pass. Launched by gradclip_backends/gpu/passes.py: one launch for all buffers of a call.

Grid: any number of blocks of whole warps. Each warp takes a block of 4096 elements after the
other; whoever finishes a segment's last block leaves the segment's sum in the record. The record
is all zeros before, as is the counter of every node. No shared memory, no barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradclip_backends.gpu.layout import BOUNDS, OWN_BOUNDS
from gradclip_backends.numba_cuda.arithmetic import split_exponent
from gradclip_backends.numba_cuda.blocks import Reading, make_sum_block
from gradclip_backends.numba_cuda.climb import climb
from gradclip_backends.numba_cuda.elements import load_double, store_64, store_double
from gradclip_backends.numba_cuda.jit import device, kernel
from gradclip_backends.numba_cuda.machine import add_to_64, lane, set_32, warp_number, warps
from gradclip_backends.numba_cuda.record import (
    AT_NONFINITE,
    AT_RESCALE,
    BFLOAT16,
    EXPONENTS,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    HIGH,
    INFS,
    LARGEST,
    LOW,
    NANS,
    OUTSIDE,
    SUMS,
    UNITS,
    at,
    closed,
    find_block,
)
from gradclip_backends.numba_cuda.scale import inverse_scale
from gradclip_backends.numba_cuda.storage import STORAGES

Function = Callable[..., Any]

# Beyond these the squares of float64 leave its range.
_SMALL, _LARGE = 2.0**-400, 2.0**400


@device
def _count(record: Any, segment: Any, found: Any) -> None:
    """One thread: what is counted is rare, so that plain atomics do."""
    if found.infs != 0:
        add_to_64(at(record, INFS, segment), found.infs)
    if found.nans != 0:
        add_to_64(at(record, NANS, segment), found.nans)
    if found.outside != 0:
        add_to_64(at(record, OUTSIDE, segment), found.outside)
    if found.infs + found.nans != 0:
        add_to_64(record.address + AT_NONFINITE, found.infs + found.nans)


@device
def _finish(record: Any, place: Any, total: Any, largest: Any) -> None:
    """One thread. float64 whose squares leave float64's range is measured again on x * 2^-exponent."""
    store_double(at(record, SUMS, place.segment), total)
    store_double(at(record, LARGEST, place.segment), largest)
    store_double(at(record, UNITS, place.segment), largest)
    if place.dtype == FLOAT64 and largest > 0.0 and (largest < _SMALL or largest > _LARGE):
        store_64(at(record, EXPONENTS, place.segment), split_exponent(largest)[1])
        set_32(record.address + AT_RESCALE, 1)


def _make_measure(power: int) -> Function:
    halves, brains, floats, doubles = (make_sum_block(storage, power) for storage in STORAGES)

    @device
    def sum_any(place: Any, told: Any) -> Any:
        if place.dtype == FLOAT16:
            return halves(place, told)
        if place.dtype == BFLOAT16:
            return brains(place, told)
        if place.dtype == FLOAT32:
            return floats(place, told)
        return doubles(place, told)

    @device
    def measure(rows: Any, told: Any) -> None:
        if closed(told.gate):
            return
        bounded = told.options & BOUNDS != 0
        inverse = inverse_scale(told.scale) if bounded else 1.0
        for block in range(warp_number(), told.nodes.blocks, warps()):
            place = find_block(rows, told.buffers, block)
            low, high = 0.0, 0.0
            if told.options & OWN_BOUNDS != 0:
                low = load_double(at(told.record, LOW, place.segment))
                high = load_double(at(told.record, HIGH, place.segment))
            elif bounded:
                low, high = told.low[place.dtype] / inverse, told.high[place.dtype] / inverse
            found = sum_any(place, Reading(told.options, low, high, 0.0, 0))
            if lane() == 0:
                _count(told.record, place.segment, found)
            done, total, largest = climb(told.nodes, place, found.sum, found.largest)
            if done and lane() == 0:
                _finish(told.record, place, total, largest)

    return measure


_squares, _magnitudes = _make_measure(2), _make_measure(1)


@kernel(blocks=2)
def measure_squares(rows: Any, told: Any) -> None:
    """Sums of x²."""
    _squares(rows, told)


@kernel(blocks=2)
def measure_magnitudes(rows: Any, told: Any) -> None:
    """Sums of |x|."""
    _magnitudes(rows, told)
