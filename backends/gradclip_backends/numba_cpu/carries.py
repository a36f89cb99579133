"""The kernels that carry along what rounding takes from float64 sums: ``tree_sum_carried``.

They run on steps that clip float64 alone, so they are written to be read, an element at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import view, widen
from gradclip_backends.numba_cpu.folds import LANES
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import BLOCK, find_segment


@jit
def lost_in_sum(a: Any, b: Any, s: Any) -> Any:
    """What rounding took from ``s = a + b``."""
    t = s - a
    return (a - (s - t)) + (b - t)


@jit
def lost_in_square(v: Any, p: Any) -> Any:
    """What rounding took from ``p = v·v``, as Dekker's product in the reference finds it."""
    t = v * 134217729.0
    high = t - (t - v)
    low = v - high
    return ((high * high - p) + high * low + low * high) + low * low


@jit
def fold_carried(lanes: Any, carries: Any) -> Any:
    """``fold``, with carries; the carry of the whole is left in ``carries[0]``."""
    width = LANES // 2
    while width > 0:
        for k in range(width):
            s = lanes[k] + lanes[k + width]
            carries[k] = (carries[k] + carries[k + width]) + lost_in_sum(lanes[k], lanes[k + width], s)
            lanes[k] = s
        width //= 2
    return carries[0]


@jit
def carry_of_block(x: Any, n: Any, power: Any, exponent: Any, sanitize: Any, top: Any, lanes: Any, carries: Any) -> Any:
    """The carry of a block's sum; float64 alone."""
    for k in range(LANES):
        lanes[k] = 0.0
        carries[k] = 0.0
    for i in range(n):
        v: Any = np.float64(widen(x[i]))
        if sanitize and not abs(v) < math.inf:
            v = 0.0 if v != v else math.copysign(top, v)
        if exponent != 0:
            v = math.ldexp(v, -int(exponent))
        p = v * v if power == 2.0 else abs(v)
        lost = lost_in_square(v, p) if power == 2.0 else 0.0
        s = lanes[i % LANES] + p
        carries[i % LANES] = (carries[i % LANES] + lost) + lost_in_sum(lanes[i % LANES], p, s)
        lanes[i % LANES] = s
    return fold_carried(lanes, carries)


@jit
def carry_range(
    tag: Any,
    itemsize: Any,
    top: Any,
    pointers: Any,
    lengths: Any,
    first: Any,
    power: Any,
    exponents: Any,
    sanitize: Any,
    start: Any,
    stop: Any,
    out: Any,
) -> Any:
    """Fill ``out[block]`` with the carries of a range of blocks."""
    lanes, carries = np.empty(LANES), np.empty(LANES)
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        x = view(pointers[s] + np.uint64(done * itemsize), n, tag)
        out[block] = carry_of_block(x, n, power, exponents[s], sanitize, top, lanes, carries)


@jit
def finish_carries(first: Any, sums: Any, block_carries: Any, out: Any) -> Any:
    """From the carries of blocks to those of segments. ``sums`` and ``block_carries`` are overwritten."""
    lanes, carries = np.empty(LANES), np.empty(LANES)
    for segment in range(first.size - 1):
        begin, count = first[segment], first[segment + 1] - first[segment]
        while count > 1:
            blocks = (count + BLOCK - 1) // BLOCK
            for block in range(blocks):
                for k in range(LANES):
                    lanes[k] = 0.0
                    carries[k] = 0.0
                for i in range(min(BLOCK, count - block * BLOCK)):
                    at = begin + block * BLOCK + i
                    s = lanes[i % LANES] + sums[at]
                    lost = lost_in_sum(lanes[i % LANES], sums[at], s)
                    carries[i % LANES] = (carries[i % LANES] + block_carries[at]) + lost
                    lanes[i % LANES] = s
                block_carries[begin + block] = fold_carried(lanes, carries)
                sums[begin + block] = lanes[0]
            count = blocks
        if count == 1:
            out[segment] = block_carries[begin]
