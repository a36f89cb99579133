"""The kernels: one block of at most 4096 elements at a time, by its address.

``measure_range`` and ``apply_range`` walk the blocks ``start..stop`` of a table of segments; which
thread is given which range changes no bit. The order of additions is docs/numerics.md's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import decode, narrow, view, widen
from gradclip_backends.numba_cpu.folds import LANES, fold, largest_of
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.lines import add_block

BLOCK = 4096


@jit
def find_segment(first: Any, block: Any) -> Any:
    """The segment that a block belongs to; ``first[s]`` is the first block of segment s."""
    low, high = 0, first.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if first[middle] <= block:
            low = middle
        else:
            high = middle
    return low


@jit
def sum_block(address: Any, n: Any, what: Any, lanes: Any, codes: Any, tag: Any, zero: Any) -> Any:
    """The sum over a block of ``n`` elements, what is missing counting as zeros, and the largest magnitude's code."""
    for k in range(LANES):
        lanes[k] = 0.0
    for k in range(codes.size):
        codes[k] = zero
    add_block(address, n, lanes, codes, what, tag)
    return fold(lanes), largest_of(codes, zero)


@jit
def measure_careful(
    x: Any,
    n: Any,
    power: Any,
    exponent: Any,
    unit: Any,
    sanitize: Any,
    low: Any,
    high: Any,
    top: Any,
    lanes: Any,
    out: Any,
) -> Any:
    """The sum with every option, an element at a time; fills ``out`` with largest, infs, nans, outside."""
    for k in range(LANES):
        lanes[k] = 0.0
    largest = 0.0
    infs = nans = outside = 0
    for i in range(n):
        v: Any = np.float64(widen(x[i]))
        if v < low or v > high:
            outside += 1
        if v != v:
            nans += 1
            if sanitize:
                v = 0.0
        elif abs(v) == math.inf:
            infs += 1
            if sanitize:
                v = math.copysign(top, v)
        if abs(v) < math.inf:
            largest = max(largest, abs(v))
        if exponent != 0:
            v = math.ldexp(v, -int(exponent))
        if power == 2.0:
            lanes[i % LANES] += v * v
        elif power == 1.0:
            lanes[i % LANES] += abs(v)
        else:
            lanes[i % LANES] += (abs(v) / unit) ** power
    out[0], out[1], out[2], out[3] = largest, infs, nans, outside
    return fold(lanes)


@jit
def measure_range(
    tag: Any,
    itemsize: Any,
    zero: Any,
    infinity: Any,
    top: Any,
    pointers: Any,
    lengths: Any,
    first: Any,
    absolute: Any,
    power: Any,
    exponents: Any,
    units: Any,
    sanitize: Any,
    lows: Any,
    highs: Any,
    careful: Any,
    start: Any,
    stop: Any,
    lanes: Any,
    codes: Any,
    sums: Any,
    found: Any,
) -> Any:
    """Fill ``sums[block]`` and ``found[block]`` (largest, infs, nans, outside) for a range of blocks.

    ``exponents``, ``units``, ``lows`` and ``highs`` have an entry for each segment, or one for all. ``lanes`` and
    ``codes`` are scratch memory: 256 float64, and ``LINE`` bytes of ``zero``'s type.
    """
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        address = pointers[s] + np.uint64(done * itemsize)
        if not careful:
            total, code = sum_block(address, n, absolute, lanes, codes, tag, zero)
            if code < infinity:
                found[block, 0] = widen(decode(code, tag))
                sums[block] = total
                continue
        x, own = view(address, n, tag), s if units.size > 1 else 0
        sums[block] = measure_careful(
            x, n, power, exponents[own], units[own], sanitize, lows[own], highs[own], top, lanes, found[block]
        )


