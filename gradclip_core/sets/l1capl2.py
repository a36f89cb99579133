"""The intersection of an L1 and an L2 ball: a threshold is subtracted, and the rest shrunk by a factor.

Liu, Wang, Song 2020, "Projections onto the intersection of a one-norm ball or sphere and a two-norm ball
or sphere", https://arxiv.org/abs/1911.03946: the threshold is the root of a piecewise quadratic function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradclip_core import validate
from gradclip_core.forms import Form, from_keys, keys
from gradclip_core.reference import tree_sum
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.squares import LOST, norm_within, rounding, shaved
from gradclip_core.sets.threshold import threshold_in

_STEPS = 12
"""Readings after which every second one halves the bracket: the roots of tangent pieces come slowly then."""


@dataclass(frozen=True, slots=True)
class L1capL2(Set):
    """``{y : Σ |y_i| <= radius1, ‖y‖₂ <= radius2}``: sparse as the L1 ball's points, and short.

    ``y_i = c · sign(g_i) · max(|g_i| - τ, 0)``. Where one of the two bounds is enough, τ is 0, or c is 1;
    otherwise τ is the root of ``‖(|g| - τ)+‖₁ / ‖(|g| - τ)+‖₂ = radius1/radius2``, and c what then is left
    to shrink. With ``radius1 <= radius2`` this is the L1 ball, and with ``radius1 >= √n·radius2`` the
    L2 ball, of n elements.

    τ is the root of the quadratic of the right piece, computed in float64: the result is within some
    2^-46 of the projection, relative to the largest element. Both bounds hold in exact arithmetic for
    float32 and float64 (for 16-bit types but for their rounding): the radii aimed at are smaller by
    2^-47 of them or so (2^-24 where narrower types than float64 take part) and by n/2 and √n/2
    smallest subnormals. Zeros, where that leaves nothing, or a radius is less than 2^-1300 of the largest
    element. The same bits on every backend.
    """

    radius1: float
    radius2: float

    moments = ("abs", "y2", "d2", "dy", "max_d", "max_e")

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius1", validate.positive("L1capL2, radius1", self.radius1))
        object.__setattr__(self, "radius2", validate.positive("L1capL2, radius2", self.radius2))

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return min(self.radius1, self.radius2)

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``."""
        return view.near(math.frexp(self.finest)[1])

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        sums, squares, _ = _read(view, 0.0)
        if self._holds(view, sums, squares):
            return None
        aim1, aim2 = shaved(view, self.radius1), shaved(view, self.radius2, math.isqrt(view.size) + 1)
        if min(aim1, aim2) <= LOST * Fraction(view.largest):
            return view.form("scale", 0.0)
        # The lengths are compared by their ratio: no square of a radius underflows.
        ratio, slack = float(aim1 / aim2), 1 + float(rounding(view))
        if aim1 > aim2 and (aim1**2 >= view.size * aim2**2 or sums <= ratio * math.sqrt(squares) * slack):
            return _shrunk(view, 0.0, sums, squares, aim1, aim2)
        tau = threshold_in(view, aim1, signed=False)
        unit = view.probe(view.form("soft", tau.high, tau.low, 1.0 / float(aim1)), "y2")["y2"]
        if aim1 <= aim2 or ratio * math.sqrt(tree_sum(unit)) <= slack:
            return view.form("soft", tau.high, tau.low)
        root = _root(view, float((aim1 / aim2) ** 2), tau.high)
        sums, squares, _ = _read(view, root)
        return _shrunk(view, root, sums, squares, aim1, aim2)

    def _holds(self, view: View, sums: float, squares: float) -> bool:
        """Whether the scope is inside; exactly, where the sums in float64 do not tell."""
        radius1, radius2, error = view.exactly(self.radius1), view.exactly(self.radius2), rounding(view)
        norm = Fraction(math.sqrt(squares))
        if Fraction(sums) > radius1 * (1 + error) or norm > radius2 * (1 + error):
            return False
        if norm > radius2 * (1 - error) and not norm_within(view, radius2):
            return False
        if Fraction(sums) <= radius1 * (1 - error):
            return True
        return threshold_in(view, radius1, signed=False).within

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z>`` is bounded by the least of three that are attained where one bound, or both, is at work.

        With ``λ = 1/c - 1``: ``<d, z> = <d - λy, z> + λ<y, z> <= radius1·max|d - λy| + radius2·λ·‖y‖``.
        In the set ``‖z‖₁ <= √n·‖z‖₂`` and ``‖z‖₂ <= ‖z‖₁``: no radius counts for more than that.
        """
        radius1, radius2 = view.scaled(self.radius1), view.scaled(self.radius2)
        length, moved = (math.sqrt(tree_sum(found[name])) for name in ("y2", "d2"))
        excess = max(tree_sum(found["abs"]) / radius1, length / radius2) - 1
        radius1, radius2 = min(radius1, radius2 * math.sqrt(view.size)), min(radius1, radius2)
        bounds = (
            radius1 * float(np.max(found["max_d"])),
            radius2 * moved,
            radius1 * float(np.max(found["max_e"])) + radius2 * (form.e - 1) * length,
        )
        return Certificate.of(excess, min(bounds), tree_sum(found["dy"]), view.taken(moved))


def _read(view: View, tau: float) -> tuple[float, float, float]:
    """Of ``(|u| - τ)+`` the sum, the sum of squares, and how many are not 0."""
    found = view.probe(view.form("soft", tau), "abs", "y2", "count")
    return tree_sum(found["abs"]), tree_sum(found["y2"]), tree_sum(found["count"])


def _shrunk(view: View, tau: float, sums: float, squares: float, aim1: Fraction, aim2: Fraction) -> Form:
    """The rest after τ, shrunk into both balls."""
    factor = min(float(aim1) / sums, float(aim2) / math.sqrt(squares), 1.0)
    return view.form("soft", tau, 0.0, factor, e=1.0 / factor)


def _root(view: View, q: float, beyond: float) -> float:
    """The τ with ``‖(|u| - τ)+‖₁² = q·‖(|u| - τ)+‖₂²``; it is below ``beyond``, which has elements above it.

    For the k elements above some τ, with their mean m and ``V = Σ (|u| - m)²``, the quadratic has the root
    ``m - √(q·V/(k·(k - q)))``. Seen from the left of the root of the whole, it lies between: more
    elements count, with the wrong sign, than should. So the left end rises to the root.
    """
    low, high, tau, before, of_piece = 0.0, beyond, 0.0, -1.0, False
    for step in range(_STEPS + 140):
        sums, squares, count = _read(view, tau)
        if of_piece and count == before:  # the root of the piece that it lies on
            break
        if count > q and sums * sums >= q * squares:
            low = tau
        else:
            high = tau
        mean = sums / count if count else 0.0
        spread = max(squares - mean * sums, 0.0)
        found = tau + (mean - math.sqrt(q * spread / (count * (count - q)))) if count > q else low
        of_piece, before = not (step >= _STEPS and step % 2), count
        if not of_piece:
            found = _between(low, high)
        elif not low < found < high:
            found = low
        if found == tau:
            break
        tau = found
    return tau


def _between(low: float, high: float) -> float:
    """The number half way, counted in float64 numbers, so that 64 of them leave none between."""
    ends = keys(np.array([low, high]))
    middle = ends[0] + (ends[1] - ends[0]) // np.uint64(2)
    return float(from_keys(np.array([middle], np.uint64))[0])
