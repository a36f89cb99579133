"""The kernel of clipping by value where nothing is refused: measure, clamp and measure again, a block at a time.

A block is in the first-level cache when it is written and read again, so memory is read once, and of blocks
in which nothing is beyond the limits nothing is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import decode, view, widen
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import (
    BLOCK,
    find_segment,
    measure_careful,
    scale_block_in_place,
    sum_block,
)


@jit
def count_outside(x: Any, n: Any, low: Any, high: Any) -> Any:
    """How many elements lie outside; NaN does not."""
    count = 0
    for i in range(n):
        v = widen(x[i])
        count += (v < low) | (v > high)
    return count


@jit
def clamp_range(
    tag: Any,
    itemsize: Any,
    zero: Any,
    infinity: Any,
    top: Any,
    pointers: Any,
    lengths: Any,
    first: Any,
    factor: Any,
    fine: Any,
    lows: Any,
    highs: Any,
    symmetric: Any,
    start: Any,
    stop: Any,
    lanes: Any,
    codes: Any,
    sums: Any,
    found: Any,
    after: Any,
) -> Any:
    """``clamp(x · factor · fine, low, high)`` in place over a range of blocks.

    Fills ``sums`` and ``found`` as ``measure_range`` does before, and ``after`` with the sums of what was written.
    """
    scaled = factor * fine != 1.0
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        address = pointers[s] + np.uint64(done * itemsize)
        x = view(address, n, tag)
        low, high = lows[s], highs[s]
        total, code = sum_block(address, n, itemsize, None, lanes, codes, tag, zero)
        if code < infinity:
            largest = widen(decode(code, tag))
            found[block, 0] = largest
            if not symmetric:
                found[block, 3] = count_outside(x, n, low, high)
            beyond = largest > high if symmetric else found[block, 3] > 0
        else:
            total = measure_careful(x, n, 2.0, 0, 1.0, False, low, high, top, lanes, found[block])
            beyond = found[block, 3] > 0
        sums[block] = after[block] = total
        if beyond or scaled:
            scale_block_in_place(x, n, factor, fine, low, high, top, False, tag)
            after[block], _ = sum_block(address, n, itemsize, None, lanes, codes, tag, zero)