@jit
def finish_segments(
    first: Any,
    sums: Any,
    found: Any,
    index: Any,
    out_sums: Any,
    out_largest: Any,
    out_infs: Any,
    out_nans: Any,
    out_outside: Any,
) -> Any:
    """From blocks to segments: the tree over each segment's block sums, maxima, and counts, added to zeros.

    Segment s of this table is ``index[s]`` of all segments, which ``out_...`` have.
    """
    lanes = np.empty(LANES)
    level = np.empty(max(1, sums.size))
    for s in range(first.size - 1):
        start, to = first[s], index[s]
        count = first[s + 1] - start
        for block in range(start, start + count):
            out_largest[to] = max(out_largest[to], found[block, 0])
            if found[block, 1] != 0.0 or found[block, 2] != 0.0 or found[block, 3] != 0.0:
                out_infs[to] += np.int64(found[block, 1])
                out_nans[to] += np.int64(found[block, 2])
                out_outside[to] += np.int64(found[block, 3])
        if count == 1:
            out_sums[to] = sums[start]
        elif count == 2:  # the other lanes of the tree are zeros
            out_sums[to] = sums[start] + sums[start + 1]
        elif count > 2:
            for i in range(count):
                level[i] = sums[start + i]
            out_sums[to] = tree(level, count, lanes)


@jit
def tree(level: Any, count: Any, lanes: Any) -> Any:
    """``tree_sum`` of ``level[:count]``, which is overwritten."""
    while count > 1:
        blocks = (count + BLOCK - 1) // BLOCK
        for block in range(blocks):
            n = min(BLOCK, count - block * BLOCK)
            for k in range(LANES):
                lanes[k] = 0.0
            for i in range(n):
                lanes[i % LANES] += level[block * BLOCK + i]
            level[block] = fold(lanes)
        count = blocks
    return level[0]


@jit
def write_value(v: Any, factor: Any, fine: Any, low: Any, high: Any, top: Any, sanitize: Any) -> Any:
    """``clamp(v · factor · fine, low, high)``, rounded after each step, NaN staying NaN."""
    if sanitize:
        if v != v:
            v = top - top
        elif v > top:
            v = top
        elif v < -top:
            v = -top
    y = v * factor * fine
    if y < low:
        y = low
    if y > high:
        y = high
    return y


@jit
def scale_block(
    x: Any, y: Any, n: Any, factor: Any, fine: Any, low: Any, high: Any, top: Any, sanitize: Any, tag: Any
) -> Any:
    """From ``x`` to ``y``, other memory."""
    for i in range(n):
        y[i] = narrow(write_value(widen(x[i]), factor, fine, low, high, top, sanitize), tag)


@jit
def scale_block_in_place(
    x: Any, n: Any, factor: Any, fine: Any, low: Any, high: Any, top: Any, sanitize: Any, tag: Any
) -> Any:
    """In place: one pointer, or the compiler must assume that two overlap, and does not vectorise."""
    if fine == 1.0 and low == -math.inf and high == math.inf and not sanitize:  # nearly always: the product alone
        for i in range(n):
            x[i] = narrow(widen(x[i]) * factor, tag)
    elif fine == 1.0 and not sanitize:
        for i in range(n):
            y = widen(x[i]) * factor
            y = low if y < low else y
            x[i] = narrow(high if y > high else y, tag)
    else:
        for i in range(n):
            x[i] = narrow(write_value(widen(x[i]), factor, fine, low, high, top, sanitize), tag)


@jit
def apply_range(
    tag: Any,
    itemsize: Any,
    sources: Any,
    targets: Any,
    lengths: Any,
    first: Any,
    ops: Any,
    factors: Any,
    fines: Any,
    lows: Any,
    highs: Any,
    top: Any,
    sanitize: Any,
    start: Any,
    stop: Any,
) -> Any:
    """Write a range of blocks. ``ops``: 0 leave (copy, into other memory), 1 scale, 2 zero."""
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        in_place = sources[s] == targets[s]
        if ops[s] == 0 and in_place:
            continue
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        offset = np.uint64(done * itemsize)
        y = view(targets[s] + offset, n, tag)
        if ops[s] == 2:
            for i in range(n):
                y[i] = tag
            continue
        x = view(sources[s] + offset, n, tag)
        if ops[s] == 0:
            for i in range(n):
                y[i] = x[i]
        elif in_place:
            scale_block_in_place(y, n, factors[s], fines[s], lows[s], highs[s], top, sanitize, tag)
        else:
            scale_block(x, y, n, factors[s], fines[s], lows[s], highs[s], top, sanitize, tag)
