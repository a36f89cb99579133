"""Intersections, against an independent solver, closed forms, and their own certificates."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.errors import GradClipError, InvalidArgumentError
from gradclip_core.sets import dykstra

Array = npt.NDArray[Any]


def wrong(value: Any) -> Any:
    """Past the type checker."""
    return value


def proof(info: gc.ClipInfo) -> sets.Certificate:
    """The certificate, which every projection has."""
    assert info.certificate is not None
    return info.certificate


NORMAL = np.random.default_rng(9).standard_normal(6)


def solved(g: Array, constraints: list[dict[str, Any]], bounds: Any = None) -> Array:
    """The nearest point by SciPy's SLSQP."""
    optimize = pytest.importorskip("scipy.optimize")
    best = optimize.minimize(
        lambda y: 0.5 * np.sum((y - g) ** 2),
        np.zeros_like(g),
        jac=lambda y: y - g,
        method="SLSQP",
        bounds=bounds,
        constraints=constraints,
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return np.asarray(best.x)


def in_l2(radius: float) -> dict[str, Any]:
    """``‖y‖₂ <= radius`` for SLSQP."""
    return {"type": "ineq", "fun": lambda y: radius**2 - y @ y, "jac": lambda y: -2 * y}


def in_half_space(a: Array, b: float) -> dict[str, Any]:
    """``<a, y> <= b`` for SLSQP."""
    return {"type": "ineq", "fun": lambda y: b - a @ y, "jac": lambda y: -a}


@pytest.mark.parametrize("seed", range(5))
def test_box_ball_and_half_space_as_an_independent_solver_finds_it(seed: int) -> None:
    g = np.random.default_rng(seed).standard_normal(6) * 3
    onto = sets.Intersection(sets.Box(-0.5, 0.8), sets.L2Ball(1.0), sets.HalfSpace(NORMAL, -0.3))
    y, info = gc.clip_by_projection(g, onto)
    best = solved(g, [in_l2(1.0), in_half_space(NORMAL, -0.3)], [(-0.5, 0.8)] * 6)
    assert np.abs(y - best).max() <= 1e-7  # of the square root of SLSQP's 1e-15
    assert np.sum((y - g) ** 2) <= np.sum((best - g) ** 2) + 1e-8
    assert proof(info).feasibility <= 1e-9
    assert proof(info).optimality <= 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_simplex_in_a_box_as_bisection_finds_it(seed: int) -> None:
    """``y = clip(g - τ, 0, high)`` with the τ for which they add up to 1."""
    g = np.random.default_rng(seed).standard_normal(30)
    low, high = g.min() - 2, g.max()
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.clip(g - tau, 0, 0.1).sum() > 1 else (low, tau)
    y, _ = gc.clip_by_projection(g, sets.Intersection(sets.Simplex(1.0), sets.Box(0.0, 0.1)))
    assert np.abs(y - np.clip(g - tau, 0, 0.1)).max() <= 1e-9


@pytest.mark.parametrize("far", [1.0, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("order", [1, -1])
def test_l1_and_l2_balls_as_the_closed_form_has_it(order: int, far: float) -> None:
    """``y = r₂ · z/‖z‖`` of soft-thresholded g, with the τ at which its 1-norm is r₁."""
    g = np.random.default_rng(4).standard_normal(50)
    low, high = 0.0, np.abs(g).max()
    for _ in range(200):
        tau = (low + high) / 2
        z = np.maximum(np.abs(g) - tau, 0)
        low, high = (tau, high) if z.sum() / max(np.linalg.norm(z), 1e-300) > 3.0 else (low, tau)
    best = 1.0 * np.sign(g) * z / np.linalg.norm(z)
    y, info = gc.clip_by_projection(g * far, sets.Intersection(*(sets.L1Ball(3.0), sets.L2Ball(1.0))[::order]))
    assert np.abs(y - best).max() <= 1e-9 + far * 2.0**-40
    assert proof(info).moved == pytest.approx(np.linalg.norm(g * far - y), rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_two_sets_of_singular_values_meet_in_singular_values(shape: tuple[int, ...]) -> None:
    """With one U and V, the projection is that of the singular values on a capped simplex."""
    g = np.random.default_rng(4).standard_normal(shape) * 2
    y, info = gc.clip_by_projection(g, sets.Intersection(sets.SpectralBall(1.0), sets.NuclearBall(1.8)))
    for before, after in zip(g.reshape(-1, 5, 4), y.reshape(-1, 5, 4), strict=True):
        u, s, v = np.linalg.svd(before, full_matrices=False)
        low, high = 0.0, s[0]
        for _ in range(200):
            tau = (low + high) / 2
            low, high = (tau, high) if np.clip(s - tau, 0, 1).sum() > 1.8 else (low, tau)
        assert np.abs(after - (u * np.clip(s - tau, 0, 1)) @ v).max() <= 1e-9
    assert proof(info).optimality <= 1e-9


def test_a_global_set_and_a_set_of_matrices() -> None:
    """A ball of the whole and one of each matrix: rows in another order than the scope's are turned and turned back."""
    rng = np.random.default_rng(4)
    grads = {
        "a": np.asfortranarray(rng.standard_normal((4, 6))),
        "b": rng.standard_normal((2, 3, 4)).transpose(2, 0, 1),
    }
    onto = sets.Intersection(sets.L2Ball(2.0), sets.SpectralBall(0.8), sets.LinfBall(0.6))
    y, info = gc.clip_by_projection(grads, onto)
    flat = np.concatenate([v.ravel() for v in y.values()])
    assert np.linalg.norm(flat) <= 2 * (1 + 1e-9)
    assert np.abs(flat).max() <= 0.6 + 1e-9
    assert np.linalg.svd(y["b"], compute_uv=False).max() <= 0.8 + 1e-9
    assert proof(info).optimality <= 1e-9
    # Any point of the set is no nearer: the variational inequality, for points made by the sets themselves.
    for _ in range(50):
        z = {k: rng.standard_normal(v.shape) for k, v in grads.items()}
        z = gc.clip_by_projection(z, onto)[0]
        assert sum(np.sum((grads[k] - y[k]) * (z[k] - y[k])) for k in y) <= 1e-7


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_every_dtype_and_in_place(dtype: Any, backend: str) -> None:
    rng = np.random.default_rng(4)
    grads = {"a": rng.standard_normal((6, 5)).astype(dtype), "b": rng.standard_normal(40).astype(dtype)[::2]}
    onto = sets.Intersection(sets.L1Ball(6.0), sets.LinfBall(0.5), sets.L2Ball(1.4))
    y, info = gc.clip_by_projection(grads, onto, backend=backend)
    best = gc.clip_by_projection({k: v.astype(np.float64) for k, v in grads.items()}, onto)[0]
    roundoff = float(np.finfo(dtype).eps) / 2
    for key, value in y.items():
        assert value.dtype == dtype
        assert np.abs(value - best[key]).max() <= 0.5 * roundoff + 1e-9
    assert proof(info).feasibility <= roundoff + 1e-9
    assert proof(info).optimality <= 2 * roundoff + 1e-9
    assert gc.clip_by_projection_(grads, onto, backend=backend) == info
    assert all(np.array_equal(grads[key], value) for key, value in y.items())
    if dtype != np.float16:
        again, second = gc.clip_by_projection(y, onto, backend=backend)
        assert not second.clipped
        assert all(np.array_equal(again[key], value) for key, value in y.items())


def test_scopes_and_the_loss_scale() -> None:
    rng = np.random.default_rng(4)
    grads = {"a": rng.standard_normal(20), "b": rng.standard_normal(30) * 1e-3}
    onto = sets.Intersection(sets.L1Ball(2.0), sets.L2Ball(1.0))
    y, _ = gc.clip_by_projection(grads, onto, "array")
    assert np.array_equal(y["b"], grads["b"])
    assert np.allclose(y["a"], gc.clip_by_projection(grads["a"], onto)[0], rtol=0, atol=1e-9)
    scaled, _ = gc.clip_by_projection({k: v * 64 for k, v in grads.items()}, onto, "array", loss_scale=64.0)
    assert np.allclose(scaled["a"], y["a"], rtol=0, atol=1e-9)
    whole = np.concatenate([v.ravel() for v in gc.clip_by_projection(grads, onto)[0].values()])
    both = gc.clip_by_projection(np.concatenate([grads["a"], grads["b"]]), onto)[0]
    assert np.allclose(whole, both, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_neither_tiny_nor_huge_gradients_lose_anything(size: float) -> None:
    g = np.random.default_rng(4).standard_normal(20) * 4
    for kind in (
        lambda c: sets.Intersection(sets.L1Ball(2.0 * c), sets.L2Ball(c)),
        lambda c: sets.Intersection(sets.Box(-0.3 * c, c), sets.L2Ball(c)),
    ):
        y, _ = gc.clip_by_projection(g * size, kind(size))  # type: ignore[no-untyped-call]  # lambdas
        assert np.allclose(y / size, gc.clip_by_projection(g, kind(1.0))[0], rtol=0, atol=1e-9)  # type: ignore[no-untyped-call]  # lambdas


def test_inside_nothing_is_written() -> None:
    g = np.full(9, 0.25)
    g.flags.writeable = False
    y, info = gc.clip_by_projection([g, np.zeros(0)], sets.Intersection(sets.L2Ball(1.0), sets.LinfBall(0.25)))
    assert np.array_equal(y[0], g)
    assert (info.clipped, proof(info).moved) == (False, 0.0)


@pytest.mark.parametrize(
    "alone", [sets.L2Ball(1.0), sets.LinfBall(0.3), sets.Box(-0.1, 0.2), sets.L1Ball(2.0)], ids=repr
)
def test_one_set_alone_is_that_set(alone: sets.Set) -> None:
    g = np.random.default_rng(4).standard_normal(20)
    y, info = gc.clip_by_projection(g, sets.Intersection(alone))
    assert np.allclose(y, gc.clip_by_projection(g, alone)[0], rtol=2.0**-46, atol=0)
    assert proof(info).optimality <= 1e-14


def test_a_product_of_two_boxes_is_exact() -> None:
    g = np.random.default_rng(4).standard_normal(50)
    y, _ = gc.clip_by_projection(g, sets.Intersection(sets.Box(-0.5, 1.0), sets.Box(-1.0, 0.25)))
    assert np.array_equal(y, np.clip(g, -0.5, 0.25))


@pytest.mark.parametrize(
    "empty",
    [
        lambda: sets.Intersection(sets.L2Ball(1.0), sets.Hyperplane(np.ones(8), 100.0)),
        lambda: sets.Intersection(sets.Box(1.0, 2.0), sets.L2Ball(0.5), max_iterations=200),
        lambda: sets.Intersection(sets.HalfSpace(np.ones(8), -1.0), sets.HalfSpace(-np.ones(8), -1.0)),
    ],
)
def test_no_common_point_is_an_error_and_nothing_is_written(empty: Any) -> None:
    g = np.arange(8.0)
    with pytest.raises(GradClipError, match=r"after \d+ rounds .* have a point in common"):
        gc.clip_by_projection_(g, empty())
    assert np.array_equal(g, np.arange(8.0))


def test_too_few_rounds_are_an_error_that_says_how_far_it_was() -> None:
    g = np.random.default_rng(4).standard_normal(50) * 10
    few = sets.Intersection(sets.L1Ball(3.0), sets.LinfBall(0.4), max_iterations=2)
    with pytest.raises(GradClipError, match="after 2 rounds") as seen:
        gc.clip_by_projection(g, few)
    assert "raise max_iterations" in seen.value.cure
    gc.clip_by_projection(g, sets.Intersection(*few.sets))


def test_the_tolerance_is_what_it_stops_at() -> None:
    g = np.random.default_rng(4).standard_normal(50) * 5
    parts = (sets.L1Ball(4.0), sets.LinfBall(0.4), sets.L2Ball(1.1))
    best = gc.clip_by_projection(g, sets.Intersection(*parts, tolerance=1e-13))[0]
    for tolerance in (1e-3, 1e-6, 1e-9):
        y, info = gc.clip_by_projection(g, sets.Intersection(*parts, tolerance=tolerance))
        assert np.linalg.norm(y - best) <= 20 * tolerance * np.linalg.norm(best)
        assert proof(info).feasibility <= tolerance
        assert proof(info).optimality <= 2 * tolerance


def test_a_point_that_is_not_the_nearest_has_another_certificate() -> None:
    """The certificate can fail: it is one of the point, not of the method."""
    g = np.array([3.0, 1.0, -2.0])
    onto = sets.Intersection(sets.LinfBall(1.0), sets.L2Ball(1.2))
    wrong = np.array([0.5, 0.5, -0.5])
    point = dykstra.Point(wrong, [g - wrong, np.zeros(3)], [float((g - wrong) @ np.array([1.0, 1.0, -1.0])), 0.0])
    assert onto._gap(point, [0.0, 0.0], wrong) > 1


def test_rounds_agree_with_exact_arithmetic_on_two_half_spaces() -> None:
    """``y_0 <= 0`` and ``y_0 + y_1 <= 0`` from (1, 2): by hand, (-1/2, 1/2)."""
    onto = sets.Intersection(sets.HalfSpace(np.array([1.0, 0.0]), 0.0), sets.HalfSpace(np.ones(2), 0.0))
    y, _ = gc.clip_by_projection(np.array([1.0, 2.0]), onto)
    assert np.abs(y - np.array([float(Fraction(-1, 2)), 0.5])).max() <= 1e-9


def test_nested_intersections_are_one() -> None:
    inner = sets.Intersection(sets.L2Ball(1.0), sets.LinfBall(0.5))
    outer = sets.Intersection(inner, sets.L1Ball(2.0))
    assert outer.sets == (sets.L2Ball(1.0), sets.LinfBall(0.5), sets.L1Ball(2.0))
    assert outer == sets.Intersection(*outer.sets)
    assert hash(outer) == hash(sets.Intersection(*outer.sets))
    assert repr(inner).startswith("Intersection(L2Ball(radius=1.0), LinfBall(radius=0.5), tolerance=1e-10")


def test_what_one_of_the_sets_refuses_is_refused() -> None:
    g = np.ones(3)
    with pytest.raises(InvalidArgumentError, match="SpectralBall is a set of matrices"):
        gc.clip_by_projection_(g, sets.Intersection(sets.L2Ball(1.0), sets.SpectralBall(1.0)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sets.Intersection(), "it has no sets"),
        (lambda: sets.Intersection(wrong(sets.L2Ball)), "it is a class"),
        (lambda: sets.Intersection(wrong([sets.L2Ball(1.0)])), "a list is no set"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), tolerance=0.0), "finite number > 0"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), tolerance=float("nan")), "finite number > 0"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), tolerance=1.0), "not below 1"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), max_iterations=0), "below 1"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), max_iterations=wrong(2.5)), "no whole number"),
        (lambda: sets.Intersection(sets.L2Ball(1.0), max_iterations=True), "no whole number"),
    ],
)
def test_bad_arguments_are_refused_when_it_is_made(make: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        make()
