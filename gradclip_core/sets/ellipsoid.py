"""Weighted L2 balls: the nearest point, and the radial form beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError
from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import Buffer
from gradclip_core.reference import tree_sum
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.multiplier import find_multiplier
from gradclip_core.sets.normals import apart, outline, owned, widened
from gradclip_core.sets.squares import LOST, rounding, shaved
from gradclip_core.tree import kept

# Weights within these need no units of their own.
_LEAST, _MOST = 2.0**-100, 2.0**100
_SPAN = 2.0**200


@dataclass(frozen=True, slots=True)
class _Weights:
    """Those beside a scope, divided by ``unit``²: a power of two, 1 for ordinary weights."""

    companions: list[Buffer]
    unit: float
    least: float
    top: float


@dataclass(frozen=True, slots=True, repr=False)
class _Weighted(Set):
    """A weighted L2 ball. ``weights`` is only read, and not copied."""

    weights: Any = field(compare=False)
    radius: float

    moments = ("wy2", "dy", "d2_w", "d2")

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "weights", kept(self.weights))
        object.__setattr__(self, "radius", validate.positive(f"{name}, radius", self.radius))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weights={outline(self.weights)}, radius={self.radius!r})"

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``: in units in which squares times weights stay in range."""
        weights = self._beside(view)
        view = replace(view, known=weights)
        if not view.size:
            return view
        # No point of the set is longer than the radius over the root of the least weight.
        reach = math.frexp(self.radius)[1] - math.frexp(weights.unit)[1] - (math.frexp(weights.least)[1] - 1) // 2
        return view.near(reach + 2)

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        weights = view.known
        assert isinstance(weights, _Weights)
        companions, unit = weights.companions, weights.unit
        seen = view.probe(view.form("same", companions=companions), "wy2")["wy2"]
        norm = math.sqrt(tree_sum(seen))
        if norm <= view.scaled(self.radius) / unit:
            return None
        # A subnormal's rounding counts as often as the root of the sum of the weights.
        feels = math.ceil(math.sqrt(view.size * weights.top) * unit) + 1
        aim = shaved(view, self.radius, feels) * (1 - rounding(view))
        if float(aim) / unit <= float(LOST) * view.largest * math.sqrt(weights.least):
            return view.form("scale", 0.0, companions=companions, e=unit)
        return self._moved(view, weights, norm, float(aim) / unit)

    def _moved(self, view: View, weights: _Weights, norm: float, aim: float) -> Form:
        """The form for a scope outside, whose weighted norm is ``norm``. Both numbers are divided by the unit."""
        raise NotImplementedError

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · √(Σ d²/w)``. The form's ``e`` is the unit of the square roots of the weights."""
        radius = view.scaled(self.radius) / form.e
        return Certificate.of(
            math.sqrt(tree_sum(found["wy2"])) / radius - 1,
            radius * math.sqrt(tree_sum(found["d2_w"])),
            tree_sum(found["dy"]),
            view.taken(math.sqrt(tree_sum(found["d2"]))),
        )

    def _beside(self, view: View) -> _Weights:
        """The weights beside the scope; refuses those that are none."""
        asked = f"{type(self).__name__}, weights"
        companions = apart(view.arrays.arrays, view.beside(self.weights, asked))
        form = Form.of("same", view.segments)
        found = view.passes.map(companions, None, Reading(), form, ["max_y", "low_y"], rounded=False)
        rows = np.repeat(np.arange(len(companions)), [buffer.rows for buffer in companions])
        good = (found[1] > 0) & np.isfinite(found[0])
        if not good.all():
            path = view.arrays.paths[int(rows[np.flatnonzero(~good)[0]])]
            raise InvalidArgumentError(
                f"{asked}, array '{path}'",
                "it holds weights that are not finite numbers > 0",
                "Add a small number to weights that may be 0, as Adam's eps does",
            )
        top, least = float(np.max(found[0], initial=0.0)), float(np.min(found[1], initial=math.inf))
        if top / _SPAN > least:
            seen = f"they go from {least:g} to {top:g}, further than 2^200, where float64 loses the small ones"
            raise InvalidArgumentError(asked, seen, "Bound the weights from below, relative to the largest")
        if not top or (least >= _LEAST and top <= _MOST):
            return _Weights(companions, 1.0, least, top)
        half = math.frexp(top)[1] // 2 - 50
        scaled = [owned(np.ldexp(widened(buffer), -2 * half)) for buffer in companions]
        return _Weights(scaled, math.ldexp(1.0, half), math.ldexp(least, -2 * half), math.ldexp(top, -2 * half))


@dataclass(frozen=True, slots=True, repr=False)
class Ellipsoid(_Weighted):
    """``{y : Σ w_i·y_i² <= radius²}``: an L2 ball in a metric of positive weights, such as Adam's second moment.

    ``y_i = g_i / (1 + λ·w_i)`` with the λ > 0 for which ``Σ w_i·y_i² = radius²``: what weighs much
    shrinks most, so the direction changes. (Moré and Sorensen 1983, "Computing a trust region step",
    https://doi.org/10.1137/0904038, section 3: Newton's method on the reciprocal of the norm, which is concave in λ,
    so that it comes from one side.)

    Parameters
    ----------
    weights : a container of the gradients' structure, any real floating dtype, all > 0, the largest at
        most 2^200 times the least. Only read; a plan holds on to it.
    radius : > 0, in units of the unscaled gradient times a root of a weight.

    The same bits on every backend: λ comes of a fixed sequence of float64 operations. ``Σ w·y² <= radius²`` holds in
    exact arithmetic for float32 and float64, and the boundary is met to 2^-23 for float32, to 2^-44 for float64,
    however far the gradient is. Zeros, where the radius, over the root of the least weight, is less than 2^-1300 of
    the largest element, or is no more than what rounding to subnormals adds. A gradient is inside
    where the weighted norm, summed in float64, is at most the radius.
    """

    def _moved(self, view: View, weights: _Weights, norm: float, aim: float) -> Form:
        multiplier = _multiplier(view, weights, norm, aim)
        return view.form("secular", multiplier, companions=weights.companions, e=weights.unit)


@dataclass(frozen=True, slots=True, repr=False)
class RadialEllipsoid(_Weighted):
    """``{y : Σ w_i·y_i² <= radius²}``, reached by ``y = g · min(1, radius / √(Σ w_i·g_i²))``.

    The direction is kept, as in clipping by a norm. It is *not* the nearest point, which is ``Ellipsoid``'s, unless
    all weights are equal: ``info.certificate.optimality`` says how far from it.

    Parameters
    ----------
    weights, radius : as for ``Ellipsoid``, and the same promises.
    """

    def _moved(self, view: View, weights: _Weights, norm: float, aim: float) -> Form:
        return view.form("scale", aim / norm, companions=weights.companions, e=weights.unit)


def _multiplier(view: View, weights: _Weights, norm: float, aim: float) -> float:
    """A λ with ``aim·(1 - 2^-46) <= √(Σ w·u²/(1 + λ·w)²) <= aim``."""

    def read(multiplier: float) -> tuple[float, float]:
        form = view.form("secular", multiplier, companions=weights.companions)
        found = view.probe(form, "wy2", "slope")
        square = tree_sum(found["wy2"])
        return math.sqrt(square), square / tree_sum(found["slope"])

    # Each element shrinks by 1 + λ·least at least, and by 1 + λ·top at most.
    excess = norm / (aim * (1 - 2.0**-47)) - 1
    low, high = excess / weights.top * (1 - 2.0**-40), excess / weights.least * (1 + 2.0**-40)
    return find_multiplier(read, low, low, high, aim, 2.0**-46)
