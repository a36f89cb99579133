"""Intersections from afar: gradients far longer or shorter than the sets, and sets without a common point."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.errors import GradClipError, InvalidArgumentError

Array = npt.NDArray[Any]
ONES = np.ones(3)
G = np.array([3.0, -1.0, 0.5])
FAR = (1.0, 1e4, 1e6, 1e9, 1e12, 1e20, 1e100, 1e300)


def both(g: Array, onto: sets.Set) -> tuple[Array, sets.Certificate]:
    """The same bits from both backends."""
    y, info = gc.clip_by_projection(g, onto, backend="numpy")
    pytest.importorskip("numba")
    other, seen = gc.clip_by_projection(g, onto, backend="numba_cpu")
    assert other.tobytes() == y.tobytes()
    assert seen.certificate == info.certificate
    assert info.certificate is not None
    return y, info.certificate


DISJOINT: dict[str, Callable[[], list[sets.Set]]] = {
    "planes": lambda: [sets.Hyperplane(ONES, 1.0), sets.Hyperplane(ONES, 2.0)],
    "a plane and a simplex": lambda: [sets.Hyperplane(ONES, 1.0), sets.Simplex(2.0)],
    "a ball and a box": lambda: [sets.L2Ball(1.0), sets.Box(2.0, 3.0)],
    "three, of which two meet each": lambda: [
        sets.HalfSpace(np.array([1.0, 0.0, 0.0]), -1.0),
        sets.HalfSpace(np.array([0.0, 1.0, 0.0]), -1.0),
        sets.HalfSpace(np.array([-1.0, -1.0, 0.0]), 1.0),
    ],
}


@pytest.mark.parametrize("name", DISJOINT)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("far", [1.0, 1e5, 1e12])
def test_sets_without_a_common_point(name: str, order: int, dtype: Any, far: float) -> None:
    if far > 1e6 and name in ("planes", "three, of which two meet each"):
        far **= 0.5  # what is nearest is as far away itself, and the distance between the sets nothing beside it
    g = (G * far).astype(dtype)
    before = g.copy()
    with pytest.raises(GradClipError, match="Make sure that the sets have a point in common"):
        gc.clip_by_projection_(g, sets.Intersection(*DISJOINT[name]()[::order], max_iterations=200))
    assert g.tobytes() == before.tobytes()


def test_with_as_many_rounds_as_usual_it_is_an_error_too() -> None:
    for parts in (DISJOINT["planes"](), DISJOINT["a plane and a simplex"]()):
        with pytest.raises(GradClipError, match=r"after \d+ rounds the nearest point .* was not found"):
            gc.clip_by_projection(G, sets.Intersection(*parts))


def test_what_went_wrong_is_said_in_plain_sentences() -> None:
    with pytest.raises(GradClipError) as seen:
        gc.clip_by_projection(np.array([2.0, 0.0]), sets.Intersection(sets.L2Ball(1.0), sets.Box(3.0, 4.0)))
    assert "was not found to the tolerance 1e-10. The last point was 0." in seen.value.seen
    assert "times its length away from the farthest of them" in seen.value.seen
    assert "if they have, raise max_iterations" in seen.value.cure


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("order", [1, -1])
def test_a_simplex_in_a_box(far: float, order: int) -> None:
    """The two largest elements are at the bound, as soon as they are as far above the third."""
    onto = sets.Intersection(*[sets.Simplex(1.0), sets.Box(0.0, 0.5)][::order])
    y, certificate = both(np.array([1.0, -0.5, 0.3]) * far, onto)
    np.testing.assert_allclose(y, [0.5, 0.0, 0.5], atol=1e-10)
    assert certificate.feasibility <= 1e-10
    assert certificate.optimality <= 1e-10
    assert certificate.moved == pytest.approx(far * float(np.linalg.norm(np.array([1.0, -0.5, 0.3]) - y / far)))


def on_a_cap(g: Array, a: Array, b: float) -> Array:
    """The nearest point of the unit ball with ``<a, y> <= b``, by hand, for a g outside of both."""
    far = float(np.abs(g).max())
    v, normal, level = g / far, a / np.linalg.norm(a), b / np.linalg.norm(a)
    point: Array = v / np.linalg.norm(v)
    if normal @ point > level:
        rest = v - (normal @ v) * normal
        length = float(np.linalg.norm(rest))
        point = level * normal + rest / length * min((1 - level**2) ** 0.5, length * far)
    return point


@pytest.mark.parametrize("far", [*FAR, 1e308])
@pytest.mark.parametrize("order", [1, -1])
def test_a_ball_and_a_half_space(far: float, order: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        g = rng.standard_normal(8)
        g, a = g / np.linalg.norm(g) * far * 1.5 if far < 1e308 else g / np.linalg.norm(g) * far, rng.standard_normal(8)
        y, certificate = both(g, sets.Intersection(*[sets.L2Ball(1.0), sets.HalfSpace(a, -0.3)][::order]))
        np.testing.assert_allclose(y, on_a_cap(g, a, -0.3), atol=1e-9)
        length = float(np.linalg.norm(y))
        assert length <= 1 + 1e-10
        assert a @ y <= -0.3 + 1e-10 * length * np.linalg.norm(a)
        assert certificate.feasibility <= 1e-10
        assert certificate.optimality <= 2e-10


@pytest.mark.parametrize("far", FAR)
def test_l1_and_l2_balls(far: float) -> None:
    """``y = r₂ · z/‖z‖`` of soft-thresholded g: as exact for the longest g as for a short one."""
    g = np.random.default_rng(4).standard_normal(50) * 4
    low, high = 0.0, float(np.abs(g).max())
    for _ in range(200):
        tau = (low + high) / 2
        z = np.maximum(np.abs(g) - tau, 0)
        low, high = (tau, high) if z.sum() / max(float(np.linalg.norm(z)), 1e-300) > 3.0 else (low, tau)
    y, certificate = both(g * far, sets.Intersection(sets.L1Ball(3.0), sets.L2Ball(1.0)))
    assert np.abs(y - np.sign(g) * z / np.linalg.norm(z)).max() <= 1e-9
    assert certificate.feasibility <= 1e-10


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-12])
@pytest.mark.parametrize("far", [1e3, 1e10, 1e30])
def test_the_tolerance_holds_however_long_the_gradient_is(tolerance: float, far: float) -> None:
    g = np.random.default_rng(4).standard_normal(30) * far
    onto = sets.Intersection(sets.L1Ball(4.0), sets.LinfBall(0.7), sets.L2Ball(1.3), tolerance=tolerance)
    y, certificate = both(g, onto)
    length = float(np.linalg.norm(y))
    for part in onto.sets:
        assert np.linalg.norm(y - gc.clip_by_projection(y, part)[0]) <= (tolerance + 2.0**-40) * length
    assert certificate.feasibility <= tolerance
    assert certificate.optimality <= 2 * tolerance


def test_no_tolerance_is_more_than_float64_can_hold() -> None:
    g = np.random.default_rng(4).standard_normal(30) * 5
    parts = (sets.L1Ball(4.0), sets.LinfBall(0.7), sets.L2Ball(1.3))
    y, certificate = both(g, sets.Intersection(*parts, tolerance=1e-300))
    np.testing.assert_allclose(y, both(g, sets.Intersection(*parts))[0], atol=1e-9)
    assert certificate.feasibility <= 2.0**-43


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e-30, 1e30, 1e150, 1e300])
def test_every_scale_is_as_one(size: float) -> None:
    g, a = np.random.default_rng(4).standard_normal(9) * 5, np.random.default_rng(5).standard_normal(9)
    makes: list[Callable[[float], sets.Set]] = [
        lambda c: sets.Intersection(sets.Simplex(c), sets.Box(0.0, 0.3 * c)),
        lambda c: sets.Intersection(sets.L2Ball(c), sets.HalfSpace(a, -0.5 * c)),
        lambda c: sets.Intersection(sets.Hyperplane(a, c), sets.LinfBall(c), sets.L1Ball(3 * c)),
    ]
    for make in makes:
        y, certificate = both(g * size, make(size))
        np.testing.assert_allclose(y / size, both(g, make(1.0))[0], atol=1e-9)
        assert certificate.feasibility <= 1e-10
        assert certificate.optimality <= 1e-9


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-100, 1e-10])
def test_gradients_that_are_nothing_beside_the_sets(size: float) -> None:
    g = np.array([1.0, -0.5, 0.3]) * size
    np.testing.assert_allclose(
        both(g, sets.Intersection(sets.Simplex(1.0), sets.Box(0.0, 0.5)))[0], np.full(3, 1 / 3), atol=1e-9
    )
    y, certificate = both(g, sets.Intersection(sets.Hyperplane(ONES, 1.0), sets.L2Ball(2.0)))
    np.testing.assert_allclose(y, np.full(3, 1 / 3), atol=1e-9)
    assert certificate.moved == pytest.approx(3**-0.5)


@pytest.mark.parametrize("far", [1.0, 1e10, 1e100, 1e300])
def test_where_only_the_origin_is_left(far: float) -> None:
    """No length is there to be relative to: what is left of y is rounding, and is taken away."""
    up, across = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.3, 0.1])
    positive = np.array([3.0, 1.0, 2.3]) * far
    for g, parts in (
        (G * far, [sets.Hyperplane(ONES, 0.0), sets.Hyperplane(up, 0.0), sets.Hyperplane(across, 0.0)]),
        (-positive, [sets.Box(0.0, 1.0), sets.L2Ball(1.0)]),
        (positive, [sets.HalfSpace(up, 0.0), sets.Box(0.0, 1.0)]),
        (positive, [sets.HalfSpace(up, 0.0), sets.Box(0.0, 1.0), sets.L2Ball(1.0)]),
    ):
        y, certificate = both(g, sets.Intersection(*parts))
        assert np.abs(y).max() <= 2.0**-46 * far
        assert certificate.feasibility <= 1e-10


def test_pairs_of_balls_and_half_spaces_at_random() -> None:
    """Sets through one point, and gradients 10^8 times as long: feasible, or an error."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        inside, a = rng.standard_normal(6), rng.standard_normal(6)
        parts = [
            sets.L1Ball(1.2 * float(np.abs(inside).sum())),
            sets.L2Ball(1.1 * float(np.linalg.norm(inside))),
            sets.HalfSpace(a, float(a @ inside) + 0.1),
            sets.LpBall(1.3 * gc.global_norm(inside, 3), 3),
        ]
        for pair in itertools.combinations(parts, 2):
            y, info = gc.clip_by_projection(rng.standard_normal(6) * 1e8, sets.Intersection(*pair))
            length = float(np.linalg.norm(y))
            for part in pair:
                assert np.linalg.norm(y - gc.clip_by_projection(y, part)[0]) <= 2e-10 * length
            assert info.certificate is not None
            assert info.certificate.optimality <= 1e-9


def test_another_name_of_a_ball_is_that_ball() -> None:
    g = np.random.default_rng(4).standard_normal(20) * 3
    named = both(g, sets.Intersection(sets.LpBall(1.0, 2), sets.LpBall(0.3, np.inf)))
    assert np.array_equal(named[0], both(g, sets.Intersection(sets.L2Ball(1.0), sets.LinfBall(0.3)))[0])


def test_a_set_whose_point_is_not_the_nearest_is_refused() -> None:
    radial = sets.RadialEllipsoid(np.array([1.0, 2.0, 3.0]), 1.0)
    with pytest.raises(InvalidArgumentError, match=r"RadialEllipsoid.* not the nearest") as seen:
        sets.Intersection(sets.L1Ball(1.0), radial)
    assert "Ellipsoid(weights, radius)" in seen.value.cure
