"""How often normally distributed values are spread too wide for integers: ``python -m tests.gpu.costs.spread``.

A warp sums a lane of each of its 32 threads at a time. Where one of the 32 is spread, all wait for its float64 sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import BFLOAT16, FLOAT16, DType
from gradclip_core.reference import LANES, ROWS, widen
from gradclip_core.testing import cases

_MANTISSA = {FLOAT16: 10, BFLOAT16: 7}
_BLOCKS = 500


def spread_lanes(x: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[np.bool_]:
    """For blocks of magnitudes, ``(blocks, 16, 256)``: the lanes that kernels/halves.cuh sums in float64."""
    exponents = np.frexp(x)[1] - 1
    unit = np.where(x > 0, exponents, 1000).min(1) - _MANTISSA[dtype]
    if dtype is FLOAT16:
        unit = np.maximum(unit, -24)
    spread: npt.NDArray[np.bool_] = np.where(x > 0, exponents, -1000).max(1) + 1 - unit > 23
    return spread


def shares(dtype: DType, scale: float = 1.0) -> tuple[float, float]:
    """The share of lanes, and of warps' groups of 32 lanes, that are spread, for normal values times ``scale``."""
    x = cases.stored(cases.generator(dtype, 99).standard_normal(_BLOCKS * ROWS * LANES) * scale, dtype)
    spread = spread_lanes(np.abs(widen(x, dtype)).reshape(_BLOCKS, ROWS, LANES), dtype)
    # A thread has 8 neighbouring lanes, and takes them one after the other.
    return float(spread.mean()), float(spread.reshape(_BLOCKS, 32, 8).any(1).mean())


if __name__ == "__main__":
    for dtype, scale in ((FLOAT16, 1.0), (FLOAT16, 2.0**-10), (BFLOAT16, 1.0)):
        lanes, groups = shares(dtype, scale)
        print(f"{dtype}, standard deviation {scale:g}: {lanes:.2%} of lanes, {groups:.1%} of a warp's groups of them")
