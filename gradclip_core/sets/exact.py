"""Sums of float64 numbers without rounding, as Python integers.

An exact sum is an integer in units of 2^-1126, which every float64 is a multiple of.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gradclip_core.forms import Tally, from_keys
from gradclip_core.protocol import FloatArray

UNIT = 1126
_SCALE = 1 << UNIT


def exact_sum(v: FloatArray) -> int:
    """Σ v. Splits the significands at 26 bits, so that 2^26 of each half add up exactly in float64."""
    fraction, exponent = np.frexp(v)
    significand = (fraction * 2.0**53).astype(np.int64)
    place = exponent.astype(np.int64) + (UNIT - 53)
    if not place.size:
        return 0
    least = int(place.min())
    high = np.bincount(place - least, significand >> 26)
    low = np.bincount(place - least, significand & ((1 << 26) - 1))
    return sum(
        ((int(high[i]) << 26) + int(low[i])) << (least + int(i)) for i in np.flatnonzero((high != 0) | (low != 0))
    )


def exact_total(v: FloatArray) -> Fraction:
    """Σ v."""
    return Fraction(exact_sum(v), _SCALE)


def as_units(value: float | Fraction) -> int:
    """A number in units of 2^-1126, rounded down where it is no multiple."""
    exact = Fraction(value) * _SCALE
    return exact.numerator // exact.denominator


def as_pair(numerator: int, count: int) -> tuple[float, float]:
    """``numerator / count`` units as two float64 numbers whose sum is it but for 2^-106, relatively."""
    exact = Fraction(numerator, count * _SCALE)
    high = float(exact)
    return high, float(exact - Fraction(high))


class Bins:
    """The bins of a tally that hold something, from the highest values down."""

    def __init__(self, tally: Tally, prefix: int, used: int) -> None:
        self.places = np.flatnonzero(tally.counts)[::-1]
        base = prefix << (64 - used) if used else 0
        first = np.uint64(base) | (self.places.astype(np.uint64) << np.uint64(48 - used))
        self.least = from_keys(first)
        self.largest = from_keys(first | np.uint64((1 << (48 - used)) - 1))
        self._counts = np.cumsum(tally.counts[self.places])
        self._high, self._low = tally.high[self.places], tally.low[self.places]
        # Neighbouring bins of one sign and exponent add up as integers.
        biased = (self.least.view(np.uint64) >> np.uint64(52)).astype(np.int64)
        self._starts = np.flatnonzero(np.diff(biased, prepend=-1))
        of_group = biased[self._starts]
        self._shifts = (np.maximum(of_group & 0x7FF, 1) - 1075 + UNIT).tolist()
        self._signs = np.where(of_group >> 11, -1, 1).tolist()

    def __len__(self) -> int:
        return int(self.places.size)

    def count(self, k: int) -> int:
        """How many elements the first ``k`` bins hold."""
        return int(self._counts[k - 1]) if k else 0

    def total(self, k: int) -> int:
        """The exact sum of the first ``k`` bins."""
        if not k:
            return 0
        starts = self._starts[self._starts < k]
        high, low = (np.add.reduceat(of[:k], starts).tolist() for of in (self._high, self._low))
        return sum(
            sign * (((h << 26) + rest) << shift)
            for sign, h, rest, shift in zip(self._signs, high, low, self._shifts, strict=False)
        )
