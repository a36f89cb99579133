"""The sets whose projection is an older rule by another name: L2 ball, Linf ball, box.

Radial clipping to an L2 norm *is* the projection on the ball, and clipping by value that on a box:
``Project`` makes these rules of them, so the bits are the same, and so are the devices that serve.
As parts of an ``Intersection`` they decide as all other sets do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.forms import Form
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.given import given

if TYPE_CHECKING:
    from gradclip_core.rules import Rule


@dataclass(frozen=True, slots=True)
class L2Ball(Set):
    """``{y : ‖y‖₂ <= radius}``: ``y = g · min(1, radius/‖g‖)``, as ``clip_by_global_norm``, to the bit.

    Exact, on every backend and device. With the scopes "group" and "array" it is
    ``clip_by_group_norm`` and ``clip_by_norm``.
    """

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("L2Ball, radius", self.radius))

    def as_rule(self, scope: str, groups: object) -> Rule:
        """See ``Set.as_rule``."""
        from gradclip_core.rules import ArrayNorm, GlobalNorm, GroupNorm

        if scope == "group":
            return GroupNorm(self.radius, groups)  # type: ignore[arg-type]  # checked by GroupNorm
        return GlobalNorm(self.radius) if scope == "global" else ArrayNorm(self.radius)

    moments = ("y2", "dy", "d2")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        radius = view.scaled(self.radius)
        if view.norm <= radius:
            return None
        return view.form("scale", radius / view.norm * (1 - 2.0**-48))

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · ‖d‖``."""
        radius = view.scaled(self.radius)
        length, moved = (math.sqrt(float(np.sum(found[name]))) for name in ("y2", "d2"))
        return Certificate.of(length / radius - 1, radius * moved, float(np.sum(found["dy"])), view.original(moved))


@dataclass(frozen=True, slots=True)
class LinfBall(Set):
    """``{y : max |y_i| <= radius}``: every element is clamped, as ``clip_by_value(grads, radius)``, to the bit.

    Exact, on every backend and device; the same for every scope.
    """

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("LinfBall, radius", self.radius))

    def as_rule(self, scope: str, groups: object) -> Rule:
        """See ``Set.as_rule``."""
        from gradclip_core.rules import Value

        return Value(self.radius)

    moments = ("max_y", "dy", "d2")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        radius = view.scaled(self.radius)
        return None if view.largest <= radius else view.form("clamp", radius)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · Σ |d_i|``, which is ``<d, y>``: d_i is 0 or has the sign of y_i = ±radius."""
        excess = float(np.max(found["max_y"], initial=0.0)) / view.scaled(self.radius) - 1
        product = float(np.sum(found["dy"]))
        return Certificate.of(excess, product, product, view.original(math.sqrt(float(np.sum(found["d2"])))))


@dataclass(frozen=True, slots=True)
class Box(Set):
    """``{y : low <= y_i <= high}``: every element is clamped, as ``clip_by_value(grads, (low, high))``, to the bit.

    The bounds are numbers, for all elements; one of the two may be infinite.
    Exact, on every backend and device; the same for every scope.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        cure = "Pass two numbers, low <= high, for all elements; one may be infinite: Box(-math.inf, 1.0)"
        bounds = [validate.number(f"Box, {name}", getattr(self, name), cure) for name in ("low", "high")]
        try:
            low, high = validate.interval((bounds[0], bounds[1]))
        except InvalidArgumentError as error:
            asked = f"Box({show(self.low)}, {show(self.high)})"
            raise InvalidArgumentError(asked, error.seen, cure) from error
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def as_rule(self, scope: str, groups: object) -> Rule:
        """See ``Set.as_rule``."""
        from gradclip_core.rules import Value

        return Value((self.low, self.high))

    moments = ("dy", "d2")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        low, high = view.scaled(self.low), view.scaled(self.high)
        before = [view.values(i) for i in range(len(view.buffers))]
        after = [np.clip(u, low, high) for u in before]
        if all(np.array_equal(u, y) for u, y in zip(before, after, strict=True)):
            return None
        return given(view, after)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z>`` is ``<d, y>``: d_i is 0, or y_i is the bound on the side of its sign."""
        product = float(np.sum(found["dy"]))
        return Certificate.of(0.0, product, product, view.original(math.sqrt(float(np.sum(found["d2"])))))
