"""The sets of A-GEM and GEM: the gradients that go against none of the memories' gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradclip_core.forms import Form
from gradclip_core.protocol import FloatArray
from gradclip_core.reference import tree_sum
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.given import as_written
from gradclip_core.sets.normals import Normal, dots, look, owned, refuse_beyond, widened
from gradclip_core.sets.planes import MOMENTS_ALONG, certify_along, into_half_space, tolerance
from gradclip_core.surgery.qp import nonnegative


@dataclass(frozen=True, slots=True, eq=False)
class Ahead(Set):
    """``{y : <y, reference> >= 0}``: the ``HalfSpace(-reference, 0)``, or everything where the reference is 0."""

    reference: Any = field(repr=False)
    asked: str = "agem, reference"

    moments = MOMENTS_ALONG

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if not view.size:
            return None
        normal, seen = look(view, self.reference, self.asked)
        if not normal.square:
            return None
        return into_half_space(view, normal, seen, 0.0, -1.0, self.asked.partition(",")[0])

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """See ``HalfSpace``."""
        return certify_along(view, form, found)


@dataclass(frozen=True, slots=True)
class Combined(Form):
    """``given`` values, rounded already, and how far they are off the KKT conditions."""

    outside: float = 0.0
    """The largest ``-<g_k, y>/‖g_k‖``, or 0."""
    residual: float = 0.0
    """The largest ``|<g_k, y>|/‖g_k‖`` of those with v_k > 0, and ``‖y - (u + Σ v_k·g_k)‖``."""


@dataclass(frozen=True, slots=True, eq=False)
class Cone(Set):
    """``{y : <y, g_k> >= 0 for all k}``. See ``gem``."""

    memories: Sequence[Any] = field(repr=False)
    margin: float = 0.0

    moments = ("y2", "d2")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if not view.size:
            return None
        looked = [look(view, memory, f"gem, memories[{k}]") for k, memory in enumerate(self.memories)]
        looked = [(normal, seen) for normal, seen in looked if normal.square]  # a zero forbids nothing
        if all(seen.value >= -tolerance(view, normal, seen) for normal, seen in looked):
            return None
        normals = [normal for normal, _ in looked]
        lengths = np.array([normal.length for normal in normals])
        c = np.array([seen.value for _, seen in looked]) / lengths
        exponents = np.array([normal.exponent for normal in normals])
        margins = np.ldexp(self.margin, exponents - view.reading.exponent) * lengths
        gram = _gram(view, normals)
        x = nonnegative(gram, c + gram @ margins)
        y = _combine(view, normals, (margins + x) / lengths)
        y, x = _refined(view, normals, gram, margins, x, y)
        return _rounded(view, normals, x, y)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """The KKT conditions, of the values that were written."""
        assert isinstance(form, Combined)
        moved = math.sqrt(tree_sum(found["d2"]))
        size = math.sqrt(tree_sum(found["y2"])) + moved
        if not size:
            return Certificate(0.0, 0.0, 0.0)
        return Certificate(form.outside / size, form.residual / size, view.original(moved))


def _gram(view: View, normals: Sequence[Normal]) -> FloatArray:
    """The cosines of the memories' gradients."""
    gram = np.eye(len(normals))
    for i, one in enumerate(normals):
        for j, other in enumerate(normals[:i]):
            cosine = dots(view.passes, one.companions, other.companions).value / one.length / other.length
            gram[i, j] = gram[j, i] = cosine
    return gram


def _combine(view: View, normals: Sequence[Normal], weights: FloatArray) -> list[FloatArray]:
    """``u + Σ weight·w``, one float64 array for each buffer."""
    made = []
    for i in range(len(view.buffers)):
        y = view.values(i)
        for normal, weight in zip(normals, weights, strict=True):
            if weight:
                y += weight * widened(normal.companions[i])
        made.append(y)
    return made


def _cosines(view: View, normals: Sequence[Normal], y: Sequence[FloatArray]) -> FloatArray:
    """``<g_k, y>/‖g_k‖`` for each k."""
    buffers = [owned(values) for values in y]
    return np.array([dots(view.passes, buffers, n.companions).value / n.length for n in normals])


def _refined(
    view: View,
    normals: Sequence[Normal],
    gram: FloatArray,
    margins: FloatArray,
    x: FloatArray,
    y: list[FloatArray],
) -> tuple[list[FloatArray], FloatArray]:
    """One step of iterative refinement: what the dots with y are off 0 is taken out of the multipliers."""
    active = x > 0
    if not active.any():
        return y, x
    residual = _cosines(view, normals, y)[active]
    better = x.copy()
    better[active] -= np.linalg.solve(gram[np.ix_(active, active)], residual)
    if (better[active] <= 0).any() or np.array_equal(better, x):
        return y, x
    lengths = np.array([normal.length for normal in normals])
    again = _combine(view, normals, (margins + better) / lengths)
    left = _cosines(view, normals, again)[active]
    return (again, better) if np.abs(left).max() < np.abs(residual).max() else (y, x)


def _rounded(view: View, normals: Sequence[Normal], x: FloatArray, y: Sequence[FloatArray]) -> Form:
    """The form that writes y, as its storage type holds it, with what is known of it."""
    largest = [np.abs(values).max(axis=1, initial=0.0) for values in y]
    refuse_beyond(view, np.concatenate(largest), "gem")
    stored, off = [], []
    for i, values in enumerate(y):
        stored.append(as_written(view, i, values))
        off.append(tree_sum(((stored[-1] - values) ** 2).ravel()) if values.size else 0.0)
    found = _cosines(view, normals, stored)
    residual = max(float(np.abs(found[x > 0]).max(initial=0.0)), math.sqrt(tree_sum(np.array(off))))
    numbers = Form.of("given", view.segments, values=stored)
    outside = max(0.0, -float(found.min()))
    return Combined("given", numbers.a, numbers.b, numbers.c, values=stored, outside=outside, residual=residual)
