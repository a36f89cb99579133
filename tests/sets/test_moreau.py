"""Moreau's identity: what a projection takes away is the proximal point of the conjugate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradclip_core import sets

from .drawing import (
    draw,
    drawn,
    norm,
    project,
)
from .every import EVERY, flat


def by_bisection(excess: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def prox_of_largest_magnitude(g: Any, r: float) -> Any:
    """Of ``r·max |x_i|``: the largest magnitudes are cut down until ``r`` is gone."""
    if np.abs(g).sum() <= r:
        return np.zeros_like(g)
    top = by_bisection(lambda t: float(np.maximum(np.abs(g) - t, 0).sum()) - r, 0.0, float(np.abs(g).max()))
    return np.clip(g, -top, top)


def prox_of_largest(g: Any, s: float) -> Any:
    """Of ``s·max x_i``."""
    low = float(g.min()) - s
    return np.minimum(g, by_bisection(lambda t: float(np.maximum(g - t, 0).sum()) - s, low, float(g.max())))


def moreau(g: Any, name: str, onto: Any) -> Any:
    """The prox of the support function of a set, written down on its own; None where there is no such row."""
    if name == "l1":
        return prox_of_largest_magnitude(g, onto.radius)
    if name == "simplex":
        return prox_of_largest(g, onto.total)
    if name == "linf":
        return np.sign(g) * np.maximum(np.abs(g) - onto.radius, 0)
    if name == "l2":
        return g * max(0.0, 1 - onto.radius / norm(g))
    if name == "box":
        return np.maximum(g - onto.high, 0) + np.minimum(g - onto.low, 0)
    return None


@pytest.mark.parametrize("name", ["box", "l1", "l2", "linf", "simplex"])
@pytest.mark.parametrize("size", [0.05, 0.5, 3.0])
def test_moreau(name: str, size: float) -> None:
    """``P_C(g) + prox of C's support function (g) = g``."""
    for grads, onto in drawn(name, "float64", size):
        g = flat(grads)
        assert np.allclose(flat(project(grads, onto)) + moreau(g, name, onto), g, rtol=1e-13, atol=1e-13)


def test_moreau_for_cones() -> None:
    """A half-space through 0, and the ray of its normal; a hyperplane through 0, and its line."""
    if not hasattr(sets, "HalfSpace"):
        pytest.fail("there are no half-spaces")
    for seed in range(10):
        grads, normal = (draw(EVERY["l1"], "float64", s) for s in (seed, seed + 100))
        g, a = flat(grads), flat(normal)
        share = float((a @ g) / (a @ a))
        assert np.allclose(
            flat(project(grads, sets.HalfSpace(normal, 0.0))) + max(0.0, float(share)) * a, g, rtol=1e-12, atol=1e-12
        )
        assert np.allclose(flat(project(grads, sets.Hyperplane(normal, 0.0))) + share * a, g, rtol=1e-12, atol=1e-12)
