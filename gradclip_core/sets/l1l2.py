"""The L1,2 ball, that of the group lasso: the norms of groups shrink by one threshold, small groups vanish.

Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables",
https://doi.org/10.1111/j.1467-9868.2005.00532.x, for the norm; Sra 2012, "Fast projections onto mixed-norm
balls with applications", https://arxiv.org/abs/1204.1437, for the projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradclip_core import validate
from gradclip_core.axes import Axis, check_axis
from gradclip_core.forms import Form
from gradclip_core.reference import tree_sum
from gradclip_core.rules import Site
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.exact import exact_total
from gradclip_core.sets.squares import LOST, rounding, shaved, sum_of_norms_within
from gradclip_core.sets.threshold import threshold_of


@dataclass(frozen=True, slots=True)
class L1L2Ball(Set):
    """``{y : Σ_g ‖y_g‖₂ <= radius}``. The projection is sparse in groups: weak groups become 0 as a whole.

    ``y_g = g_g · max(‖g_g‖ - θ, 0)/‖g_g‖`` with the θ >= 0 for which ``Σ_g ‖y_g‖ = radius``: the norms
    of the groups are projected on the L1 ball.

    Parameters
    ----------
    radius : finite, > 0.
    axis : what the groups are. None: the arrays. Otherwise the units of each array, ``axis``
        naming the axes that a unit extends over, as in ``adaptive_clip``: ``"all_but_first"``,
        ``"all_but_last"``, an int, a tuple, or a function of path and shape. Arrays of at most
        one axis are one group.

    θ is computed without rounding from the norms of the groups, which are within some 2^-48 of the
    true ones, relatively; so are the norms of the result, relative to the largest. ``Σ_g ‖y_g‖ <= radius``
    holds in exact arithmetic for float32 and float64 (for 16-bit types but for their rounding): the
    radius aimed at is smaller by 2^-47 of it or so (2^-24 where narrower types than float64 take
    part) and by √n/2 smallest subnormals for each group of n. Zeros, where that leaves nothing, or the
    radius is less than 2^-1300 of the largest element. The same bits on every backend.
    """

    radius: float
    axis: Axis = None

    moments = ("y2", "d2", "dy")

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("L1L2Ball, radius", self.radius))
        check_axis(self.axis)

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return self.radius

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Set.unit_axes``."""
        return site.units(self.axis)

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``."""
        return view.near(math.frexp(self.radius)[1])

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        radius, error = view.exactly(self.radius), rounding(view)
        norms = np.sqrt(view.probe(view.form("same"), "y2")["y2"])
        found = exact_total(norms)
        if found <= radius * (1 - error) or (found <= radius * (1 + error) and sum_of_norms_within(view, radius)):
            return None
        # The 2-norm of the roundings of n elements is √n times one.
        roundings = sum(buffer.rows * (math.isqrt(buffer.length) + 1) for buffer in view.buffers)
        aim = shaved(view, self.radius, roundings)
        if aim <= LOST * Fraction(view.largest):
            return view.form("scale", 0.0)
        high, low = threshold_of(norms, aim)
        kept = np.maximum((norms - high) - low, 0.0)
        return view.form("scale", kept / np.where(norms > 0, norms, 1.0))

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · max_g ‖d_g‖``."""
        return Certificate.of(
            tree_sum(np.sqrt(found["y2"])) / view.scaled(self.radius) - 1,
            view.scaled(self.radius) * float(np.sqrt(np.max(found["d2"]))),
            tree_sum(found["dy"]),
            view.taken(float(np.sqrt(tree_sum(found["d2"])))),
        )
