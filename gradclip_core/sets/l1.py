"""The L1 ball and the simplex: a threshold is subtracted, and what is below it becomes 0.

Duchi, Shalev-Shwartz, Singer, Chandra 2008, "Efficient projections onto the l1-ball for learning in
high dimensions", https://doi.org/10.1145/1390156.1390191, figure 1 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError
from gradclip_core.forms import Form
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.threshold import threshold_in

_LOST = Fraction(1, 1 << 1000)
"""A length of which float64 would not hold the parts. ``Set.finest`` sees to it that few are shorter."""


@dataclass(frozen=True, slots=True)
class L1Ball(Set):
    """``{y : Σ |y_i| <= radius}``. The projection is sparse: small elements become 0.

    ``y_i = sign(g_i) · max(|g_i| - τ, 0)`` with the τ >= 0 for which ``Σ |y_i| = radius``.

    Exact: τ is computed without rounding, and ``Σ |y_i| <= radius`` holds in exact arithmetic for
    float32 and float64 (for 16-bit types but for their rounding). For that the radius aimed at is
    smaller by 2^-51 of it (2^-24 where narrower types than float64 take part) and by half the
    smallest subnormal for each element; each y_i is within one rounding of the projection on that
    ball. Zeros, where the radius is less than 2^-1400 of the largest element. The same bits on
    every backend.
    """

    radius: float

    order = 1.0
    moments = ("abs", "dy", "max_d", "d2")

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("L1Ball, radius", self.radius))

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return self.radius

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        radius, norm = view.exactly(self.radius), Fraction(view.norm)
        if norm <= radius * Fraction(1 - 2.0**-40):
            return None
        near = norm <= radius * Fraction(1 + 2.0**-40)
        # Only the exact sum tells whether a scope at the boundary is inside.
        if near and threshold_in(view, radius, signed=False).within:
            return None
        aim = view.aim(self.radius)
        if aim <= _LOST:
            return view.form("scale", 0.0)
        tau = threshold_in(view, aim, signed=False)
        return view.form("soft", tau.high, tau.low)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · max |d_i|``."""
        radius = view.scaled(self.radius)
        return Certificate.of(
            view.original(float(np.sum(found["abs"]))) / self.radius - 1,
            radius * float(np.max(found["max_d"], initial=0.0)),
            float(np.sum(found["dy"])),
            view.original(float(np.sqrt(np.sum(found["d2"])))),
        )


@dataclass(frozen=True, slots=True)
class Simplex(Set):
    """``{y : y_i >= 0, Σ y_i = total}``, the probability simplex where ``total`` is 1.

    ``y_i = max(g_i - τ, 0)`` with the τ for which ``Σ y_i = total``.

    Exact: τ is computed without rounding, and each y_i is within one rounding of the projection's.
    A g is taken to be inside already where no element is negative and their sum is ``total`` to
    the roundoff of the storage type; it has to be a tolerance, because rounded numbers add up to
    ``total`` by chance alone. The same bits on every backend.
    """

    total: float = 1.0

    order = 1.0
    moments = ("sum", "dy", "top_d", "d2", "low_y", "abs")

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", validate.positive("Simplex, total", self.total))

    @property
    def extent(self) -> float:
        """See ``Set.extent``."""
        return self.total

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return self.total

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if view.size == 0:
            raise InvalidArgumentError(
                f"Simplex(total={self.total:g})",
                "a scope without elements has no point whose sum is that",
                "Leave empty arrays out, or choose a scope that has elements",
            )
        if view.exactly(self.total) <= _LOST:
            raise InvalidArgumentError(
                f"Simplex(total={self.total:g})",
                f"the largest element, {view.original(view.largest):g}, is more than 2^1400 times that",
                "Scale the gradients or the total: float64 cannot hold both at once",
            )
        if self._holds(view):
            return None
        tau = threshold_in(view, view.exactly(self.total), signed=True)
        return view.form("shift", tau.high, tau.low)

    def _holds(self, view: View) -> bool:
        """Whether the scope is inside. Without a negative element the norm is the sum, and mostly tells enough."""
        total, tolerance = view.scaled(self.total), self._tolerance(view)
        if abs(view.norm - total) > tolerance:
            return False
        seen = view.probe(view.form("same"), "sum", "low_y")
        off = abs(float(np.sum(seen["sum"])) - total)
        return off <= tolerance and float(np.min(seen["low_y"], initial=0.0)) >= 0

    def _tolerance(self, view: View) -> float:
        """What rounding each element of a point of the simplex can change of its sum, and the sum's own error."""
        roundoff = max((dtype.roundoff for dtype in view.dtypes), default=0.0)
        smallest = max((dtype.smallest for dtype in view.dtypes), default=0.0)
        return view.scaled(self.total) * (2 * roundoff + 2.0**-46) + view.size * view.scaled(smallest)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = total · max d_i``."""
        total = view.scaled(self.total)
        negative = max(0.0, -float(np.min(found["low_y"], initial=0.0)))
        return Certificate.of(
            max(abs(float(np.sum(found["sum"])) / total - 1), negative / total),
            total * float(np.max(found["top_d"])),
            float(np.sum(found["dy"])),
            view.original(float(np.sqrt(np.sum(found["d2"])))),
        )
