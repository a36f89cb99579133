"""The Lp ball, against bisection in extended precision and an NLP solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.sets.small import ROUNDOFF, Array, adversaries, drawn, normal, wide

LONG = np.longdouble
POWERS = (1.1, 1.5, 3.0, 10.0)
ADVERSARIES = adversaries()


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.zeros(0, np.longdouble), *(np.ravel(x) for x in wide(arrays))])


def norm_of(v: Array, p: float) -> Any:
    top = np.max(np.abs(v), initial=np.longdouble(0))
    return top * np.sum((np.abs(v) / top) ** np.longdouble(p)) ** (1 / np.longdouble(p)) if top else top


def solved(g: Array, p: float, radius: float) -> Array:
    """The projection, by bisection and Newton's method on logarithms: nothing in it leaves the range."""
    m = np.abs(g.astype(LONG)) / LONG(radius)
    m[m == 0] = LONG(2.0) ** -9000
    logs, power = np.log2(m), LONG(p) - 1

    def shrunk(a: Any) -> Array:
        """``z + 2^a·z^(p-1) = m``. The left side's logarithm is convex in z's, so from ``m`` Newton falls to z."""
        t = logs
        for _ in range(100):
            left = np.logaddexp2(t, a + power * t)
            if (left - logs <= LONG(2.0) ** -61 * (np.abs(a) + np.abs(t) + 1)).all():  # but for its roundings
                found: Array = np.exp2(t)
                return found
            share = np.exp2(t - left)
            t = t - (left - logs) / (share + power * (1 - share))
        raise AssertionError(f"Newton's method has not ended: {g}, {p}, {radius}, 2^{a}")

    low, high = LONG(-3000), LONG(6000)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if norm_of(shrunk(middle), p) > 1 else (low, middle)
    point: Array = np.sign(g) * shrunk(high) * LONG(radius)
    return point


def check(grads: Sequence[Array], p: float, radius: float) -> list[Array]:
    """What every result owes: in the ball as the library measures it, twice as once, both backends alike."""
    made, info = gc.clip_by_projection(list(grads), sets.LpBall(radius, p))
    if gc.global_norm(list(grads), p) <= radius:
        assert not info.clipped
        assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]
        return list(made)
    roundoff = max(ROUNDOFF[x.dtype.name] for x in grads if x.size)
    fine = roundoff <= 2.0**-24
    assert info.clipped
    assert gc.global_norm(made, p) <= radius * (1 if fine else 1 + roundoff)
    assert gc.global_norm(made, p) >= radius * (1 - 4 * roundoff - 2.0**-37)
    assert info.clipped_norm == pytest.approx(gc.global_norm(made, p), rel=1e-11)
    plain, seen = gc.clip_by_projection(list(grads), sets.LpBall(radius, p), backend="numpy")
    for y, z in zip(made, plain, strict=True):
        close = 1e-11 + (2 * roundoff if roundoff > 2.0**-53 else 0)
        np.testing.assert_allclose(y.astype(float), z.astype(float), rtol=close, atol=close * radius * 1e-3)
    assert info.certificate is not None
    assert seen.certificate is not None
    if fine:
        again, _ = gc.clip_by_projection(made, sets.LpBall(radius, p))
        assert [z.tobytes() for z in again] == [y.tobytes() for y in made]
    return list(made)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("seed", range(5))
def test_small_problems(seed: int, p: float) -> None:
    grads = drawn(seed, ["float64"])
    for part in (0.99, 0.4, 1e-3):
        radius = float(part * norm_of(flat(grads), p))
        made = check(grads, p, radius)
        np.testing.assert_allclose(
            flat(made).astype(float), solved(flat(grads), p, radius).astype(float), rtol=1e-9, atol=1e-11 * radius
        )


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_hard_gradients(name: str, p: float) -> None:
    grads = ADVERSARIES[name]
    radius = float(norm_of(flat(grads), p) / 3)
    if np.isfinite(radius):
        check(grads, p, radius)


