"""The L1,inf ball, against levels found by bisection in extended precision, and against a QP solver."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.protocol import FloatArray
from gradclip_core.sets.levels import READINGS, find_levels
from tests.sets.small import Array, adversaries, both, check, drawn, normal, wide
from tests.sets.test_l1 import slow_for_michelot

ADVERSARIES = adversaries()
SHARES = (1e-9, 0.02, 0.4, 0.9, 1 - 1e-9, 1.5)


def top(group: Array) -> Any:
    return np.max(np.abs(group), initial=np.longdouble(0))


def top_sum(groups: Sequence[Array]) -> Any:
    return sum(top(g) for g in groups)


def level(falling: Array, theta: Any) -> Any:
    """The μ of one group, whose magnitudes are sorted."""
    if falling.sum() <= theta:
        return np.longdouble(0)
    levels = (np.cumsum(falling) - theta) / np.arange(1, falling.size + 1)
    return levels[np.flatnonzero(falling >= levels)[-1]]


def expected(groups: Sequence[Array], radius: float) -> list[Array]:
    """θ by bisection, each level by sorting."""
    falling = [np.sort(np.abs(np.ravel(g)))[::-1] for g in groups]
    low, high = np.longdouble(0), max(f.sum() for f in falling)
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if sum(level(f, theta) for f in falling) > radius else (low, theta)
    levels = [level(f, high) for f in falling]
    return [np.clip(g, -mu, mu) for g, mu in zip(groups, levels, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_the_nearest_point(seed: int) -> None:
    grads = drawn(seed)
    reach = float(top_sum(wide(grads)))
    largest = max(float(top(g)) for g in grads)
    radius = reach * np.random.default_rng(seed).uniform(0.01, 1.1)
    made = check(grads, sets.L1InfBall(radius), lambda y: top_sum(y) / np.longdouble(radius))
    if reach > radius:
        for y, best in zip(made, expected(wide(grads), radius), strict=True):
            assert np.max(np.abs(y - best), initial=0) <= 2.0**-48 * largest


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_point_by_a_qp_solver(seed: int) -> None:
    """Over y and a bound for each group, under linear inequalities alone."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    groups = [rng.standard_normal(3) * 3, rng.standard_normal(4), rng.standard_normal(2) * 0.1]
    flat, ids = np.concatenate(groups), np.repeat([0, 1, 2], [3, 4, 2])
    radius = float(top_sum(groups)) * rng.uniform(0.1, 0.9)
    bound = np.eye(3)[ids]
    rows = np.block([[-np.eye(9), bound], [np.eye(9), bound], [np.zeros((1, 9)), -np.ones((1, 3))]])
    least = np.r_[np.zeros(18), -radius]
    best = optimize.minimize(
        lambda v: 0.5 * np.sum((v[:9] - flat) ** 2), np.r_[np.zeros(9), np.full(3, radius / 4)],
        jac=lambda v: np.r_[v[:9] - flat, np.zeros(3)], method="SLSQP",
        constraints=[{"type": "ineq", "fun": lambda v: rows @ v - least, "jac": lambda v: rows}],
        options={"ftol": 1e-17, "maxiter": 500},
    )  # fmt: skip
    made, _ = both(groups, sets.L1InfBall(radius))
    assert np.max(np.abs(np.concatenate(made) - best.x[:9])) <= 1e-8


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", ADVERSARIES)
def test_adversaries(case: str, share: float) -> None:
    grads = ADVERSARIES[case]
    radius = float(min(top_sum(wide(grads)) * share, 1.7e308))
    rounded = None if share < 0.9 else 1.0  # what is moved is little beside the rounding of the elements
    check(grads, sets.L1InfBall(radius), lambda y: top_sum(y) / np.longdouble(radius), rounded)


@pytest.mark.parametrize("share", [1e-250, 1e-100, 1e-17])
@pytest.mark.parametrize("case", ["all equal", "equal groups", "one huge", "over 20 decades"])
def test_a_radius_far_below_the_elements(case: str, share: float) -> None:
    """Σ |g_i| of groups tie but for less than a rounding: the radius is used up all the same."""
    grads = ADVERSARIES[case]
    radius = float(top_sum(wide(grads)) * share)
    check(grads, sets.L1InfBall(radius), lambda y: top_sum(y) / np.longdouble(radius))


