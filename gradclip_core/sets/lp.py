"""The Lp ball, for p between the L1 ball's 1 and the Linf ball's infinity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.forms import Form
from gradclip_core.precision.factors import SHAVE_GENERAL
from gradclip_core.reference import tree_sum
from gradclip_core.sets.balls import L2Ball, LinfBall
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.multiplier import find_multiplier

if TYPE_CHECKING:
    from gradclip_core.rules import Rule


@dataclass(frozen=True, slots=True)
class LpBall(Set):
    """``{y : (Σ |y_i|^p)^(1/p) <= radius}`` for p > 1. Between 1 and 2 small elements shrink most, above 2 large ones.

    ``y_i = ±z_i`` where ``z_i + λ·p·z_i^(p-1) = |g_i|``, with the λ > 0 for which
    ``Σ z_i^p = radius^p``. (Won, Lange, Xu 2023, "A unified analysis of convex and non-convex
    lp-ball projection problems", https://doi.org/10.1007/s11590-022-01919-0.)

    ``p=2`` and ``p=inf`` are ``L2Ball`` and ``LinfBall``, to the bit. Otherwise approximate: the
    p-norm and λ are known to 1e-12, relatively, since ``pow`` differs from one C library to
    another; the result is aimed that much inside, so that it is within the radius as
    ``global_norm`` measures it, and projecting twice changes nothing in float32 and float64.
    """

    radius: float
    p: float

    normalised = True
    moments = ("pow_y", "pow_d", "dy", "d2")

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("LpBall, radius", self.radius))
        cure = "Pass p > 1; for p = 1 there is L1Ball(radius)"
        p = validate.number("LpBall, p", self.p, cure)
        if not p > 1:
            seen = "it is NaN" if math.isnan(p) else "below 1 the set is not convex, and has no one nearest point"
            seen = "at 1 the projection is another, sparse one" if p == 1 else seen
            raise InvalidArgumentError(f"LpBall, p={show(self.p)}", seen, cure)
        object.__setattr__(self, "p", p)

    @property
    def order(self) -> float:  # type: ignore[override]  # of each ball its own
        """See ``Set.order``."""
        return self.p

    def as_rule(self, scope: str, groups: object) -> Rule | None:
        """See ``Set.as_rule``."""
        if self.p == 2:
            return L2Ball(self.radius).as_rule(scope, groups)
        return LinfBall(self.radius).as_rule(scope, groups) if self.p == math.inf else None

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if view.norm <= view.scaled(self.radius):
            return None
        feels = math.ceil(view.size ** (1 / self.p)) + 1
        aim = float(view.aim(self.radius, feels)) * (1 - SHAVE_GENERAL)
        if aim <= 0:
            return view.form("scale", 0.0, e=self.p)
        # With q = p/(p - 1): z <= (|u|/a)^(q/p), whose p-norm is (Σ |u|^q)^(1/p) · a^(-q/p).
        dual = tree_sum(view.probe(view.form("scale", 0.0, e=self.p), "pow_d")["pow_d"]) ** (1 - 1 / self.p)
        try:
            beyond = dual / aim ** (self.p - 1)
        except (OverflowError, ZeroDivisionError):
            beyond = math.inf
        if not beyond < 2.0**1000:
            raise InvalidArgumentError(
                f"LpBall(radius={self.radius:g}, p={self.p:g})",
                f"the largest element is {view.largest / view.scaled(self.radius):.1e} radii, and the power "
                f"{self.p - 1:g} of that is beyond float64",
                "Clip by global norm first, as in Chain(GlobalNorm(c), Project(LpBall(radius, p)))",
            )
        return view.form("power", _multiplier(view, self.p, aim, beyond), self.p, e=self.p)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · ‖d‖_q`` with ``1/p + 1/q = 1``."""
        radius = view.scaled(self.radius)
        return Certificate.of(
            view.original(tree_sum(found["pow_y"]) ** (1 / self.p)) / self.radius - 1,
            radius * tree_sum(found["pow_d"]) ** (1 - 1 / self.p),
            tree_sum(found["dy"]),
            view.original(math.sqrt(tree_sum(found["d2"]))),
        )


def _multiplier(view: View, p: float, aim: float, beyond: float) -> float:
    """An a = λ·p with ``aim·(1 - 2^-42) <= ‖z‖_p <= aim``.

    ``d‖z‖_p/da = -‖z‖_p^(1-p) · Σ z^(2p-2)/(1 + a·(p-1)·z^(p-2))``.
    """

    def read(a: float) -> tuple[float, float]:
        found = view.probe(view.form("power", a, p, e=p), "pow_y", "steep")
        power, steep = tree_sum(found["pow_y"]), tree_sum(found["steep"])
        return power ** (1 / p), power / steep if steep > 0 else math.inf

    return find_multiplier(read, 0.0, 0.0, beyond * (1 + 2.0**-40), aim, 2.0**-42)
