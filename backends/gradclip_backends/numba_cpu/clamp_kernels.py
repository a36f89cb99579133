"""The kernel of clipping by value where nothing is refused: measure, and clamp, a block at a time.

One walk over a block has the sums before and after, where the last one had something beyond the limits. The
block is in the first-level cache when it is written, so memory is read once, and of blocks in which nothing
is beyond the limits nothing is written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import clamped_code, decode, narrow, view, widen
from gradclip_backends.numba_cpu.folds import LANES, fold
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
def sum_both(address: Any, n: Any, low: Any, high: Any, lanes: Any, after: Any, codes: Any, tag: Any, zero: Any) -> Any:
    """``sum_block`` of squares, and in the middle what it will be when the block is clamped."""
    for k in range(LANES):
        after[k] = 0.0
    total, code = sum_block(address, n, (np.uint64(after.ctypes.data), low, high), lanes, codes, tag, zero)
    return total, fold(after), code


@jit
def clamp_block(address: Any, n: Any, low: Any, high: Any, symmetric: Any, tag: Any, zero: Any) -> Any:
    """In place. The limits are numbers of the storage type, or infinite; what lies within keeps its bits."""
    if symmetric and high > 0:  # the bits of magnitudes are in their order; zeros may have signs of their own
        bits = view(address, n, zero)
        limit = decode(narrow(high, tag), zero)
        for i in range(n):
            bits[i] = clamped_code(bits[i], limit)
        return
    x, least, most = view(address, n, tag), narrow(low, tag), narrow(high, tag)
    for i in range(n):
        v = widen(x[i])
        y = least if v < low else x[i]
        x[i] = most if v > high else y


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
    later: Any,
    codes: Any,
    sums: Any,
    found: Any,
    after: Any,
) -> Any:
    """``clamp(x · factor · fine, low, high)`` in place over a range of blocks.

    Fills ``sums`` and ``found`` as ``measure_range`` does before, and ``after`` with the sums of what was written.
    ``lanes`` and ``later`` are scratch memory of 256 float64 each, ``codes`` of a line.
    """
    scaled = factor * fine != 1.0
    both = False  # what comes is taken to be like what was: most of it beyond the limits, or none
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        address = pointers[s] + np.uint64(done * itemsize)
        x = view(address, n, tag)
        low, high = lows[s], highs[s]
        clamped = math.nan
        if both:
            total, clamped, code = sum_both(
                address, n, np.float64(low), np.float64(high), lanes, later, codes, tag, zero
            )
        else:
            total, code = sum_block(address, n, None, lanes, codes, tag, zero)
        simple = code < infinity and not scaled
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
        both = simple and beyond
        if both:
            clamp_block(address, n, low, high, symmetric, tag, zero)
        elif beyond or scaled:
            scale_block_in_place(x, n, factor, fine, low, high, top, False, tag)
        else:
            continue
        if both and clamped == clamped:
            after[block] = clamped
        else:
            after[block], _ = sum_block(address, n, None, lanes, codes, tag, zero)
