"""``tree_sum`` in array operations: the reference's order of additions, for many rows at once.

Everything here works on tuples of ``(rows, n)`` float64 arrays: ``(sums,)``, or ``(sums, carries)``,
whose first component is what plain addition gives. Zeros that only fill a block up are left out
where that changes nothing: adding them is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

ROWS, LANES = 16, 256
BLOCK = ROWS * LANES

Parts = tuple[Any, ...]
Add = Callable[[Parts, Parts], Parts]


def tree_sum(xp: Any, parts: Parts) -> Parts:
    """A ``(rows,)`` array for each part: the sum of each row."""
    while True:
        parts = block_sums(xp, parts)
        if parts[0].shape[1] == 1:
            return tuple(part[:, 0] for part in parts)


def block_sums(xp: Any, parts: Parts) -> Parts:
    """One number per block of 4096: the 16 rows in order, then the 256 lanes folded in halves."""
    add = _add_pairs if len(parts) == 2 else _add
    count, length = parts[0].shape
    whole = length // BLOCK
    found: list[Parts] = []
    if whole:
        shape = (count, whole, ROWS, LANES)
        found.append(_fold(tuple(xp.reshape(part[:, : whole * BLOCK], shape) for part in parts), add))
    if length % BLOCK or not whole:
        tail = tuple(part[:, whole * BLOCK :] for part in parts)
        found.append(_fold(tuple(_filled_up(xp, part) for part in tail), add))
    if len(found) == 1:
        return found[0]
    return tuple(xp.concat(both, axis=1) for both in zip(*found, strict=True))


def _filled_up(xp: Any, part: Any) -> Any:
    """Less than a block as ``(rows, 1, n, lanes)``: whole rows of lanes, or one of a power of two of them.

    Two at least: a carry is NaN once an infinity was added to anything, as every element is in a whole block.
    """
    count, length = part.shape
    lanes = min(LANES, max(2, 1 << (length - 1).bit_length()))
    size = math.ceil(length / lanes) * lanes
    if size > length:
        filler = xp.zeros((count, size - length), dtype=part.dtype, device=part.device)
        part = xp.concat([part, filler], axis=1)
    return xp.reshape(part, (count, 1, size // lanes, lanes))


def _fold(parts: Parts, add: Add) -> Parts:
    lanes = tuple(part[:, :, 0, :] for part in parts)
    for row in range(1, parts[0].shape[2]):
        lanes = add(lanes, tuple(part[:, :, row, :] for part in parts))
    width = lanes[0].shape[2] // 2
    while width:
        left = tuple(part[:, :, :width] for part in lanes)
        right = tuple(part[:, :, width : 2 * width] for part in lanes)
        lanes = add(left, right)
        width //= 2
    return tuple(part[:, :, 0] for part in lanes)


def _add(a: Parts, b: Parts) -> Parts:
    return (a[0] + b[0],)


def _add_pairs(a: Parts, b: Parts) -> Parts:
    """The sum, and what rounding took from it, exactly (Knuth's two-sum)."""
    s = a[0] + b[0]
    t = s - a[0]
    error = (a[0] - (s - t)) + (b[0] - t)
    return s, (a[1] + b[1]) + error


def lost_in_squaring(v: Any) -> Any:
    """What rounding took from ``v · v``, exactly (Dekker's product of Veltkamp's halves)."""
    p = v * v
    t = v * 134217729.0  # 2^27 + 1
    high = t - (t - v)
    low = v - high
    return ((high * high - p) + high * low + low * high) + low * low
