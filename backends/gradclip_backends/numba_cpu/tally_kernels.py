"""The kernels that find a threshold: histograms of exact integer sums, and the elements of a range."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import bits_of, view
from gradclip_backends.numba_cpu.folds import LANES, fold
from gradclip_backends.numba_cpu.form_kernels import load_block
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import BLOCK, find_segment

_SIGN = np.uint64(1 << 63)
_FRACTION = np.uint64((1 << 52) - 1)
_HIDDEN = np.uint64(1 << 52)
_LOW = np.uint64((1 << 26) - 1)
_BIN = np.uint64((1 << 16) - 1)


@jit
def key_of(u: Any, signed: Any) -> Any:
    """The unsigned integer that orders as u does, or as its magnitude."""
    bits = bits_of(u + 0.0)
    if not signed:
        return bits | _SIGN
    return ~bits if bits >> np.uint64(63) else bits | _SIGN


@jit
def tally_range(
    tag: Any, itemsize: Any, top: Any, pointers: Any, lengths: Any, first: Any,
    inverse: Any, exponent: Any, sanitize: Any, signed: Any, prefix: Any, used: Any, start: Any, stop: Any, bins: Any,
) -> Any:  # fmt: skip
    """Add a range of blocks to ``bins[bin]`` (count, high, low)."""
    u = np.empty(BLOCK)
    shift, beyond = np.uint64(48 - used), np.uint64(64 - used)
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        load_block(view(pointers[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
        lows: Any = np.uint64(0)
        if used == 0:
            for i in range(n):
                lows |= bits_of(u[i])
        if used == 0 and lows & _LOW == 0:  # as all types narrower than float64 are, scaled by powers of two
            for i in range(n):
                bits = bits_of(u[i] + 0.0)
                at = (key_of(u[i], signed) >> shift) & _BIN
                hidden = _HIDDEN if bits & ~_SIGN > _FRACTION else np.uint64(0)
                bins[at, 0] += 1
                bins[at, 1] += np.int64(((bits & _FRACTION) | hidden) >> np.uint64(26))
        else:
            for i in range(n):
                key = key_of(u[i], signed)
                if used != 0 and key >> beyond != prefix:
                    continue
                bits = bits_of(u[i])
                significand = bits & _FRACTION
                if bits & ~_SIGN > _FRACTION:
                    significand |= _HIDDEN
                at = (key >> shift) & _BIN
                bins[at, 0] += 1
                bins[at, 1] += np.int64(significand >> np.uint64(26))
                bins[at, 2] += np.int64(significand & _LOW)


@jit
def gather_range(
    tag: Any, itemsize: Any, top: Any, pointers: Any, lengths: Any, first: Any,
    inverse: Any, exponent: Any, sanitize: Any, signed: Any, low: Any, high: Any,
    start: Any, stop: Any, out: Any, sums: Any,
) -> Any:  # fmt: skip
    """Copy the elements from ``low`` to ``high``, numbers, to the beginning of ``out``; add up those above.

    Returns how many were copied, and how many are above. ``sums`` has a place for each block. Few
    elements are copied, as a rule: a mask of bytes, which vectorises, is looked at by eights.
    """
    u, lanes = np.empty(BLOCK), np.empty(LANES)
    inside = np.zeros(BLOCK, np.uint8)
    eights = inside.view(np.uint64)
    at: Any = 0
    above: Any = 0
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        load_block(view(pointers[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
        if not signed:
            for i in range(n):
                u[i] = abs(u[i])
        for i in range(n):
            inside[i] = (u[i] >= low) & (u[i] <= high)
        for i in range(n, BLOCK):
            inside[i] = 0
        for eight in range(eights.size):
            if eights[eight]:
                for i in range(8 * eight, 8 * eight + 8):
                    out[at] = u[i]  # the next overwrites it, if it is none of them
                    at += np.int64(inside[i])
        for i in range(n):
            above += u[i] > high
        for k in range(LANES):
            lanes[k] = 0.0
        for row in range((n + LANES - 1) // LANES):
            for k in range(min(LANES, n - row * LANES)):
                v = u[row * LANES + k]
                lanes[k] += v if v > high else 0.0
        sums[block - start] = fold(lanes)
    return at, above
