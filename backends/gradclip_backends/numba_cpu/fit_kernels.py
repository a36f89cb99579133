"""The kernel of conversions: form "fit" without moments, from memory to memory of another type in one loop.

``form_kernels.map_range`` gives the same bits by tiles of float64, which moments need and conversions do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import narrow_once, view, widen
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import BLOCK, find_segment


@jit
def fit_block(x: Any, y: Any, n: Any, factor: Any, low: Any, high: Any, tag: Any) -> Any:
    """``y = clamp(x · factor, low, high)`` in float64, rounded once. NaN stays NaN."""
    for i in range(n):
        z = np.float64(widen(x[i])) * factor
        z = low if z < low else z
        z = high if z > high else z
        y[i] = narrow_once(z, tag)


@jit
def fit_range(
    tag: Any,
    itemsize: Any,
    y_tag: Any,
    y_itemsize: Any,
    sources: Any,
    targets: Any,
    lengths: Any,
    first: Any,
    factors: Any,
    lows: Any,
    highs: Any,
    start: Any,
    stop: Any,
) -> Any:
    """Convert a range of blocks."""
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        x = view(sources[s] + np.uint64(done * itemsize), n, tag)
        y = view(targets[s] + np.uint64(done * y_itemsize), n, y_tag)
        fit_block(x, y, n, factors[s], lows[s], highs[s], y_tag)
