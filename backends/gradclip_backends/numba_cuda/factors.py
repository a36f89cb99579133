"""From an ideal factor to the one that is applied: gradclip_core/precision/factors.py, to the bit.

docs/numerics.md ("The shave") derives the constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradclip_backends.numba_cuda.arithmetic import (
    is_finite,
    lost_in_product,
    lost_in_sum,
    maximum,
    minimum,
    power_of_two,
    scale_by_power,
    split_exponent,
    towards_zero,
)
from gradclip_backends.numba_cuda.elements import floor, mul, power, root
from gradclip_backends.numba_cuda.jit import device

Function = Callable[..., Any]

_SHAVE_FLOAT32 = 2.0**-24 + 2.0**-38
_SHAVE_FLOAT64 = 2.0**-52 + 2.0**-80
_SHAVE_GENERAL = 2.0**-38
_SMALLEST_FLOAT32, _SMALLEST_FLOAT64 = 2.0**-149, 2.0**-1074
_BELOW, _LEFT_FLOAT32 = 1.0 - 2.0**-50, 1.0 - _SHAVE_FLOAT32
_TINY = 2.0**-900
_BITS_24, _BIT_24 = 2.0**24, 2.0**-24
_ORDINARY_LEAST, _ORDINARY_MOST = 2.0**-126, 2.0**127
_LARGEST_FLOAT32 = (2.0**24 - 1) * 2.0**104


@device
def _general_root(count: Any, order: Any) -> Any:
    return power(count, 1.0 / order)


@device
def _plain_root(count: Any, order: Any) -> Any:
    if order == 2.0:
        return root(count)
    return count if order == 1.0 else 1.0


@device
def _below(limit: Any, norm: Any) -> Any:
    """Limit / norm rounded to a quantum once, a few ulps and that quantum taken off."""
    up, down = max(-norm.exponent, 0), min(-norm.exponent, 0)
    quotient = mul(scale_by_power(limit, up) / norm.root, _BELOW)
    return towards_zero(scale_by_power(quotient, down))


def make_aim_float32(general: bool) -> Function:
    """Where float32 and 16-bit memory takes part. Not yet rounded."""
    # count^(1/p): what `count` roundings to the smallest number can add to a p-norm, in units of it.
    root_of_count = _general_root if general else _plain_root

    @device
    def aim_float32(max_norm: Any, norm: Any, size: Any, order: Any) -> Any:
        limit = mul(max_norm, _LEFT_FLOAT32) - mul(_SMALLEST_FLOAT32, root_of_count(size, order))
        aim = scale_by_power(limit, -norm.exponent) / norm.root
        return maximum(_below(limit, norm) if aim < _TINY else aim, 0.0)

    return aim_float32


def make_aim_float64(general: bool) -> Function:
    """For float64 memory alone: the quotient in twice the precision, shaved, rounded down."""
    root_of_count = _general_root if general else _plain_root
    shave = _SHAVE_GENERAL if general else _SHAVE_FLOAT64

    @device
    def aim_float64(max_norm: Any, norm: Any, size: Any, order: Any) -> Any:
        target = max_norm - mul(_SMALLEST_FLOAT64, root_of_count(size, order))
        limit = scale_by_power(target, -norm.exponent)
        quotient = limit / norm.root
        product = mul(quotient, norm.root)
        lost = lost_in_product(quotient, norm.root, product)
        rest = (((limit - product) - lost) - mul(quotient, norm.rest)) / norm.root
        less = rest - mul(quotient, shave)
        factor = quotient + less
        if lost_in_sum(quotient, less, factor) < 0.0:
            factor = towards_zero(factor)
        # Where the errors themselves would underflow, or halves of a product overflow, some ulps are given away.
        if minimum(limit, quotient) < _TINY or factor != factor:
            factor = _below(target, norm)
        return maximum(factor, 0.0)

    return aim_float64


@device
def round_down_float32(factor: Any) -> Any:
    """The largest number of 24 bits that is not larger."""
    fraction, exponent = split_exponent(factor)
    return scale_by_power(mul(floor(mul(fraction, _BITS_24)), _BIT_24), exponent)


@device
def split(factor: Any) -> Any:
    """``factor`` as two float32 multipliers, the second a power of two, 1 in all ordinary cases."""
    ordinary = factor == 0.0 or not is_finite(factor) or (factor >= _ORDINARY_LEAST and factor < _ORDINARY_MOST)
    exponent = 0
    if not ordinary:
        exponent = min(max(split_exponent(factor)[1], -149), 127)
    coarse = minimum(scale_by_power(factor, -exponent), _LARGEST_FLOAT32)  # 0·inf is NaN
    return np.float32(coarse), np.float32(power_of_two(exponent))
