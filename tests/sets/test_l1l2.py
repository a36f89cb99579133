"""The L1,2 ball, against the threshold of the group norms found by bisection in extended precision."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.sets import squares
from tests.sets.small import Array, adversaries, both, check, drawn, normal, wide

ADVERSARIES = adversaries()
SHARES = (1e-9, 0.02, 0.4, 0.9, 1 - 1e-9, 1.5)


def norm_sum(groups: Sequence[Array]) -> Any:
    return sum(_norm(np.ravel(g)) for g in groups)


def _norm(v: Array) -> Any:
    top = np.max(np.abs(v), initial=np.longdouble(0))
    return top * np.sqrt(np.sum((v / top) ** 2)) if top else top


def expected(groups: Sequence[Array], radius: float) -> list[Array]:
    """θ by bisection."""
    lengths = [_norm(np.ravel(g)) for g in groups]
    low, high = np.longdouble(0), max(lengths)
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if sum(max(n - theta, 0) for n in lengths) > radius else (low, theta)
    return [g * (max(n - high, 0) / n if n else n) for g, n in zip(groups, lengths, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_the_nearest_point(seed: int) -> None:
    grads = drawn(seed)
    reach = float(norm_sum(wide(grads)))
    largest = max(float(np.max(np.abs(g), initial=0)) for g in grads)
    radius = reach * np.random.default_rng(seed).uniform(0.01, 1.1)
    made = check(grads, sets.L1L2Ball(radius), lambda y: norm_sum(y) / np.longdouble(radius))
    if reach > radius:
        for y, best in zip(made, expected(wide(grads), radius), strict=True):
            assert np.max(np.abs(y - best), initial=0) <= 2.0**-44 * largest


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_point_by_another_solver(seed: int) -> None:
    """Of two groups that both stay: where one vanishes, its norm has no gradient."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    groups = [rng.standard_normal(3) + 2, rng.standard_normal(4) - 2]
    radius = float(norm_sum(groups)) * 0.7
    flat = np.concatenate(groups)
    bound = {
        "type": "ineq",
        "fun": lambda y: radius - np.linalg.norm(y[:3]) - np.linalg.norm(y[3:]),
        "jac": lambda y: -np.r_[y[:3] / np.linalg.norm(y[:3]), y[3:] / np.linalg.norm(y[3:])],
    }
    best = optimize.minimize(
        lambda y: 0.5 * np.sum((y - flat) ** 2), 0.5 * flat, jac=lambda y: y - flat, method="SLSQP",
        constraints=[bound], options={"ftol": 1e-17, "maxiter": 500},
    )  # fmt: skip
    made, _ = both(groups, sets.L1L2Ball(radius))
    assert np.max(np.abs(np.concatenate(made) - best.x)) <= 1e-8


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", ADVERSARIES)
def test_adversaries(case: str, share: float) -> None:
    grads = ADVERSARIES[case]
    radius = float(min(norm_sum(wide(grads)) * share, 1.7e308))
    rounded = None if share < 0.99 else 1.0  # what is moved is less than the rounding of the elements
    check(grads, sets.L1L2Ball(radius), lambda y: norm_sum(y) / np.longdouble(radius), rounded)


@pytest.mark.parametrize("dtypes", [["float16"], ["float32"], ["float16", "float32", "float64"]])
@pytest.mark.parametrize("seed", range(6))
def test_every_dtype(dtypes: list[str], seed: int) -> None:
    grads = drawn(seed, dtypes)
    radius = float(norm_sum(wide(grads))) * 0.4
    made, info = both(grads, sets.L1L2Ball(radius))
    for y, best in zip(made, expected(wide(grads), radius), strict=True):
        roundoff, smallest = np.finfo(y.dtype).eps, np.finfo(y.dtype).smallest_subnormal
        assert (
            np.abs(y - best) <= roundoff * np.abs(best) + 2.0**-23 * np.max(np.abs(best), initial=0) + smallest
        ).all()
    assert info.certificate is not None
    assert info.certificate.optimality <= 2.0**-8


def test_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grads = [normal(40).astype(ml_dtypes.bfloat16), normal(30, seed=1)]
    made, _ = both(grads, sets.L1L2Ball(3.0))
    assert made[0].dtype == ml_dtypes.bfloat16
    for y, best, roundoff in zip(made, expected(wide(grads), 3.0), (2.0**-8, 2.0**-23), strict=True):
        assert (np.abs(wide([y])[0] - best) <= roundoff * np.abs(best)).all()


# ---- groups ----------------------------------------------------------------------------------------


