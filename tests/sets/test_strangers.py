"""What a reader of the docs alone ran into: gradients far out, tied arrays, chains, and sentences that misled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import says

from .test_project_rule import certificate

project = gc.clip_by_projection
ONES, MATRIX = np.ones(3), np.array([[1.0, 2.0], [3.0, 4.0]])


def length(*arrays: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(x, np.longdouble))) for x in arrays)))


# ---- far out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sets.Ellipsoid, sets.RadialEllipsoid])
@pytest.mark.parametrize("scale", [1e120, 1e150, 1e160, 1e200, 1e290, 1e308])
def test_ellipsoids_meet_their_boundary_from_afar(kind: Any, scale: float, backend: str) -> None:
    w = np.array([1.0, 2.0, 3.0])
    y, info = project(np.array([1.0, -0.5, 0.3]) * scale, kind(w, 1.0), backend=backend)
    norm = np.linalg.norm(np.sqrt(w.astype(np.longdouble)) * y)
    assert 1 - 2.0**-44 <= norm <= 1
    assert certificate(info).feasibility == 0
    assert certificate(info).moved == pytest.approx(length(np.array([1.0, -0.5, 0.3])) * scale)
    assert info.clipped_norm == pytest.approx(length(y), rel=1e-14)
    if kind is sets.Ellipsoid:
        assert certificate(info).optimality < 1e-13
        np.testing.assert_allclose(y * w, y[0] * np.array([1.0, -0.5, 0.3]), rtol=1e-12)


def test_an_ellipsoid_of_a_tiny_radius() -> None:
    y, info = project(np.array([3.0, 4.0]), sets.Ellipsoid(np.ones(2), 1e-300))
    np.testing.assert_allclose(y, [6e-301, 8e-301], rtol=1e-12)
    assert certificate(info).optimality < 1e-13
    assert not project(np.array([3e300, 4e300]), sets.Ellipsoid(np.ones(2), 1e-300))[0].any()  # as documented


def test_an_ellipsoid_in_an_intersection_from_afar() -> None:
    onto = sets.Intersection(sets.Ellipsoid(np.ones(2), 1.0), sets.LinfBall(0.5))
    assert np.abs(project(np.array([1e120, 1.0]), onto)[0]).max() <= 0.5 * (1 + 1e-9)


FAR = [
    sets.SpectralBall(1.0),
    sets.SpectralBall(1.0, "newton_schulz"),
    sets.NuclearBall(1.0),
    sets.L1InfBall(1.0),
    sets.L1InfBall(1.0, axis=1),
    sets.L1L2Ball(1.0),
    sets.L1L2Ball(1.0, axis=1),
    sets.L1capL2(1.2, 1.0),
    sets.L1Ball(1.0),
]


@pytest.mark.parametrize("onto", FAR, ids=repr)
@pytest.mark.parametrize("scale", [1e170, 1e200, 1e307])
def test_norms_of_what_came_from_afar(onto: sets.Set, scale: float) -> None:
    grads = [MATRIX * scale, MATRIX]
    made, info = project(grads, onto)
    norm = info.clipped_norm
    expected = sum(np.abs(y).sum() for y in made) if isinstance(onto, sets.L1Ball) else length(*made)
    assert norm == pytest.approx(expected, rel=1e-13)
    assert norm > 0.1
    assert certificate(info).optimality < 1e-9
    assert gc.plan(grads, gc.Project(onto)).info == info
    copies = [g.copy() for g in grads]
    assert gc.clip_by_projection_(copies, onto) == info
    assert [y.tobytes() for y in copies] == [y.tobytes() for y in made]


@pytest.mark.parametrize(
    "onto",
    [sets.Ellipsoid(ONES, 1.0), sets.RadialEllipsoid(ONES, 1.0), *FAR[3:]],
    ids=repr,
)
def test_sanitized_infinities_leave_something(onto: Any) -> None:
    made, info = project(np.array([np.inf, 3.0, np.nan]), onto, nonfinite="sanitize")
    assert made[0] == pytest.approx(1.0)
    assert certificate(info).optimality < 1e-9


def test_matrices_of_radii_that_are_none_beside_them() -> None:
    for method in sets.matrices.METHODS:
        y, info = project(np.eye(2) * 1e160, sets.SpectralBall(1e-310, method))
        assert not y.any()
        assert certificate(info).feasibility == 0


@pytest.mark.parametrize("scale", [1e8, 1e12, 1e16, 1e30, 1e150, 1e300])
def test_matrix_products_stay_inside_from_afar(scale: float) -> None:
    rng = np.random.default_rng(0)
    for matrix in (np.eye(3), rng.standard_normal((8, 5)), rng.standard_normal((4, 9)), np.ones((6, 4))):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        rank = int((s > 1e-9).sum())
        y, info = project(matrix * scale, sets.SpectralBall(1.0, "newton_schulz"))
        assert np.linalg.norm(y, 2) <= 1
        assert certificate(info).feasibility == 0
        assert np.abs(u[:, :rank].T @ y @ v[:rank].T - np.eye(rank)).max() < 1e-9
    spread = np.diag([1e20, 1.3e20, 3.0, 0.25])
    y, _ = project(spread, sets.SpectralBall(1.0, "newton_schulz"))
    np.testing.assert_allclose(y, np.diag([1.0, 1.0, 1.0, 0.25]), atol=1e-9)


def test_matrix_products_in_float32_before_they_are_rounded() -> None:
    matrix = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    u, s, v = np.linalg.svd(matrix.astype(float), full_matrices=False)
    y, _ = project(matrix, sets.SpectralBall(1.0, "newton_schulz"))
    rounding = 2.0**-24 * np.linalg.norm(y)
    assert np.linalg.norm(y - (u * np.minimum(s, 1)) @ v, 2) <= 2.0**-22 + 2.0**-42 * s[0] + rounding


# ---- tied arrays -------------------------------------------------------------------------------------


def test_a_tied_gradient_has_one_normal_and_one_weight() -> None:
    z, one, other = np.array([3.0, 1.0]), np.array([1.0, 0.5]), np.array([0.5, 1.0])
    grads = {"a": z, "b": z}
    made, _ = project(grads, sets.HalfSpace({"a": one, "b": one}, 0.0))
    assert made["a"] is made["b"]
    for kind, what in ((sets.HalfSpace, "a"), (sets.Ellipsoid, "weights")):
        with says(gc.InvalidArgumentError, "gradient 'b': it is the same array as 'a'", f"in {what} there is another"):
            project(grads, kind({"a": one, "b": other}, 1.0))
        with says(gc.InvalidArgumentError, "gradient 'b'", "nothing at 'b'", "Put the same array at both paths"):
            project(grads, kind({"a": one}, 1.0))
    assert z.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("groups", [{"x": ["a", "b"]}, {"x": ["a"], "y": ["b"]}])
def test_groups_that_name_a_tied_gradient_twice(groups: Any) -> None:
    z = np.ones(2)
    with says(gc.InvalidArgumentError, "'b' is the same array as 'a'", "Name it by its first path, 'a'"):
        gc.clip_by_group_norm({"a": z, "b": z}, 1.0, groups=groups)


# ---- what info says ----------------------------------------------------------------------------------


def test_both_norms_of_a_chain_are_of_one_kind(backend: str) -> None:
    g = np.array([0.3, 0.4])
    for rules in ((gc.GlobalNorm(5.0), gc.Project(sets.L1Ball(2.0))), (gc.GlobalNorm(5.0), gc.GlobalNorm(5.0, 1))):
        for info in (gc.clip(g, gc.Chain(*rules), backend=backend)[1], gc.plan(g, gc.Chain(*rules)).info):
            assert (info.clipped, info.norm, info.clipped_norm) == (False, 0.5, 0.5)
    info = gc.clip(g, gc.Chain(gc.Project(sets.L1Ball(2.0)), gc.GlobalNorm(5.0)), backend=backend)[1]
    assert [info.norm, info.clipped_norm] == pytest.approx([0.7, 0.7])
    assert gc.Chain(gc.GlobalNorm(5.0, 1), gc.GlobalNorm(5.0)).order == 1


# ---- sentences ---------------------------------------------------------------------------------------


def test_sentences() -> None:
    with says(gc.UnsupportedArrayError, "HalfSpace, a", "int64", "one of bfloat16, float16, float32, float64"):
        project(ONES, sets.HalfSpace(np.ones(3, int), 0.0))
    with says(gc.InvalidArgumentError, "the gradient is an array alone, and weights a list of arrays"):
        project(ONES, sets.Ellipsoid([ONES], 1.0))
    with says(gc.InvalidArgumentError, "the gradients are a list of arrays, and weights an array alone"):
        project([ONES], sets.Ellipsoid(ONES, 1.0))
    for onto in (sets.SpectralBall(1.0), sets.NuclearBall(1.0)):
        with says(gc.UnsupportedArrayError, "it is complex, and projections other than on L2Ball are for real arrays"):
            project(np.eye(2, dtype=complex), onto)
    calls: list[Any] = [gc.clip, gc.plan, lambda g, rule: gc.Chain(rule)]
    for call in calls:
        with says(gc.InvalidArgumentError, "an L1Ball is no rule but a set", "Pass Project(L1Ball(radius=1.0))"):
            call(ONES, sets.L1Ball(1.0))
        with says(gc.InvalidArgumentError, "an int is no rule"):
            call(ONES, 3)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (3, 1, ("Box(3, 1)", "low is not <= high")),
        (None, 1, ("Box, low=None",)),
        (np.zeros(2), np.ones(2), ("Box, low=", "shape (2,)")),
        (-np.inf, np.inf, ("Box(-inf, inf)",)),
    ],
)
def test_boxes_that_are_none(low: Any, high: Any, words: tuple[str, ...]) -> None:
    with says(gc.InvalidArgumentError, *words, "Pass two numbers, low <= high", "Box(-math.inf, 1.0)"):
        sets.Box(low, high)


def test_reprs_show_shapes_and_no_values() -> None:
    assert repr(sets.HalfSpace({"w": ONES}, 2.0)) == "HalfSpace(a=<w: (3,)>, b=2.0)"
    assert repr(sets.Hyperplane(ONES)) == "Hyperplane(a=<array of shape (3,)>, b=0.0)"
    assert repr(sets.Ellipsoid([ONES] * 6, 1.0)) == (
        "Ellipsoid(weights=<0: (3,), 1: (3,), 2: (3,), 3: (3,), and 2 more>, radius=1.0)"
    )
    assert repr(sets.RadialEllipsoid(3.0, 1.0)).startswith("RadialEllipsoid(weights=<")
