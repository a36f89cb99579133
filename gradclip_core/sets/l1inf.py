"""The L1,inf ball: each group is clamped at a level of its own, weak groups vanish.

Quattoni, Carreras, Collins, Darrell 2009, "An efficient projection for l1,infinity regularization",
https://doi.org/10.1145/1553374.1553484, section 3, for the conditions; Perez, Condat, Barlaud 2023,
"Near-linear time projection onto the l1,infinity ball", https://arxiv.org/abs/2307.09836. How the
levels are found is said in ``levels.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradclip_core import validate
from gradclip_core.axes import Axis, check_axis
from gradclip_core.forms import Form
from gradclip_core.protocol import FloatArray
from gradclip_core.reference import tree_sum
from gradclip_core.rules import Site
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.exact import exact_total
from gradclip_core.sets.levels import find_levels

_LOST = Fraction(1, 1 << 1300)
"""A radius, relative to the largest element, that is none in the units in which that is 2^400."""


@dataclass(frozen=True, slots=True)
class L1InfBall(Set):
    """``{y : Σ_g max_{i in g} |y_i| <= radius}``. Sparse in groups; within a group the largest are made equal.

    ``y_i = clamp(g_i, -μ_g, μ_g)``: there is a θ >= 0 such that every group with ``Σ |g_i| > θ`` loses
    ``Σ (|g_i| - μ_g)+ = θ``, all other groups become 0, and ``Σ_g μ_g = radius``.

    Parameters
    ----------
    radius : finite, > 0.
    axis : what the groups are, as in ``L1L2Ball``: None for the arrays, or the axes that the units
        of each array extend over.

    The levels μ solve the linear equations of the elements that are above them, in float64: within
    some 2^-46 of the largest 1-norm of a group, divided by the number of the elements above the level.
    ``Σ_g max |y_i| <= radius`` holds in exact arithmetic for float32 and float64 (for 16-bit types
    but for their rounding): the radius aimed at is smaller by 2^-51 of it (2^-24 where narrower types
    than float64 take part) and by half the smallest subnormal for each group. Zeros, where the radius
    is less than 2^-1300 of the largest element. The same bits on every backend.
    """

    radius: float
    axis: Axis = None

    moments = ("max_y", "abs_d", "dy", "d2")

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("L1InfBall, radius", self.radius))
        check_axis(self.axis)

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return self.radius

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Set.unit_axes``."""
        return site.units(self.axis)

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        largest = view.probe(view.form("same"), "max_y")["max_y"]
        if exact_total(largest) <= view.exactly(self.radius):
            return None
        aim = view.aim(self.radius, view.segments)
        if aim <= _LOST * Fraction(view.largest):
            return view.form("clamp", 0.0)

        def read(levels: FloatArray) -> tuple[FloatArray, FloatArray]:
            found = view.probe(view.form("soft", levels), "abs", "count")
            return found["abs"], found["count"]

        return view.form("clamp", find_levels(read, largest, aim))

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · max_g Σ |d_i|``."""
        return Certificate.of(
            view.original(tree_sum(found["max_y"])) / self.radius - 1,
            view.scaled(self.radius) * float(np.max(found["abs_d"])),
            tree_sum(found["dy"]),
            view.original(float(np.sqrt(tree_sum(found["d2"])))),
        )