def test_axis_makes_the_groups_that_adaptive_clip_makes() -> None:
    grads = [normal(4, 3, 2), normal(5, seed=1), normal(2, 6, seed=2)]
    for axis, units in (
        (None, [[g] for g in grads]),
        ("all_but_first", [list(grads[0]), [grads[1]], list(grads[2])]),
        ("all_but_last", [list(np.moveaxis(grads[0], 2, 0)), [grads[1]], list(grads[2].T)]),
        (1, [[grads[0][i, :, k] for i in range(4) for k in range(2)], [grads[1]], list(grads[2])]),
        ((0, -1), [list(np.moveaxis(grads[0], 1, 0)), [grads[1]], [grads[2]]]),
        (lambda path, shape: 0 if path == "2" else None, [[grads[0]], [grads[1]], list(grads[2].T)]),
    ):
        flat = [unit for of_array in units for unit in of_array]
        radius = float(norm_sum(wide(flat))) * 0.3
        made, _ = both(grads, sets.L1L2Ball(radius, axis))
        best = expected(wide(flat), radius)
        kept = sorted(float(_norm(np.ravel(g))) for g in best)
        _, info = gc.clip_by_projection(flat, sets.L1L2Ball(radius))
        assert info.certificate is not None
        ours, _ = gc.clip_by_projection(flat, sets.L1L2Ball(radius))
        assert np.allclose(np.sort(np.concatenate([np.ravel(y) for y in made])),
                           np.sort(np.concatenate([np.ravel(y) for y in ours])), rtol=1e-13, atol=1e-14)  # fmt: skip
        assert np.allclose(sorted(float(_norm(np.ravel(y))) for y in ours), kept, rtol=1e-13, atol=1e-14)


def test_a_matrix_in_fortran_order_and_a_strided_one() -> None:
    w = normal(6, 8)
    onto = sets.L1L2Ball(4.0, "all_but_first")
    plain, _ = both([w], onto)
    lying, _ = both([np.asfortranarray(w)], onto)
    strided, _ = gc.clip_by_projection([np.repeat(w, 2, axis=1)[:, ::2]], onto)
    assert (lying[0] == plain[0]).all()
    assert (strided[0] == plain[0]).all()


def test_weak_groups_vanish_and_the_direction_of_the_others_stays() -> None:
    grads = [np.array([3.0, 4.0]), np.array([0.5, 0.0])]
    made, _ = both(grads, sets.L1L2Ball(2.0))
    assert made[0] == pytest.approx([1.2, 1.6], rel=1e-13)
    assert made[1].tolist() == [0.0, 0.0]


def test_one_group_is_the_l2_ball() -> None:
    grads = [normal(300)]
    made, _ = both(grads, sets.L1L2Ball(2.0))
    assert np.allclose(made[0], gc.clip_by_projection(grads, sets.L2Ball(2.0))[0][0], rtol=1e-13, atol=0)


def test_groups_of_one_element_are_the_l1_ball() -> None:
    w = normal(30, 2)
    made, _ = both([w], sets.L1L2Ball(9.0, axis=()))
    assert np.allclose(made[0], gc.clip_by_projection([w], sets.L1Ball(9.0))[0][0], rtol=1e-12, atol=1e-14)


def test_many_groups() -> None:
    w = normal(700, 9, dtype="f4")
    radius = float(norm_sum(wide(list(w)))) * 0.2
    made, _ = both([w], sets.L1L2Ball(radius, "all_but_first"))
    for y, best in zip(made[0], expected(wide(list(w)), radius), strict=True):
        assert np.allclose(y, best.astype(float), rtol=2.0**-22, atol=1e-6)


def test_scopes() -> None:
    grads = [normal(4, 3), normal(5, seed=1), np.zeros(0)]
    onto = sets.L1L2Ball(1.0, "all_but_first")
    made, _ = both(grads, onto, "array")
    for x, y in zip(grads, made, strict=True):
        assert y.tobytes() == gc.clip_by_projection([x], onto)[0][0].tobytes()
    named = {"a": grads[0], "b": grads[1], "c": grads[2]}
    grouped, _ = gc.clip_by_projection(named, onto, "group", groups={"one": ["a", "c"], "two": ["b"]})
    together, _ = gc.clip_by_projection([grads[0], grads[2]], onto)
    assert grouped["a"].tobytes() == together[0].tobytes()
    assert grouped["b"].tobytes() == made[1].tobytes()


# ---- the boundary ----------------------------------------------------------------------------------


def test_exactly_at_the_boundary_is_inside_and_an_ulp_more_is_not() -> None:
    grads = [np.array([3.0, 4.0]), np.array([5.0, 12.0]), np.array([1.0])]
    assert not both(grads, sets.L1L2Ball(19.0))[1].clipped
    grads[2][0] = np.nextafter(1.0, 2.0)
    assert both(grads, sets.L1L2Ball(19.0))[1].clipped
    assert not both(grads, sets.L1L2Ball(np.nextafter(19.0, 20.0)))[1].clipped


