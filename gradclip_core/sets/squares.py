"""How far sums in float64 can be off, and sums of squares without rounding for where that matters.

A scope at the boundary of a ball is inside or outside by less than its norm's rounding: there the
norm alone does not tell, and the squares are added up as integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gradclip_core.protocol import Buffer, FloatArray
from gradclip_core.reference import BLOCK, two_product
from gradclip_core.reference_forms import load
from gradclip_core.sets.base import View
from gradclip_core.sets.exact import UNIT, exact_sum

LOST = Fraction(1, 1 << 400)
"""A length, relative to the largest element of a view that was brought ``near``, that float64 has no squares of."""

_SHIFT = 1100  # no exponent of a float64 is lower than minus this
SQUARE_UNIT = UNIT + 2 * _SHIFT
"""Sums of squares are integers in units of 2^-3326."""

_CHUNK = 1 << 18


def rounding(view: View) -> Fraction:
    """A bound of the relative error of a sum over a scope in ``tree_sum``'s order, and of a few operations more.

    15 + 8 additions a level, each off by 2^-53; levels within the longest segment, and over the segments.
    """
    longest = max((buffer.length for buffer in view.buffers), default=1)
    return Fraction(24 * (_levels(longest) + _levels(view.segments)) + 16, 1 << 53)


def _levels(count: int) -> int:
    levels = 0
    while count > 1:
        count, levels = -(-count // BLOCK), levels + 1
    return levels


def shaved(view: View, radius: float, roundings: int | None = None) -> Fraction:
    """The radius to aim at, see ``View.aim``, for a norm that is computed in float64 with ``rounding``'s error."""
    return view.aim(radius, roundings) * (1 - rounding(view))


def exact_squares(v: FloatArray) -> int:
    """Σ v², in units of 2^-3326."""
    fraction, exponent = np.frexp(v)
    total = 0
    for e in np.unique(exponent[fraction != 0]).tolist():
        high, low = two_product(fraction[exponent == e], fraction[exponent == e])
        total += (exact_sum(high) + exact_sum(low)) << 2 * (e + _SHIFT)
    return total


def segment_squares(view: View) -> list[int]:
    """For each segment Σ u², exactly. Slow beside a pass: for the boundary alone."""
    return [sum(map(exact_squares, _parts(view, buffer, row))) for buffer, row in _segments(view.buffers)]


def _segments(buffers: Sequence[Buffer]) -> list[tuple[Buffer, int]]:
    return [(buffer, row) for buffer in buffers for row in range(buffer.rows)]


def _parts(view: View, buffer: Buffer, row: int) -> list[FloatArray]:
    x = buffer.as_numpy()[row]
    return [load(x[start : start + _CHUNK], buffer.dtype, view.reading) for start in range(0, x.size, _CHUNK)]


def sum_of_norms_within(view: View, radius: Fraction) -> bool:
    """Whether the 2-norms of the segments add up to at most ``radius``; but for 2^-1663 for each of them."""
    total = sum(map(math.isqrt, segment_squares(view)))
    return total <= radius * (1 << SQUARE_UNIT // 2)


def norm_within(view: View, radius: Fraction) -> bool:
    """Whether the 2-norm of the scope is at most ``radius``, exactly."""
    return sum(segment_squares(view)) <= radius**2 * (1 << SQUARE_UNIT)
