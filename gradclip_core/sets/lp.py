"""The Lp ball, for p between the L1 ball's 1 and the Linf ball's infinity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradclip_core import validate
from gradclip_core.errors import GradClipError, InvalidArgumentError, show
from gradclip_core.forms import Form
from gradclip_core.precision.factors import SHAVE_GENERAL
from gradclip_core.protocol import FloatArray
from gradclip_core.reference import tree_sum
from gradclip_core.sets.balls import L2Ball, LinfBall
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.given import Given, as_written, given
from gradclip_core.sets.multiplier import find_multiplier

if TYPE_CHECKING:
    from gradclip_core.rules import Rule

_SLACK = 2.0**-42
"""How much less than what is aimed at the norm may be, relatively."""
_LARGEST_P = 1024.0
"""Up to here Σ (|y|/unit)^p is within float64's range, for a unit that is the radius but for a factor √2."""
_FROM_P, _TO_P, _FAR = 1 + 2.0**-5, 256.0, 2.0**300
"""The p, and the largest element in radii, up to which the sums of a pass are in range, and λ a float64 fine enough."""


@dataclass(frozen=True, slots=True)
class LpBall(Set):
    """``{y : (Σ |y_i|^p)^(1/p) <= radius}`` for p > 1. Between 1 and 2 small elements shrink most, above 2 large ones.

    ``y_i = ±z_i`` where ``z_i + λ·p·z_i^(p-1) = |g_i|``, with the λ > 0 for which
    ``Σ z_i^p = radius^p``. (Won, Lange, Xu 2023, "A unified analysis of convex and non-convex
    lp-ball projection problems", https://doi.org/10.1007/s11590-022-01919-0.)

    ``p=2`` and ``p=inf`` are ``L2Ball`` and ``LinfBall``, to the bit; any other p is at most 1024. Otherwise
    approximate, since ``pow`` differs from one C library to another: the result is the projection on a
    ball whose radius is smaller by at most 2^-37 (2^-23 beside float32), so that it is within the radius as
    ``global_norm`` measures it, and projecting twice changes nothing in float32 and float64.

    Gradients of any finite length are served. For p below 1 + 2^-5 or above 256, or elements larger than
    2^300 radii, it is computed as a whole: on float64 copies, some ten of them, and not by threads.
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
        if _LARGEST_P < p < math.inf:
            seen = f"above {_LARGEST_P:g} the powers of elements leave float64's range"
            near = "Pass p=inf, or LinfBall(radius): of n elements, no norm differs from that one by more than n^(1/p)"
            raise InvalidArgumentError(f"LpBall, p={show(self.p)}", seen, near)
        object.__setattr__(self, "p", p)

    @property
    def order(self) -> float:  # type: ignore[override]  # of each ball its own
        """See ``Set.order``."""
        return self.p

    def as_rule(self, scope: str, groups: object) -> Rule | None:
        """See ``Set.as_rule``."""
        plain = self.plain
        return None if plain is self else plain.as_rule(scope, groups)

    @property
    def plain(self) -> Set:
        """The set itself, or the one that it is another name of."""
        if self.p == 2:
            return L2Ball(self.radius)
        return LinfBall(self.radius) if self.p == math.inf else self

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``. |y|^p has to be in range for p > 2, |u - y|^(p/(p-1)) for p < 2."""
        if self.p <= 2 and not self._is_extreme(view):
            return view
        fraction, exponent = math.frexp(self.radius)
        exponent -= fraction < math.sqrt(0.5)
        with np.errstate(all="ignore"):  # beyond float64's range they are infinite, which is as much as needed
            norm, largest = np.ldexp([view.norm, view.largest], view.reading.exponent - exponent).tolist()
        return replace(view, reading=replace(view.reading, exponent=exponent), norm=norm, largest=largest)

    def _is_extreme(self, view: View) -> bool:
        return not _FROM_P <= self.p <= _TO_P or view.largest > _FAR * view.scaled(self.radius)

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if view.norm <= view.scaled(self.radius):
            return None
        feels = math.ceil(view.size ** (1 / self.p)) + 1
        aim = float(view.aim(self.radius, feels)) * (1 - SHAVE_GENERAL)
        if self._is_extreme(view):
            return self._as_a_whole(view, aim)
        if aim <= 0:
            return view.form("scale", 0.0, e=self.p)
        a, norm = _multiplier(view, self.p, aim)
        self._must_be_within(norm, aim)
        # The certificate takes powers of g - y, whose dual norm is λ·p·‖y‖^(p-1): they have to be in range.
        if abs(math.log2(a) + (self.p - 1) * math.log2(aim)) * self.p / (self.p - 1) > 900:
            return self._as_a_whole(view, aim)
        return view.form("power", a, self.p, e=self.p)

    def _as_a_whole(self, view: View, aim: float) -> Form:
        whole = replace(view, reading=replace(view.reading, exponent=0))
        before = [whole.values(i) for i in range(len(view.buffers))]
        u = np.concatenate([part.ravel() for part in before])
        magnitude = np.abs(u)
        z = np.zeros_like(u)
        if aim > 0:
            some = magnitude > 0
            z[some] = _shrunk(magnitude[some], self.p, aim, view.reading.exponent)
            self._must_be_within(_norm(z, self.p), aim)
        ends = np.cumsum([part.size for part in before])[:-1]
        after = [y.reshape(part.shape) for y, part in zip(np.split(np.copysign(z, u), ends), before, strict=True)]
        written = np.concatenate([as_written(view, i, y).ravel() for i, y in enumerate(after)])
        certificate = self._certificate(u, np.ldexp(written, view.reading.exponent))
        return replace(given(view, after, lambda found: certificate), e=self.p)

    def _must_be_within(self, norm: float, aim: float) -> None:
        if not norm <= aim * (1 + 2.0**-40):
            raise GradClipError(
                f"LpBall(radius={self.radius:g}, p={self.p:g})",
                f"the search for the nearest point ended at {norm / aim:.3g} times the radius",
                "Clip by global norm first, as in Chain(GlobalNorm(c), Project(LpBall(radius, p)))",
            )

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · ‖d‖_q`` with ``1/p + 1/q = 1``."""
        if isinstance(form, Given):
            return form.certificate(found)
        radius = view.scaled(self.radius)
        return Certificate.of(
            view.original(tree_sum(found["pow_y"]) ** (1 / self.p)) / self.radius - 1,
            radius * tree_sum(found["pow_d"]) ** (1 - 1 / self.p),
            tree_sum(found["dy"]),
            view.original(math.sqrt(tree_sum(found["d2"]))),
        )

    def _certificate(self, u: FloatArray, y: FloatArray) -> Certificate:
        """That of any two points, whatever their lengths."""
        d = u - y
        top = float(np.max(np.abs(d), initial=0.0))
        d, y = d / (top or 1.0), y / self.radius
        support = _norm(d, self.p / (self.p - 1))
        return Certificate.of(_norm(y, self.p) - 1, support, _sum(d * y), top * math.sqrt(_sum(d * d)))


def _sum(terms: FloatArray) -> float:
    return float(tree_sum(terms))


def _norm(vector: FloatArray, p: float) -> float:
    """``‖vector‖_p``, where no power of its elements has to be in range."""
    magnitude = np.abs(vector)
    top = float(np.max(magnitude, initial=0.0))
    return top * _sum((magnitude / top) ** p) ** (1 / p) if top else 0.0


def _multiplier(view: View, p: float, aim: float) -> tuple[float, float]:
    """An a = λ·p with ``aim·(1 - 2^-42) <= ‖z‖_p <= aim``, and that norm.

    ``d‖z‖_p/da = -‖z‖_p^(1-p) · Σ z^(2p-2)/(1 + a·(p-1)·z^(p-2))``.
    """
    norms: dict[float, float] = {}

    def read(a: float) -> tuple[float, float]:
        found = view.probe(view.form("power", a, p, e=p), "pow_y", "steep")
        power, steep = tree_sum(found["pow_y"]), tree_sum(found["steep"])
        norms[a] = power ** (1 / p)
        return norms[a], power / steep if steep > 0 else math.inf

    # The largest z is at most the norm, and at least an n-th of its p-th power: a = (|u| - z)/z^(p-1) there.
    least, most = aim * view.size ** (-1 / p) * (1 - 2.0**-40), min(aim, view.largest)
    low = (view.largest - most) / most ** (p - 1) * (1 - 2.0**-40)
    high = (view.largest - min(least, most)) / least ** (p - 1) * (1 + 2.0**-40)
    a = find_multiplier(read, low, low, high, aim, _SLACK)
    if a not in norms:
        read(a)
    return a, norms[a]


# ---- as a whole ---------------------------------------------------------------------------------


def _shrunk(magnitude: FloatArray, p: float, aim: float, exponent: int) -> FloatArray:
    """The z of magnitudes > 0, in units of 2^exponent, with ``‖z‖_p`` but for 2^-42 what is aimed at, in those units.

    The unknown is the largest z, of the largest magnitude, in place of λ. It is between ``aim·n^(-1/p)`` and
    ``aim``, whatever p and the gradient are, and the others follow from differences between magnitudes alone.
    """
    top = float(magnitude.max())
    logs = _logs(magnitude, top)
    fraction, of = math.frexp(top)
    with np.errstate(all="ignore"):
        high = min(aim, float(np.ldexp(fraction, of - exponent)))
    low, wanted = aim * magnitude.size ** (-1 / p) * (1 - 2.0**-40), aim * (1 - _SLACK / 2)
    s, z = high, np.zeros(0)
    with np.errstate(all="ignore"):
        for _ in range(200):
            share = min(1.0, math.ldexp(s, exponent - of) / fraction)
            fall, turn = _falls(logs, p - 1, share)
            powers = np.exp(-p * fall)
            total = _sum(powers)
            norm, steep = s * total ** (1 / p), _sum(powers * turn) / total
            step = (wanted / norm - 1) / steep
            # Within the last digits of s, the rest is linear.
            z = np.maximum(s * np.exp(-fall) * (1 + turn * step), 0.0)
            low, high = (s, high) if norm < wanted else (low, s)
            if abs(norm / wanted - 1) <= _SLACK / 8 or abs(step) <= 2.0**-50:
                break
            following = s * (1 + step)
            if not low < following < high:
                following = 0.5 * (low + high)
            if not low < following < high:
                break
            s = following
    return z


def _logs(magnitude: FloatArray, top: float) -> FloatArray:
    """``log(magnitude/top)``: near 0 it is as precise as their difference, and no quotient leaves float64's range."""
    near = magnitude >= top / 2
    difference = np.where(near, top - magnitude, 0.0) / top
    return np.where(near, np.log1p(-difference), np.log(magnitude) - math.log(top))