@pytest.mark.parametrize("p", [1.1, 3.0])
def test_against_a_solver_of_nonlinear_programs(p: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    g = np.array([3.0, -2.0, 1.0, 0.5, -0.25])
    found = optimize.minimize(
        lambda y: 0.5 * ((y - g) ** 2).sum(),
        np.full(5, 0.1) * np.sign(g),
        jac=lambda y: y - g,
        constraints={
            "type": "ineq",
            "fun": lambda y: 1.0 - (np.abs(y) ** p).sum(),
            "jac": lambda y: -p * np.sign(y) * np.abs(y) ** (p - 1),
        },
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    y, _ = gc.clip_by_projection(g, sets.LpBall(1.0, p))
    assert ((y - g) ** 2).sum() <= ((found.x - g) ** 2).sum() + 1e-9
    np.testing.assert_allclose(y, found.x, atol=1e-6 if p < 2 else 1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scope", ["global", "array"])
def test_every_dtype_and_scope(dtype: str, scope: str) -> None:
    kind: Any = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    grads = [normal(200).astype(kind), normal(7, 9, seed=1).astype(kind)]
    made, info = gc.clip_by_projection(grads, sets.LpBall(1.0, 3.0), scope, loss_scale=4.0)
    inplace = [x.copy() for x in grads]
    assert gc.clip_by_projection_(inplace, sets.LpBall(1.0, 3.0), scope, loss_scale=4.0) == info
    assert [x.tobytes() for x in inplace] == [x.tobytes() for x in made]
    parts = [(made, grads)] if scope == "global" else [([y], [g]) for y, g in zip(made, grads, strict=True)]
    for y, g in parts:
        point = solved(flat(g) / 4, 3.0, 1.0)
        assert np.abs(flat(y) - point).max() <= 2 * ROUNDOFF[dtype] * np.abs(point).max() + 1e-11


def test_two_and_infinity_are_the_older_rules() -> None:
    g = normal(40)
    for p, onto in ((2, sets.L2Ball(1.0)), (math.inf, sets.LinfBall(1.0))):
        y, info = gc.clip_by_projection(g, sets.LpBall(1.0, p))
        z, older = gc.clip_by_projection(g, onto)
        assert y.tobytes() == z.tobytes()
        assert info == older


def test_the_norms_reported_are_p_norms() -> None:
    info = gc.clip_by_projection(np.array([3.0, 4.0]), sets.LpBall(1.0, 3))[1]
    assert info.norm == pytest.approx((27 + 64) ** (1 / 3), rel=1e-12)
    assert info.clipped_norm == pytest.approx(1.0, rel=1e-10)


def test_a_power_beyond_float64_is_served() -> None:
    """``(2/1e-50)^9`` is no float64; the projection is."""
    g = np.array([1.0, 2.0])
    y, info = gc.clip_by_projection(g, sets.LpBall(1e-50, 10.0))
    # z_1/z_2 = (g_1/g_2)^(1/9) where z is nothing beside g.
    share = 0.5 ** (1 / 9)
    np.testing.assert_allclose(y, np.array([share, 1.0]) * 1e-50 / (1 + share**10) ** 0.1, rtol=2.0**-36)
    assert gc.global_norm(y, 10) <= 1e-50
    assert info.clipped


@pytest.mark.parametrize(
    ("p", "seen"),
    [
        (1, "L1Ball"),
        (0.5, "not convex"),
        (-1, "not convex"),
        (math.nan, "NaN"),
        ("2", "no number"),
        (None, "no number"),
    ],
)
def test_powers_that_give_no_ball_are_refused(p: Any, seen: str) -> None:
    with pytest.raises(gc.InvalidArgumentError, match=seen):
        sets.LpBall(1.0, p)


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf, "1"])
def test_a_radius_that_is_none_is_refused(radius: Any) -> None:
    with pytest.raises(gc.InvalidArgumentError, match="LpBall, radius"):
        sets.LpBall(radius, 3)
