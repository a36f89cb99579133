"""The levels of an L1,inf projection: Newton's method on all levels and θ at once.

``h_g(μ) = Σ_i (|u_i| - μ)+`` is convex, falls, and is made of lines; ``-h_g'`` is the number k of
elements above μ. Wanted are θ and the μ_g with ``h_g(μ_g) = θ`` (or μ_g = 0 where ``h_g(0) <= θ``)
and ``Σ μ_g = radius``. A reading of h and k at some levels gives a tangent to each h_g; for tangents
the problem is a weighted simplex, solved by sorting. A tangent is nowhere above its h_g, so the θ of
the tangents is never above the true one, and the next reading can only raise it: θ rises until no
count changes, and then the tangents are the pieces on which the solution lies.

A reading is one pass. The first is at levels in proportion to the groups' largest elements; two to ten
did in all that was tried, heavy tails and what is slow for Michelot's method among it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from gradclip_core.protocol import FloatArray
from gradclip_core.reference import tree_sum
from gradclip_core.sets.exact import exact_total

READINGS = 200
"""More than ever needed: what is left then is feasible, and the certificate says how good."""

Read = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Levels -> for each group ``Σ (|u_i| - level)+`` and how many elements are above the level."""


def find_levels(read: Read, largest: FloatArray, aim: Fraction) -> FloatArray:
    """The μ of each group, whose exact sum is at most ``aim``. ``largest`` are those of the groups, Σ > aim."""
    target = float(aim)
    # At least one element stays above each level, so that every tangent falls.
    highest = np.nextafter(largest, 0.0)
    levels = np.minimum(largest * (target / tree_sum(largest)), highest)
    theta, counts, stalls = 0.0, np.full(largest.size, -1.0), 0
    for _ in range(READINGS):
        before = counts
        excess, counts = read(levels)
        if np.array_equal(counts, before) or stalls == 2:
            break
        new, levels = _solve(excess + counts * levels, counts, target)
        levels = np.minimum(levels, highest)
        stalls += 0 < new <= theta  # rounding alone moves it now
        theta = new
    return _at_most(levels, counts, aim)


def _solve(tops: FloatArray, counts: FloatArray, target: float) -> tuple[float, FloatArray]:
    """θ, and the ``μ_g = max((top_g - θ)/k_g, 0)`` with the sum ``target``, for lines through top_g of slope -k_g.

    Computed from the distances to the highest top, so that little cancels where θ is near it.
    """
    used = np.flatnonzero(counts > 0)
    order = used[np.argsort(-tops[used], kind="stable")]
    below, shares = tops[order[0]] - tops[order], 1.0 / counts[order]
    above = np.cumsum(shares) * below < target + np.cumsum(below * shares)
    kept = max(1, int(np.count_nonzero(above)))
    below, shares = below[:kept], shares[:kept]
    drop = min((target + tree_sum(below * shares)) / tree_sum(shares), float(tops[order[0]]))
    levels = np.zeros_like(tops)
    levels[order[:kept]] = np.maximum((drop - below) * shares, 0.0)
    return float(tops[order[0]]) - drop, levels


def _at_most(levels: FloatArray, counts: FloatArray, aim: Fraction) -> FloatArray:
    """Levels whose sum, without rounding, is at most ``aim``: moved along the tangents, and then shrunk by ulps."""
    positive = levels > 0
    if positive.any():
        shares = np.where(positive, 1.0 / np.where(counts > 0, counts, 1.0), 0.0)
        missing = float(aim - exact_total(levels))
        levels = np.where(positive, np.maximum(levels + shares * (missing / tree_sum(shares)), 0.0), 0.0)
    reached = exact_total(levels)
    return levels if reached <= aim else levels * (float(aim / reached) * (1 - 2.0**-51))