@pytest.mark.parametrize("dtypes", [["float16"], ["float32"], ["float16", "float32", "float64"]])
@pytest.mark.parametrize("seed", range(6))
def test_every_dtype(dtypes: list[str], seed: int) -> None:
    grads = drawn(seed, dtypes)
    radius = float(top_sum(wide(grads))) * 0.4
    largest = max(float(top(g)) for g in wide(grads))
    made, _ = both(grads, sets.L1InfBall(radius))
    for y, best in zip(made, expected(wide(grads), radius), strict=True):
        roundoff, smallest = np.finfo(y.dtype).eps, np.finfo(y.dtype).smallest_subnormal
        assert (np.abs(y - best) <= roundoff * np.abs(best) + 2.0**-23 * largest + smallest).all()


def test_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grads = [normal(40).astype(ml_dtypes.bfloat16), normal(30, seed=1)]
    made, _ = both(grads, sets.L1InfBall(1.0))
    assert made[0].dtype == ml_dtypes.bfloat16
    for y, best, roundoff in zip(made, expected(wide(grads), 1.0), (2.0**-8, 2.0**-22), strict=True):
        assert (np.abs(wide([y])[0] - best) <= roundoff * np.abs(best) + 2.0**-30).all()


# ---- groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["all_but_first", "all_but_last", 0, 1, (0, 1), None])
def test_units_of_a_matrix(axis: Any) -> None:
    w, b = normal(6, 9), normal(4, seed=1)
    units = {"all_but_first": list(w), 1: list(w), "all_but_last": list(w.T), 0: list(w.T)}.get(axis, [w])
    radius = float(top_sum([*units, b])) * 0.3
    best = expected(wide([*units, b]), radius)
    made, _ = both([w, b], sets.L1InfBall(radius, axis))
    stacked = np.array(best[:-1]).reshape(len(units), -1)
    ours = made[0].T if len(units) == 9 else made[0]
    assert np.allclose(ours.reshape(len(units), -1), stacked.astype(float), rtol=0, atol=1e-14)
    assert np.allclose(made[1], best[-1].astype(float), rtol=0, atol=1e-14)
    lying, _ = both([np.asfortranarray(w), b], sets.L1InfBall(radius, axis))
    assert np.allclose(lying[0], made[0], rtol=0, atol=1e-14)


def test_one_group_is_the_linf_ball() -> None:
    grads = [normal(300)]
    made, _ = both(grads, sets.L1InfBall(0.5))
    assert np.allclose(made[0], np.clip(grads[0], -0.5, 0.5), rtol=2.0**-50, atol=0)


