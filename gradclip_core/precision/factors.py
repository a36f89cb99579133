"""From an ideal factor to the one that is applied, so that a clipped norm never exceeds its bound.

docs/numerics.md ("The shave") derives the constants.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import BoolArray, FloatArray

# How much smaller than max_norm the ideal clipped norm is made, so that the rounding of the norm,
# of the factor and of every product cannot carry the result over it. Float32 and 16-bit memory is
# multiplied in float32: half a float32 ulp for the product, the rest for the norm's own error
# (2^-46; 1e-12 for a general ord). Float64: three ulps.
SHAVE_FLOAT32 = 2.0**-24 + 2.0**-38
SHAVE_FLOAT64 = 6 * 2.0**-53
# A product that lands among the subnormals is off by up to this much, whatever its size.
SUBNORMAL_FLOAT32 = 2.0**-149
SUBNORMAL_FLOAT64 = 5e-324
_SMALLEST_NORMAL_FLOAT32 = 2.0**-126


def shaved_limit(max_norm: FloatArray, sizes: FloatArray, ord: float, float64_only: BoolArray) -> FloatArray:
    """The norm to aim at so that the rounded result stays within ``max_norm``. May be negative."""
    relative = np.where(float64_only, SHAVE_FLOAT64, SHAVE_FLOAT32)
    absolute = np.where(float64_only, SUBNORMAL_FLOAT64, SUBNORMAL_FLOAT32) * sizes ** (1.0 / ord)
    return max_norm * (1.0 - relative) - absolute


def round_down_float32(factor: FloatArray) -> FloatArray:
    """The nearest product of a float32 and a power of two that is not larger."""
    exponent = coarse_exponent(factor)
    coarse = np.ldexp(factor, -exponent)
    nearest = coarse.astype(np.float32)
    below = np.where(nearest > coarse, np.nextafter(nearest, np.float32(0)), nearest)
    return np.ldexp(below.astype(np.float64), exponent)


def coarse_exponent(factor: FloatArray) -> npt.NDArray[np.int64]:
    """0 where a float32 holds the factor at full precision, else the exponent to take out first.

    At least -149 and at most 127: the power of two has to be a float32 itself.
    """
    _, exponent = np.frexp(factor)
    ordinary = (factor == 0) | ~np.isfinite(factor)
    ordinary |= (factor >= _SMALLEST_NORMAL_FLOAT32) & (factor < 2.0**127)
    return np.where(ordinary, 0, np.clip(exponent, -149, 127)).astype(np.int64)


def split(factor: FloatArray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """``factor`` as two float32 multipliers, the second a power of two, 1 in all ordinary cases."""
    exponent = coarse_exponent(factor)
    with np.errstate(over="ignore", under="ignore"):
        coarse = np.ldexp(factor, -exponent).astype(np.float32)
        return coarse, np.ldexp(1.0, exponent).astype(np.float32)
