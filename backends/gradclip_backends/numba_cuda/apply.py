"""The write pass: y = clamp(x * factor, low, high), for the segments whose action is not to leave them.

Launched by gradclip_backends/gpu/passes.py. Grid as for ``measure``. A row's target is its own memory in
place, or another's. In place a segment that is left alone is not touched, and where all are, the launch
ends after one load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradclip_backends.numba_cuda.elements import (
    STRIDE,
    VECTORS,
    copy_item,
    hidden,
    load_8,
    load_32,
    load_double,
    load_float,
    load_vectors,
    store_16,
    store_vector,
)
from gradclip_backends.numba_cuda.jit import device, kernel
from gradclip_backends.numba_cuda.machine import lane, warp_number, warps
from gradclip_backends.numba_cuda.record import (
    AT_ACTS,
    BFLOAT16,
    FACTOR,
    FLOAT16,
    FLOAT32,
    HIGH,
    LEAVE,
    LOW,
    ZERO,
    at,
    at_coarse,
    at_fine,
    at_op,
    find_block,
    size_shift,
)
from gradclip_backends.numba_cuda.storage import STORAGES, Action, Storage

Function = Callable[..., Any]


_BATCH = STRIDE * VECTORS


@device
def _copy(place: Any) -> None:
    size = 1 << size_shift(place.dtype)
    if place.n == 4096 and (place.pointer | place.target) & 15 == 0:
        for batch in range(size):
            offset = batch * _BATCH + lane() * 16
            q = load_vectors(place.pointer + offset)
            to = place.target + offset
            store_vector(to, q[0], q[1])
            store_vector(to + STRIDE, q[2], q[3])
            store_vector(to + 2 * STRIDE, q[4], q[5])
            store_vector(to + 3 * STRIDE, q[6], q[7])
            store_vector(to + 4 * STRIDE, q[8], q[9])
            store_vector(to + 5 * STRIDE, q[10], q[11])
            store_vector(to + 6 * STRIDE, q[12], q[13])
            store_vector(to + 7 * STRIDE, q[14], q[15])
    else:
        for i in range(lane(), place.n, 32):
            copy_item(place.target + i * size, place.pointer + i * size, size)


@device
def _zero(place: Any) -> None:
    """Nothing is read: what is there may be NaN, and 0 * NaN is NaN."""
    size = 1 << size_shift(place.dtype)
    if place.n == 4096 and place.target & 15 == 0:
        for offset in range(lane() * 16, 4096 * size, STRIDE):
            store_vector(place.target + offset, 0, 0)
    else:
        # Two bytes at a time serve every size.
        for offset in range(lane() * 2, place.n * size, 64):
            store_16(place.target + offset, 0)


def _make_scale(storage: Storage) -> Function:
    """Each element is changed as its segment's action says."""
    size, load_bits, store_bits = storage.size, storage.load_bits, storage.store_bits
    change, change_word = storage.changed, storage.change_word
    batches = 4096 * size // _BATCH

    @device
    def put(to: Any, low: Any, high: Any, action: Any) -> None:
        store_vector(to, change_word(low, action), change_word(high, action))

    @device
    def scale(place: Any, action: Any) -> None:
        if place.n == 4096 and (place.pointer | place.target) & 15 == 0:
            for batch in range(hidden(batches)):
                offset = batch * _BATCH + lane() * 16
                q = load_vectors(place.pointer + offset)
                to = place.target + offset
                put(to, q[0], q[1], action)
                put(to + STRIDE, q[2], q[3], action)
                put(to + 2 * STRIDE, q[4], q[5], action)
                put(to + 3 * STRIDE, q[6], q[7], action)
                put(to + 4 * STRIDE, q[8], q[9], action)
                put(to + 5 * STRIDE, q[10], q[11], action)
                put(to + 6 * STRIDE, q[12], q[13], action)
                put(to + 7 * STRIDE, q[14], q[15], action)
        else:
            for i in range(lane(), place.n, 32):
                store_bits(place.target + i * size, change(load_bits(place.pointer + i * size), action))

    return scale


@device
def _action_of(record: Any, segment: Any, sanitize: Any) -> Any:
    low, high = load_double(at(record, LOW, segment)), load_double(at(record, HIGH, segment))
    return Action(
        load_double(at(record, FACTOR, segment)),
        low,
        high,
        load_float(at_coarse(record, segment)),
        load_float(at_fine(record, segment)),
        np.float32(low),
        np.float32(high),
        sanitize,
    )


_scale_halves, _scale_brains, _scale_floats, _scale_doubles = (_make_scale(storage) for storage in STORAGES)


@kernel(blocks=2)
def apply(rows: Any, blocks: Any, record: Any, buffers: Any, sanitize: Any, in_place: Any) -> None:
    """Every block of every buffer."""
    if in_place != 0 and load_32(record.address + AT_ACTS) == 0:
        return
    for block in range(warp_number(), blocks, warps()):
        place = find_block(rows, buffers, block)
        op = load_8(at_op(record, place.segment))
        if op == LEAVE:
            if place.pointer != place.target:
                _copy(place)
        elif op == ZERO:
            _zero(place)
        else:
            action = _action_of(record, place.segment, sanitize)
            if place.dtype == FLOAT16:
                _scale_halves(place, action)
            elif place.dtype == BFLOAT16:
                _scale_brains(place, action)
            elif place.dtype == FLOAT32:
                _scale_floats(place, action)
            else:
                _scale_doubles(place, action)