def test_groups_of_one_element_are_the_l1_ball() -> None:
    w = normal(30, 2)
    made, _ = both([w], sets.L1InfBall(9.0, axis=()))
    assert np.allclose(made[0], gc.clip_by_projection([w], sets.L1Ball(9.0))[0][0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("share", [0.03, 0.4, 0.97])
def test_many_groups(share: float) -> None:
    w = normal(500, 13, dtype="f4") * np.exp(normal(500, 1, seed=1)).astype("f4")
    radius = float(top_sum(list(w))) * share
    made, info = both([w], sets.L1InfBall(radius, "all_but_first"))
    for y, best in zip(made[0], expected(wide(list(w)), radius), strict=True):
        assert np.allclose(y, best.astype(float), rtol=2.0**-22, atol=2e-6)
    assert info.certificate is not None
    assert info.certificate.optimality <= 1e-4


def test_scopes() -> None:
    grads = [normal(4, 3), normal(5, seed=1), np.zeros(0)]
    onto = sets.L1InfBall(1.0, "all_but_first")
    made, _ = both(grads, onto, "array")
    for x, y in zip(grads, made, strict=True):
        assert y.tobytes() == gc.clip_by_projection([x], onto)[0][0].tobytes()
    named = dict(zip("abc", grads, strict=True))
    grouped, _ = gc.clip_by_projection(named, onto, "group", groups={"one": ["a", "c"], "two": ["b"]})
    assert grouped["a"].tobytes() == made[0].tobytes()
    assert grouped["b"].tobytes() == made[1].tobytes()


# ---- Newton's method -------------------------------------------------------------------------------


def readings(groups: Sequence[Array], radius: float) -> tuple[FloatArray, int]:
    """The levels, and how many readings they took."""
    count = 0

    def read(levels: FloatArray) -> tuple[FloatArray, FloatArray]:
        nonlocal count
        count += 1
        rest = [np.maximum(np.abs(g) - mu, 0) for g, mu in zip(groups, levels, strict=True)]
        return np.array([r.sum() for r in rest]), np.array([np.count_nonzero(r) for r in rest], np.float64)

    levels = find_levels(read, np.array([np.abs(g).max() for g in groups]), Fraction(radius))
    return levels, count


SLOW = np.array(slow_for_michelot(100)) - slow_for_michelot(100)[-1]
HARD = {
    "normal": [normal(1000, seed=k) for k in range(20)],
    "Cauchy": [np.random.default_rng(k).standard_cauchy(1000) for k in range(20)],
    "geometric": [2.0 ** np.arange(-300, 300) * k for k in (1.0, 1.5, 2.0)],
    "slow for Michelot": [SLOW * 2.0**k for k in range(-5, 6)],
    "slow, of two lengths": [SLOW, 3 * SLOW[:50], 1e-9 * SLOW],
    "ties": [np.repeat([1.0, 2.0, 3.0], 50), np.repeat([1.0, 2.0, 3.0], 20)],
}


@pytest.mark.parametrize("share", [1e-15, 1e-9, 1e-4, 0.1, 0.5, 0.9, 0.9999, 1 - 1e-12])
@pytest.mark.parametrize("case", HARD)
def test_few_readings_whatever_the_values(case: str, share: float) -> None:
    groups = HARD[case]
    radius = float(sum(np.abs(g).max() for g in groups)) * share
    levels, count = readings(groups, radius)
    assert count <= 15 < READINGS
    assert sum(map(Fraction, levels.tolist())) <= Fraction(radius)
    assert levels.sum() >= radius * (1 - 2.0**-45)
    lost = np.array([np.maximum(np.abs(g) - mu, 0).sum() for g, mu in zip(groups, levels, strict=True)])
    size = max(float(np.abs(g).sum()) for g in groups)
    assert (np.abs(lost[levels > 0] - lost.max()) <= 2.0**-40 * size).all()  # θ, the same for all
    assert (lost[levels == 0] <= lost.max() + 2.0**-40 * size).all()


# ---- the rest --------------------------------------------------------------------------------------


def test_exactly_at_the_boundary_is_inside_and_an_ulp_more_is_not() -> None:
    grads = [np.array([0.1, -0.3]), np.array([0.5]), np.array([0.0, 0.25])]
    exact = Fraction(0.3) + Fraction(0.5) + Fraction(0.25)
    inside = float(exact) if Fraction(float(exact)) >= exact else float(np.nextafter(float(exact), 2))
    assert not both(grads, sets.L1InfBall(inside))[1].clipped
    assert both(grads, sets.L1InfBall(float(np.nextafter(inside, 0))))[1].clipped


def test_nothing_comes_of_nothing() -> None:
    for grads in ([], [np.zeros((0, 4))], [np.zeros(5), np.zeros((2, 0))]):
        for onto in (sets.L1InfBall(1.0), sets.L1InfBall(1.0, "all_but_first")):
            made, info = both(grads, onto)
            assert not info.clipped
            assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]


def test_a_radius_that_is_lost_beside_the_elements() -> None:
    made, info = both([np.array([1e300, -3.0]), np.array([1e299])], sets.L1InfBall(1e-300))
    assert info.clipped
    assert not any(y.any() for y in made)


def test_inside_writes_nothing() -> None:
    grads = [normal(6, 2), normal(3, seed=1)]
    for x in grads:
        x.flags.writeable = False
    made, info = gc.clip_by_projection(grads, sets.L1InfBall(100.0, "all_but_last"))
    assert not info.clipped
    assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]


def test_a_loss_scale_changes_no_bit() -> None:
    grads = [normal(50), normal(4, 6, seed=1)]
    onto = sets.L1InfBall(1.5, "all_but_first")
    plain, info = both(grads, onto)
    made, seen = both([x * 1024 for x in grads], onto, loss_scale=1024.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in plain]
    assert seen.certificate == info.certificate
    unscaled, _ = both([x * (1 / 3.0) for x in grads], onto)
    made, _ = both(grads, onto, loss_scale=3.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in unscaled]
