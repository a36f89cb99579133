"""Counts what memory accesses cost: bytes, 32-byte sectors, warp-wide requests, bank conflicts."""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.types import Array

BANKS = 32


def distinct_sectors(warps: Array, addresses: Array) -> int:
    """How many 32-byte sectors the warps ask for, each warp for itself. Accesses are aligned, so that each has one."""
    sectors = addresses >> np.uint64(5)
    new_warp = warps[1:] != warps[:-1]
    if (new_warp | (sectors[1:] >= sectors[:-1])).all():  # in order within each warp: the common case
        return 1 + int(np.count_nonzero(new_warp | (sectors[1:] != sectors[:-1])))
    order = np.lexsort((sectors, warps))
    return distinct_sectors(warps[order], sectors[order] << np.uint64(5))


def distinct_warps(warps: Array) -> int:
    """Of an ascending list."""
    return 1 + int(np.count_nonzero(warps[1:] != warps[:-1]))


def bank_conflicts(index: Array, offsets: Array, size: int) -> int:
    """Replays of one access to shared memory: what the busiest bank of each warp is asked for, beyond the first word.

    A warp asks for 128 bytes at a time: accesses of 8 bytes go by half warps, those of 16 by quarters.
    """
    turn = index // (BANKS * 4 // max(size, 4))
    words = offsets.astype(np.int64) >> 2
    if size > 4:
        words = (words[:, None] + np.arange(size // 4)).reshape(-1)
        turn = np.repeat(turn, size // 4)
    span = int(words.max()) + 1
    asked = np.unique(turn * span + words)
    turns, words = asked // span, asked % span
    banks, counts = np.unique(turns * BANKS + words % BANKS, return_counts=True)
    turns = banks // BANKS
    starts = np.flatnonzero(np.concatenate(([True], turns[1:] != turns[:-1])))
    return int((np.maximum.reduceat(counts, starts) - 1).sum())
