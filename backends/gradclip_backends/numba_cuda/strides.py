"""Arrays that do not fill their memory: into a dense copy, and back. Launched by gradclip_backends/gpu/strides.py.

Grid: any number of blocks, each thread an element after the other, in C order of the shape. An item is
a word of an aligned size; larger ones have an axis of words. And words that come as the argument of a
launch, into memory.
"""

from __future__ import annotations

from typing import Any

from gradclip_backends.numba_cuda.elements import copy_item, load_8, store_64
from gradclip_backends.numba_cuda.jit import device, kernel
from gradclip_backends.numba_cuda.machine import (
    any_of_block,
    thread_number,
    thread_of_block,
    threads,
    threads_of_block,
)
from gradclip_backends.numba_cuda.record import LEAVE, at_op


@device
def _move(array: Any, back: Any) -> None:
    for i in range(thread_number(), array.count, threads()):
        rest, there = i, array.strided
        for axis in range(array.axes - 1, -1, -1):
            extent = array.shape[axis]
            line = rest // extent
            there += (rest - line * extent) * array.strides[axis]
            rest = line
        here = array.dense + i * array.itemsize
        if back:
            copy_item(there, here, array.itemsize)
        else:
            copy_item(here, there, array.itemsize)


@kernel(blocks=1)
def gather(array: Any) -> None:
    """Into the dense copy."""
    _move(array, False)


@kernel(blocks=1)
def scatter(array: Any, record: Any, first: Any, segments: Any) -> None:
    """Back, unless every segment of the array, from ``first`` on, was left as it was. Without a record always."""
    acts = record.address == 0
    if record.address != 0:
        for i in range(thread_of_block(), segments, threads_of_block()):
            if load_8(at_op(record, first + i)) != LEAVE:
                acts = True
    if any_of_block(acts):
        _move(array, True)


@kernel(blocks=1)
def store_words(chunk: Any, target: Any, count: Any) -> None:
    """The first words of the argument. One block, a thread a word."""
    if thread_of_block() < count:
        store_64(target + 8 * thread_of_block(), chunk.words[thread_of_block()])
