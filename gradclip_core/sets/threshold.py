"""The threshold of an L1 ball or a simplex, exactly, without sorting what is large.

The projection subtracts a τ with ``Σ max(u - τ, 0) = radius``. The left side falls as τ grows, and
between two neighbouring values of u it is a line, so τ is known as soon as it is known which
elements are above it: ``τ = (their sum - radius) / their number``.

They are found as a radix sort finds a quantile. A histogram over the leading 16 bits of the
elements, with the exact sum of each bin, says in which bin τ lies; the next histogram looks into
that bin alone. At most four passes over the memory, two as a rule, whatever the values are; what
is left at 32,768 elements or fewer is sorted, and what a histogram leaves at a sixteenth or less is
copied out first. Of large scopes a sample mostly tells at once what to copy out, see ``bracket.py``.
All sums are exact, so that no bit depends on the order in which they were added. docs/decisions/0008
compares it with Michelot's and Condat's methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradclip_core.forms import Passes, Reading
from gradclip_core.protocol import FLOAT64, Buffer, FloatArray
from gradclip_core.sets.base import View
from gradclip_core.sets.bracket import find_bracket
from gradclip_core.sets.exact import Bins, as_pair, as_units, exact_sum

SORTED = 1 << 15


@dataclass(frozen=True, slots=True)
class Threshold:
    """``high + low`` is τ but for 2^-106; ``above`` elements are larger."""

    high: float
    low: float
    above: int
    within: bool = False
    """Whether nothing has to be subtracted: without ``signed``, ``Σ |u| <= radius``, exactly."""


def threshold_in(view: View, radius: Fraction, *, signed: bool) -> Threshold:
    """``find_threshold`` of a scope."""
    return find_threshold(view.passes, view.buffers, view.reading, radius, signed=signed, largest=view.largest)


def find_threshold(
    passes: Passes,
    buffers: Sequence[Buffer],
    reading: Reading,
    radius: Fraction,
    *,
    signed: bool,
    largest: float = math.inf,
) -> Threshold:
    """The τ with ``Σ max(u - τ, 0) = radius > 0``, of |u| where not ``signed``. ``largest`` is the largest |u|.

    Without ``signed`` τ is not below 0: where ``Σ |u| <= radius`` it is 0.
    """
    target = as_units(radius)
    remaining = sum(buffer.length * buffer.rows for buffer in buffers)
    total, above, prefix, used = 0, 0, 0, 0
    if bracket := find_bracket(passes, buffers, reading, float(radius), largest, signed=signed):
        total, above, remaining = bracket.total, bracket.above, bracket.values.size
        buffers, reading = _copied(bracket.values)
    while remaining > SORTED and used < 64:
        tally = passes.tally(buffers, reading, signed=signed, prefix=prefix, used=used)
        bins = Bins(tally, prefix, used)
        k = _first_reaching(bins, total, above, target)
        total, above = total + bins.total(k), above + bins.count(k)
        if k == len(bins) or (above and total - target >= above * as_units(float(bins.largest[k]))):
            return _solved(total, target, above, signed)
        if bins.least[k] == bins.largest[k]:  # at the threshold itself: they are not above it
            return _solved(total, target, above, signed)
        prefix, used = (prefix << 16) | int(bins.places[k]), used + 16
        size, remaining = remaining, bins.count(k + 1) - bins.count(k)
        if SORTED < remaining <= size >> 4:  # the rest of the search is in a copy of the few
            low, high = _keys(prefix, used)
            buffers, reading = _copied(passes.gather(buffers, reading, signed=signed, low=low, high=high).values)
    low, high = _keys(prefix, used)
    rest = np.sort(passes.gather(buffers, reading, signed=signed, low=low, high=high).values)[::-1]
    inside = _how_many(rest, total, above, target)
    return _solved(total + exact_sum(rest[:inside]), target, above + inside, signed)


def _copied(values: FloatArray) -> tuple[list[Buffer], Reading]:
    return [Buffer(values.ctypes.data, values.size, FLOAT64, owner=values)], Reading()


def _keys(prefix: int, used: int) -> tuple[int, int]:
    """The least and the largest key that begin with the ``used`` bits of ``prefix``."""
    shift = 64 - used
    return prefix << shift, (prefix << shift) | ((1 << shift) - 1)


def _first_reaching(bins: Bins, total: int, above: int, target: int) -> int:
    """The first bin, from the top, at whose lower edge ``Σ max(u - edge, 0) >= radius``; bisection."""
    low, high = 0, len(bins)
    while low < high:
        middle = (low + high) // 2
        edge = as_units(float(bins.least[middle]))
        if total + bins.total(middle + 1) - (above + bins.count(middle + 1)) * edge >= target:
            high = middle
        else:
            low = middle + 1
    return low


def _how_many(rest: FloatArray, total: int, above: int, target: int) -> int:
    """How many of ``rest``, which falls, are above the threshold.

    The k-th is if ``Σ_(i<=k) u_i - k·u_k < radius``, and so are all before it: bisection, with the
    place that float64 sums point to tried first.
    """

    def is_above(k: int) -> bool:
        exact = total + exact_sum(rest[:k]) - (above + k) * as_units(float(rest[k - 1]))
        return exact < target

    low, high = 0, int(rest.size)
    guess = _guess(rest, total, above, target)
    for k in (guess, guess + 1):
        if low < k <= high:
            if is_above(k):
                low = k
            else:
                high = k - 1
    while low < high:
        middle = (low + high + 1) // 2
        if is_above(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _guess(rest: FloatArray, total: int, above: int, target: int) -> int:
    known, count = as_pair(total - target, 1)[0], np.arange(1, rest.size + 1) + above
    with np.errstate(all="ignore"):
        return int(np.count_nonzero(known + np.cumsum(rest) < count * rest))


def _solved(total: int, target: int, above: int, signed: bool) -> Threshold:
    if not above or (not signed and total <= target):
        return Threshold(0.0, 0.0, above, not signed)
    high, low = as_pair(total - target, above)
    return Threshold(high, low, above)


def threshold_of(values: FloatArray, radius: Fraction) -> tuple[float, float]:
    """The τ >= 0 with ``Σ max(v - τ, 0) = radius`` of a small vector, by sorting; 0 where ``Σ v <= radius``.

    ``values`` are not negative, such as norms. τ is ``high + low`` but for 2^-106, relatively.
    """
    falling = np.sort(np.asarray(values, np.float64).ravel())[::-1]
    target = as_units(radius)
    above = _how_many(falling, 0, 0, target)
    found = _solved(exact_sum(falling[:above]), target, above, signed=False)
    return found.high, found.low
