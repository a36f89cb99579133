"""The kernels that find a threshold: histograms of exact integer sums, and the elements of a range."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import bits_of, view
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
    shift = np.uint64(48 - used)
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        load_block(view(pointers[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
        for i in range(n):
            key = key_of(u[i], signed)
            if used != 0 and key >> np.uint64(64 - used) != prefix:
                continue
            bits = bits_of(u[i])
            significand = bits & _FRACTION
            if (bits & ~_SIGN) > _FRACTION:
                significand |= _HIDDEN
            at = (key >> shift) & _BIN
            bins[at, 0] += 1
            bins[at, 1] += np.int64(significand >> np.uint64(26))
            bins[at, 2] += np.int64(significand & _LOW)


@jit
def count_range(
    tag: Any, itemsize: Any, top: Any, pointers: Any, lengths: Any, first: Any,
    inverse: Any, exponent: Any, sanitize: Any, signed: Any, low: Any, high: Any, start: Any, stop: Any, counts: Any,
) -> Any:  # fmt: skip
    """How many elements of each block are in the range of keys."""
    u = np.empty(BLOCK)
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        load_block(view(pointers[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
        count = 0
        for i in range(n):
            key = key_of(u[i], signed)
            count += 1 if low <= key <= high else 0
        counts[block] = count


@jit
def gather_range(
    tag: Any, itemsize: Any, top: Any, pointers: Any, lengths: Any, first: Any,
    inverse: Any, exponent: Any, sanitize: Any, signed: Any, low: Any, high: Any, start: Any, stop: Any,
    counts: Any, places: Any, out: Any,
) -> Any:  # fmt: skip
    """Copy the elements in the range of keys; ``places[block]`` is where those of a block begin."""
    u = np.empty(BLOCK)
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        if counts[block] == 0:
            continue
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        load_block(view(pointers[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
        at = places[block]
        for i in range(n):
            key = key_of(u[i], signed)
            if low <= key <= high:
                out[at] = u[i] if signed else abs(u[i])
                at += 1