def _falls(logs: FloatArray, power: float, share: float) -> tuple[FloatArray, FloatArray]:
    """``log(s/z)`` for each z beside the largest one s, and what ``d log z/d log s`` is.

    With ``share = s/top`` and L for the fall, ``(1 - share)·exp(-power·L) + share·exp(-L) = magnitude/top``. The
    log of the left side is convex and falls, by power or by 1 at most: from below, Newton's steps do not pass it.
    """
    rest = 1 - share
    log_rest, log_share = (math.log(part) if part else -math.inf for part in (rest, share))
    near, fall = logs > -0.7, -logs / (rest * power + share)
    for _ in range(100):
        slow, fast = log_rest - power * fall, log_share - fall
        weight = 1 / (1 + np.exp(fast - slow))
        gently = np.log1p(rest * np.expm1(-power * fall) + share * np.expm1(-fall))
        step = (np.where(near, gently, np.logaddexp(slow, fast)) - logs) / (weight * power + (1 - weight))
        fall = np.where(step > 0, fall + step, fall)
        if not bool((step > 2.0**-51 * fall).any()):
            break
    if not share:
        return fall, np.ones_like(fall)
    # d fall/d log s = share·(e^-L - e^(-power·L)) / ((1 - share)·power·e^(-power·L) + share·e^-L).
    apart = np.exp(-abs(power - 1) * fall)
    if power < 1:
        return fall, 1 - share * (apart - 1) / (rest * power + share * apart)
    return fall, 1 - share * (1 - apart) / (rest * power * apart + share)
