"""Weighted L2 balls, against bisection in extended precision and an NLP solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.sets.small import Array, Gauge, adversaries, both, check, drawn, normal, wide

ADVERSARIES = adversaries()


def decades(arrays: Sequence[Array], span: float, seed: int = 0) -> list[Array]:
    """Weights over ``span`` decades, one for each element."""
    rng = np.random.default_rng(seed)
    return [10.0 ** rng.uniform(-span / 2, span / 2, x.shape) for x in arrays]


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.zeros(0, np.longdouble), *(np.ravel(x) for x in wide(arrays))])


def norm_of(weights: Sequence[Array], arrays: Sequence[Array]) -> Any:
    """``√(Σ w·y²)`` in extended precision."""
    return np.linalg.norm(np.sqrt(flat(weights)) * flat(arrays))


def gauge(weights: Sequence[Array], radius: float) -> Gauge:
    return lambda arrays: norm_of(weights, arrays) / np.longdouble(radius)


def expected(v: Array, w: Array, radius: float) -> Array:
    """The point whose multiplier 200 halvings of its exponent find."""
    low, high = -300 * np.log2(np.longdouble(10)), 300 * np.log2(np.longdouble(10))
    for _ in range(200):
        middle = (low + high) / 2
        outside = np.linalg.norm(np.sqrt(w) * v / (1 + 2**middle * w)) > radius
        low, high = (middle, high) if outside else (low, middle)
    point: Array = v / (1 + 2**high * w)
    return point


@pytest.mark.parametrize("span", [0, 3, 20])
@pytest.mark.parametrize("seed", range(6))
def test_small_problems(seed: int, span: float) -> None:
    grads = drawn(seed, ["float64", "float32"])
    weights = decades(grads, span, seed)
    for part in (0.999, 0.5, 1e-3, 1e-9):
        radius = float(part * norm_of(weights, grads))
        # An element of little weight that is rounded counts for much, beside a gradient that hardly moves.
        made = check(grads, sets.Ellipsoid(weights, radius), gauge(weights, radius), 1e-3 if span < 20 else 0.1)
        point = expected(flat(grads), flat(weights), radius)
        assert np.abs(flat(made) - point).max() <= 2.0**-22 * np.abs(point).max()


@pytest.mark.parametrize("part", [0.9, 0.1, 1e-6])
def test_float64_is_as_close_as_it_says(part: float) -> None:
    grads, weights = [normal(300), normal(20, 30, seed=1)], [np.abs(normal(300, seed=2)) + 1e-3, np.full((20, 30), 2.0)]
    radius = float(part * norm_of(weights, grads))
    made = check(grads, sets.Ellipsoid(weights, radius), gauge(weights, radius))
    point = expected(flat(grads), flat(weights), radius)
    assert np.abs(flat(made) - point).max() <= 1e-12 * np.abs(point).max()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_hard_gradients(name: str) -> None:
    grads = ADVERSARIES[name]
    weights = decades(grads, 20)
    radius = float(norm_of(weights, grads)) / 3
    if np.isfinite(radius):
        check(grads, sets.Ellipsoid(weights, radius), gauge(weights, radius), optimality=1e-3)


@pytest.mark.parametrize("power", [-280, -40, 0, 40, 280])
def test_weights_of_any_size(power: int) -> None:
    """A common factor of the weights, beside its root for the radius, changes no bit where it is a power of four."""
    grads, weights = [normal(50)], [np.abs(normal(50, seed=1)) + 0.1]
    plain = gc.clip_by_projection(grads, sets.Ellipsoid(weights, 1.0))[0]
    scaled = sets.Ellipsoid([np.ldexp(weights[0], 2 * power)], 2.0**power)
    np.testing.assert_allclose(gc.clip_by_projection(grads, scaled)[0][0], plain[0], rtol=1e-13)


def test_against_a_solver_of_nonlinear_programs() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    g, w = normal(6) * 3, np.array([0.1, 1.0, 10.0, 0.5, 2.0, 5.0])
    found = optimize.minimize(
        lambda y: 0.5 * ((y - g) ** 2).sum(),
        np.zeros(6),
        jac=lambda y: y - g,
        constraints={"type": "ineq", "fun": lambda y: 4.0 - (w * y * y).sum(), "jac": lambda y: -2 * w * y},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(gc.clip_by_projection(g, sets.Ellipsoid(w, 2.0))[0], found.x, atol=1e-8)


def test_equal_weights_are_the_l2_ball() -> None:
    grads = [normal(30), normal(4, 5, seed=1)]
    weights = [np.full(x.shape, 4.0) for x in grads]
    ball, _ = gc.clip_by_projection(grads, sets.L2Ball(1.5))
    for onto in (sets.Ellipsoid(weights, 3.0), sets.RadialEllipsoid(weights, 3.0)):
        for y, z in zip(gc.clip_by_projection(grads, onto)[0], ball, strict=True):
            np.testing.assert_allclose(y, z, rtol=1e-12)


def test_radial_keeps_the_direction_and_is_not_the_nearest_point() -> None:
    grads, weights = [normal(40)], decades([normal(40)], 2)
    radius = float(norm_of(weights, grads)) / 2
    (y,), info = both(grads, sets.RadialEllipsoid(weights, radius))
    np.testing.assert_allclose(y, grads[0] / 2, rtol=1e-12)
    assert norm_of(weights, [y]) <= radius
    (z,), nearest = both(grads, sets.Ellipsoid(weights, radius))
    assert np.linalg.norm(z - grads[0]) < 0.9 * np.linalg.norm(y - grads[0])
    assert info.certificate is not None
    assert nearest.certificate is not None
    assert info.certificate.feasibility == 0
    assert info.certificate.optimality > 0.01
    assert nearest.certificate.optimality < 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scope", ["global", "array"])
def test_every_dtype_and_scope(dtype: str, scope: str) -> None:
    kind: Any = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    grads = [normal(300).astype(kind), normal(7, 9, seed=1).astype(kind)]
    weights = [np.abs(normal(300, seed=2, dtype=np.float32)) + 0.1, np.abs(normal(7, 9, seed=3)) + 0.1]
    made, info = both(grads, sets.Ellipsoid(weights, 2.0), scope, loss_scale=4.0)
    roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}[dtype]
    parts = (
        [(weights, made, grads)]
        if scope == "global"
        else [([w], [y], [g]) for w, y, g in zip(weights, made, grads, strict=True)]
    )
    for w, y, g in parts:
        point = expected(flat(g) / 4, flat(w), 2.0)
        assert np.abs(flat(y) - point).max() <= 2 * roundoff * np.abs(point).max() + 2.0**-40
        assert norm_of(w, y) <= 2.0 * (1 + (roundoff if roundoff > 2.0**-20 else 0))
    assert info.clipped


def test_what_shrinks_to_nothing() -> None:
    grads, weights = [np.array([1e300, 2e300])], [np.array([1.0, 2.0])]
    made, info = both(grads, sets.Ellipsoid(weights, 1e-300))
    assert np.abs(made[0]).max() <= 1e-300
    assert info.certificate is not None
    assert info.certificate.feasibility == 0


@pytest.mark.parametrize(
    ("weights", "seen"),
    [
        (np.array([1.0, 0.0]), "weights that are not finite numbers > 0"),
        (np.array([1.0, -2.0]), "weights that are not finite numbers > 0"),
        (np.array([1.0, np.nan]), "weights that are not finite numbers > 0"),
        (np.array([1.0, np.inf]), "weights that are not finite numbers > 0"),
        (np.array([1.0, 1e-70]), r"further than 2\^200"),
        (np.ones(3), "its shape is"),
        (np.ones(2, complex), "it is complex"),
        ({"w": np.ones(2)}, "at that path"),
    ],
)
@pytest.mark.parametrize("kind", [sets.Ellipsoid, sets.RadialEllipsoid])
def test_weights_that_are_none_are_refused(kind: Any, weights: Any, seen: str) -> None:
    g = np.array([30.0, 40.0])
    with pytest.raises(gc.InvalidArgumentError, match=seen):
        gc.clip_by_projection_(g, kind(weights, 1.0))
    assert g.tolist() == [30.0, 40.0]


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf, "1"])
def test_a_radius_that_is_none_is_refused(radius: Any) -> None:
    with pytest.raises(gc.InvalidArgumentError, match="Ellipsoid, radius"):
        sets.Ellipsoid(np.ones(2), radius)


def test_weights_from_a_generator_serve_twice() -> None:
    onto = sets.Ellipsoid((w for w in [np.ones(2)]), 1.0)
    for _ in range(2):
        (y,), _ = gc.clip_by_projection([np.array([3.0, 4.0])], onto)
        np.testing.assert_allclose(y, [0.6, 0.8], rtol=1e-12)


def test_weights_that_are_the_gradient_itself() -> None:
    """As in ``Ellipsoid(grads, r)``: they are copied before anything is written."""
    g = np.array([3.0, 4.0, 5.0])
    want, _ = gc.clip_by_projection(g, sets.Ellipsoid(g.copy(), 1.0))
    gc.clip_by_projection_(g, sets.Ellipsoid(g, 1.0))
    assert g.tolist() == want.tolist()
