"""From an ideal factor to the one that is applied, so that a clipped norm never exceeds its bound.

docs/numerics.md ("The shave") derives the constants.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradclip_core.norms import Norms, times_power
from gradclip_core.protocol import FLOAT32, FloatArray
from gradclip_core.reference import two_product, two_sum

# How much smaller than max_norm the ideal clipped norm is made, relatively, so that the rounding of
# the norm, of the factor and of every product cannot carry the result over it. Float32 and 16-bit
# memory is multiplied in float32: half a float32 ulp for the product, the rest for the norm's own
# error (2^-46; 1e-12 for a general ord). Float64 memory: half a float64 ulp for the product, half an ulp
# so that the norm of the result is within the bound as commonly computed too, the rest for what is
# left of the norm's error once the carries are known.
SHAVE_FLOAT32 = 2.0**-24 + 2.0**-38
SHAVE_FLOAT64 = 2.0**-52 + 2.0**-80
# A general ord is known to 1e-12 alone, whatever the dtype.
SHAVE_GENERAL = 2.0**-38
# A product that lands among the subnormals is off by up to this much, whatever its size.
SUBNORMAL_FLOAT32 = 2.0**-149
SUBNORMAL_FLOAT64 = 5e-324
_SMALLEST_NORMAL_FLOAT32 = 2.0**-126
_SMALLEST_NORMAL_FLOAT64 = 2.0**-1022


def aim_float32(max_norm: FloatArray, norms: Norms, sizes: FloatArray, ord: float) -> FloatArray:
    """The ideal factor, shaved, where float32 and 16-bit memory takes part. Not yet rounded."""
    limit = max_norm * (1.0 - SHAVE_FLOAT32) - SUBNORMAL_FLOAT32 * sizes ** (1.0 / ord)
    aim = times_power(limit, -norms.exponent) / norms.root
    tiny = aim < 2.0**-900
    return np.maximum(np.where(tiny, _below(limit, norms), aim) if tiny.any() else aim, 0.0)


def aim_float64(max_norm: FloatArray, norms: Norms, sizes: FloatArray, ord: float) -> FloatArray:
    """The factor for scopes of float64 memory alone, shaved and rounded down.

    The quotient ``max_norm / (root + rest)`` is carried to twice the precision of float64, so
    that no rounding but that of the products has to be provided for.
    """
    target = max_norm - SUBNORMAL_FLOAT64 * sizes ** (1.0 / ord)
    limit = np.ldexp(target, -norms.exponent)
    shave = SHAVE_FLOAT64 if ord in (1, 2, np.inf) else SHAVE_GENERAL
    quotient = limit / norms.root
    product, short = two_product(quotient, norms.root)
    rest = (((limit - product) - short) - quotient * norms.rest) / norms.root
    factor, error = two_sum(quotient, rest - quotient * shave)
    factor = np.where(error < 0, np.nextafter(factor, 0.0), factor)
    # Where the errors themselves would underflow, or a product's halves overflow, a few ulps are given away instead.
    lost = (np.minimum(limit, quotient) < 2.0**-900) | np.isnan(factor)
    return np.maximum(np.where(lost, _below(target, norms), factor), 0.0)


def _below(limit: FloatArray, norms: Norms) -> FloatArray:
    """``limit / norm`` rounded to a quantum once, a few ulps and that quantum taken off."""
    up, down = np.maximum(-norms.exponent, 0), np.minimum(-norms.exponent, 0)
    quotient = np.ldexp(np.ldexp(limit, up) / norms.root * (1.0 - 2.0**-50), down)
    return np.nextafter(quotient, 0.0)


def round_down_float32(factor: FloatArray) -> FloatArray:
    """The largest number of 24 bits, a float32 but for its range, that is not larger."""
    if ((factor >= _SMALLEST_NORMAL_FLOAT64) & (factor < np.inf)).all():  # nearly always: the last 29 bits are dropped
        bits = factor.view(np.uint64) & np.uint64(2**64 - 2**29)
        return bits.view(np.float64)
    fraction, exponent = np.frexp(factor)
    return np.ldexp(np.floor(fraction * 2.0**24) * 2.0**-24, exponent)


def coarse_exponent(factor: FloatArray) -> npt.NDArray[np.int64]:
    """0 where a float32 holds the factor at full precision, else the exponent to take out first.

    At least -149 and at most 127: the power of two has to be a float32 itself.
    """
    _, exponent = np.frexp(factor)
    ordinary = (factor == 0) | ~np.isfinite(factor)
    ordinary |= (factor >= _SMALLEST_NORMAL_FLOAT32) & (factor < 2.0**127)
    return np.where(ordinary, 0, np.clip(exponent, -149, 127)).astype(np.int64)


def split(factor: FloatArray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """``factor`` as two float32 multipliers, the second a power of two, 1 in all ordinary cases.

    Under 2^-275 there are none, and the products, of float32 values, are as good as zero.
    """
    if ((factor >= _SMALLEST_NORMAL_FLOAT32) & (factor < 2.0**127)).all():
        return factor.astype(np.float32), np.ones(factor.shape, np.float32)
    exponent = coarse_exponent(factor)
    coarse = np.minimum(np.ldexp(factor, -exponent), FLOAT32.largest)  # not infinite: 0·inf is NaN
    return coarse.astype(np.float32), np.ldexp(1.0, exponent).astype(np.float32)