def test_exact_squares() -> None:
    for v in (
        normal(400),
        2.0 ** np.arange(-1074, 1000, 7),
        np.array([5e-324, -1.7e308, 0.0]),
        np.zeros(3),
        np.zeros(0),
    ):
        exact = sum(Fraction(float(x)) ** 2 for x in v)
        assert squares.exact_squares(np.asarray(v, np.float64)) == exact * (1 << squares.SQUARE_UNIT)


def test_a_sum_is_as_near_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no margin for the arithmetic at all, results come out that are outside: it is needed."""
    grads = [normal(5000), normal(4000, seed=1), normal(3000, seed=2)]
    outside = 0
    monkeypatch.setattr("gradclip_core.sets.squares.rounding", lambda view: Fraction(0))
    monkeypatch.setattr("gradclip_core.sets.base.View.aim", lambda view, radius, roundings=None: view.exactly(radius))
    for k in range(40):
        radius = 3.0 + k / 7
        made, _ = gc.clip_by_projection(grads, sets.L1L2Ball(radius))
        outside += bool(norm_sum(wide(made)) > radius)
    assert outside


# ---- the rest --------------------------------------------------------------------------------------


def test_nothing_comes_of_nothing() -> None:
    for grads in ([], [np.zeros((0, 4))], [np.zeros(5), np.zeros((2, 0))]):
        for onto in (sets.L1L2Ball(1.0), sets.L1L2Ball(1.0, "all_but_first")):
            made, info = both(grads, onto)
            assert not info.clipped
            assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]


def test_a_radius_that_no_factor_reaches() -> None:
    made, info = both([np.array([1e300, -3.0])], sets.L1L2Ball(1e-300))
    assert info.clipped
    assert not made[0].any()


def test_inside_writes_nothing() -> None:
    grads = [normal(6, 2), normal(3, seed=1)]
    for x in grads:
        x.flags.writeable = False
    made, info = gc.clip_by_projection(grads, sets.L1L2Ball(100.0, "all_but_last"))
    assert not info.clipped
    assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]


def test_a_loss_scale_changes_no_bit() -> None:
    grads = [normal(50), normal(4, 6, seed=1)]
    onto = sets.L1L2Ball(3.0, "all_but_first")
    plain, info = both(grads, onto)
    made, seen = both([x * 1024 for x in grads], onto, loss_scale=1024.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in plain]
    assert seen.certificate == info.certificate
    unscaled, _ = both([x * (1 / 3.0) for x in grads], onto)
    made, _ = both(grads, onto, loss_scale=3.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in unscaled]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1", None, True])
@pytest.mark.parametrize("onto", [sets.L1L2Ball, sets.L1InfBall])
def test_bad_radii(onto: Any, value: Any) -> None:
    with pytest.raises(gc.InvalidArgumentError, match=f"{onto.__name__}, radius=.*Pass a finite number > 0"):
        onto(value)


@pytest.mark.parametrize("onto", [sets.L1L2Ball, sets.L1InfBall])
def test_bad_axes(onto: Any) -> None:
    for axis in ("rows", 1.5, True, [0], ("a",)):
        with pytest.raises(gc.InvalidArgumentError, match=r"axis=.*neither axes.*Pass the axes to reduce over"):
            onto(1.0, axis)
    grads = [np.full((2, 3), 30.0)]
    more: list[Any] = [2, (0, 0), lambda path, shape: "rows", lambda path, shape: -3]
    for axis in more:
        with pytest.raises(gc.InvalidArgumentError, match=r"axis=.*Pass the axes to reduce over"):
            gc.clip_by_projection_(grads, onto(1.0, axis))
    assert (grads[0] == 30).all()


@pytest.mark.parametrize("onto", [sets.L1L2Ball(1.0, 0), sets.L1InfBall(1.0, 0), sets.L1capL2(1.0, 0.5)])
def test_complex_and_nonfinite_gradients_are_refused(onto: sets.Set) -> None:
    grads = [np.full((2, 3), 30.0), np.array([1.0, np.nan])]
    with pytest.raises(gc.NonFiniteGradientError):
        gc.clip_by_projection_(grads, onto)
    assert (grads[0] == 30).all()
    with pytest.raises(gc.UnsupportedArrayError, match="complex"):
        gc.clip_by_projection_([np.full(3, 30 + 1j)], onto)
    made, _ = both([np.array([np.nan, 3.0]), np.array([np.inf, 1.0])], onto, nonfinite="propagate")
    assert all(np.isnan(y).all() for y in made)
    made, _ = both([np.array([np.nan, 3.0])], onto, nonfinite="sanitize")
    assert made[0].tobytes() == both([np.array([0.0, 3.0])], onto)[0][0].tobytes()
