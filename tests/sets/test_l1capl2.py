"""The intersection of an L1 and an L2 ball, against two bisections in extended precision, and an NLP solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import Buffer, FloatArray
from gradclip_core.reference_forms import NumpyPasses
from tests.sets.small import Array, Gauge, adversaries, both, check, drawn, normal, wide
from tests.sets.test_l1 import slow_for_michelot

ADVERSARIES = adversaries()


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.zeros(0), *(np.ravel(x) for x in wide(arrays))])


def length(v: Array) -> Any:
    top = np.max(np.abs(v), initial=np.longdouble(0))
    return top * np.sqrt(np.sum((v / top) ** 2)) if top else top


def gauge(onto: sets.L1capL2) -> Gauge:
    def reach(arrays: Sequence[Array]) -> Any:
        v = flat(arrays)
        return max(np.sum(np.abs(v)) / np.longdouble(onto.radius1), length(v) / np.longdouble(onto.radius2))

    return reach


def soft(v: Array, tau: Any) -> Array:
    found: Array = np.sign(v) * np.maximum(np.abs(v) - tau, 0)
    return found


def halves(outside: Any, high: Any) -> Any:
    """The least t in [0, high] that is not outside."""
    low = np.longdouble(0)
    if not outside(low):
        return low
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if outside(middle) else (low, middle)
    return high


def expected(v: Array, radius1: float, radius2: float) -> Array:
    """For each multiplier of the L2 bound the point that meets it, and the least τ for which it meets the L1 bound."""

    def point(tau: Any) -> Array:
        y = soft(v, tau)
        size = length(y)
        return y * min(radius2 / size, 1) if size else y

    return point(halves(lambda tau: np.sum(np.abs(point(tau))) > radius1, np.max(np.abs(v))))


def which(v: Array, radius1: float, radius2: float) -> str:
    """Which of the bounds is at work."""
    y = expected(v, radius1, radius2)
    one, two = np.sum(np.abs(y)) >= radius1 * (1 - 1e-12), length(y) >= radius2 * (1 - 1e-12)
    return "both" if one and two else "one" if one else "two" if two else "none"


SHARES = [(0.5, 0.5), (0.05, 0.2), (0.1, 0.9), (0.9, 0.1), (0.6, 0.7), (0.3, 0.4), (1.2, 0.8), (0.7, 1.2), (1.1, 1.1)]


def of_shares(v: Array, shares: tuple[float, float]) -> sets.L1capL2:
    most = 1.7e308
    one, two = (min(float(n), most) for n in (np.sum(np.abs(v)), length(v)))
    return sets.L1capL2(one * shares[0] if shares[0] < 1 else min(one, most / 2) * shares[0],
                        two * shares[1] if shares[1] < 1 else min(two, most / 2) * shares[1])  # fmt: skip


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_point(seed: int, shares: tuple[float, float]) -> None:
    grads = drawn(seed)
    v = flat(grads)
    onto = of_shares(v, shares)
    made = check(grads, onto, gauge(onto))
    assert np.max(np.abs(flat(made) - expected(v, onto.radius1, onto.radius2))) <= 2.0**-44 * np.max(np.abs(v))


def test_every_case_is_met() -> None:
    """Or the test above would say little."""
    seen = [which(flat(drawn(seed)), onto.radius1, onto.radius2)
            for seed in range(12) for onto in [of_shares(flat(drawn(seed)), s) for s in SHARES]]  # fmt: skip
    assert all(seen.count(case) >= 10 for case in ("none", "one", "two", "both"))


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_point_by_another_solver(seed: int) -> None:
    """Over the magnitudes, which are not negative: the signs are those of g, for the set is symmetric."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(6) * 2
    onto, size = of_shares(v, (rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8))), np.abs(v)
    one = {"type": "ineq", "fun": lambda z: onto.radius1 - z.sum(), "jac": lambda z: -np.ones(6)}
    two = {"type": "ineq", "fun": lambda z: onto.radius2**2 - z @ z, "jac": lambda z: -2 * z}
    best = optimize.minimize(
        lambda z: 0.5 * np.sum((z - size) ** 2), 0.1 * size, jac=lambda z: z - size, method="SLSQP",
        bounds=[(0, None)] * 6, constraints=[one, two], options={"ftol": 1e-18, "maxiter": 1000},
    )  # fmt: skip
    made, _ = both([v], onto)
    assert np.max(np.abs(made[0] - np.sign(v) * best.x)) <= 1e-8


@pytest.mark.parametrize(
    "shares", [(1e-9, 0.5), (0.02, 0.05), (0.4, 0.5), (0.9, 0.2), (0.2, 0.9), (1 - 1e-9, 1 - 1e-9)]
)
@pytest.mark.parametrize("case", ADVERSARIES)
def test_adversaries(case: str, shares: tuple[float, float]) -> None:
    grads = ADVERSARIES[case]
    onto = of_shares(flat(grads), shares)
    check(grads, onto, gauge(onto), None if shares[0] < 0.99 else 1.0)  # rounding is more than what is moved


@pytest.mark.parametrize("dtypes", [["float16"], ["float32"], ["float16", "float32", "float64"]])
@pytest.mark.parametrize("seed", range(6))
def test_every_dtype(dtypes: list[str], seed: int) -> None:
    grads = drawn(seed, dtypes)
    v = flat(grads)
    for shares in ((0.5, 0.5), (0.1, 0.9), (0.9, 0.1), (0.2, 0.3)):
        onto = of_shares(v, shares)
        made, _ = both(grads, onto)
        best = expected(v, onto.radius1, onto.radius2)
        at = 0
        for y in made:
            here, at = best[at : at + y.size].reshape(y.shape), at + y.size
            roundoff, smallest = np.finfo(y.dtype).eps, np.finfo(y.dtype).smallest_subnormal
            assert (np.abs(y - here) <= roundoff * np.abs(here) + 2.0**-22 * np.max(np.abs(best)) + smallest).all()


def test_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grads = [normal(40).astype(ml_dtypes.bfloat16), normal(30, seed=1)]
    made, _ = both(grads, sets.L1capL2(5.0, 1.0))
    best = expected(flat(grads), 5.0, 1.0)
    assert made[0].dtype == ml_dtypes.bfloat16
    assert (np.abs(flat(made) - best) <= 2.0**-8 * np.abs(best) + 2.0**-22).all()


# ---- its neighbours --------------------------------------------------------------------------------


@pytest.mark.parametrize("radius2", [3.0, 4.0, 1e300])
def test_a_long_second_radius_leaves_the_l1_ball(radius2: float) -> None:
    grads = [normal(50), normal(7, seed=1)]
    made, _ = both(grads, sets.L1capL2(3.0, radius2))
    expected_, _ = gc.clip_by_projection(grads, sets.L1Ball(3.0))
    assert all(np.allclose(y, z, rtol=1e-13, atol=1e-14) for y, z in zip(made, expected_, strict=True))


@pytest.mark.parametrize("radius1", [2.0 * math.sqrt(57), 1e3, 1e300])
def test_a_long_first_radius_leaves_the_l2_ball(radius1: float) -> None:
    grads = [normal(50), normal(7, seed=1)]
    made, _ = both(grads, sets.L1capL2(radius1, 2.0))
    expected_, _ = gc.clip_by_projection(grads, sets.L2Ball(2.0))
    assert all(np.allclose(y, z, rtol=1e-13, atol=0) for y, z in zip(made, expected_, strict=True))


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_equal_elements_at_the_corners_of_both_balls(count: int) -> None:
    """``radius1 = √n·radius2``: the balls touch there, and their ratio is the one that no τ changes."""
    grads = [np.full(count, 3.0)]
    for factor in (1 - 1e-15, 1.0, 1 + 1e-15):
        onto = sets.L1capL2(math.sqrt(count) * factor, 1.0)
        made = check(grads, onto, gauge(onto))
        assert np.allclose(made[0], 1 / math.sqrt(count), rtol=1e-13, atol=0)


def test_scopes() -> None:
    grads = [normal(4, 3), normal(50, seed=1), np.zeros(0)]
    onto = sets.L1capL2(2.0, 0.7)
    made, _ = both(grads, onto, "array")
    for x, y in zip(grads, made, strict=True):
        assert y.tobytes() == gc.clip_by_projection([x], onto)[0][0].tobytes()
    named = dict(zip("abc", grads, strict=True))
    grouped, _ = gc.clip_by_projection(named, onto, "group", groups={"one": ["a", "c"], "two": ["b"]})
    together, _ = gc.clip_by_projection([grads[0], grads[2]], onto)
    assert grouped["a"].tobytes() == together[0].tobytes()
    assert grouped["b"].tobytes() == made[1].tobytes()


# ---- Newton's method -------------------------------------------------------------------------------


class Counting(NumpyPasses):
    """The reference, counting passes."""

    passes = 0

    def map(
        self,
        buffers: Sequence[Buffer],
        out: Sequence[Buffer] | None,
        reading: Reading,
        form: Form,
        moments: Sequence[str],
        *,
        rounded: bool = True,
    ) -> FloatArray:
        Counting.passes += 1
        return super().map(buffers, out, reading, form, moments, rounded=rounded)


SLOW = np.array(slow_for_michelot(140)) - slow_for_michelot(140)[-1]
HARD = {
    "normal": normal(3000),
    "Cauchy": np.random.default_rng(0).standard_cauchy(3000),
    "geometric": 2.0 ** np.arange(-300, 300),
    "slow for Michelot": SLOW,
    "slow, halved": SLOW * 2.0 ** -np.arange(140),
    "ties": np.repeat([1.0, 2.0, 3.0], 50),
    "nearly ties": np.r_[np.full(9, 1.0), np.full(9, np.nextafter(1.0, 0)), np.full(900, 1 - 2.0**-40)],
}


@pytest.mark.parametrize("ratio", [1.0 + 1e-9, 1.1, 1.5, 2.9, 4.3, 9.0, 20.0])
@pytest.mark.parametrize("case", HARD)
def test_few_passes_whatever_the_values(case: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    v = HARD[case]
    small = 0.01 * float(np.max(np.abs(v)))
    onto = sets.L1capL2(small * ratio, small)
    monkeypatch.setattr("gradclip_core.reference_forms.PASSES", Counting())
    Counting.passes = 0
    made, _ = gc.clip_by_projection([v], onto, backend="numpy")
    assert 2 <= Counting.passes <= 25
    assert np.max(np.abs(made[0] - expected(flat([v]), onto.radius1, onto.radius2))) <= 2.0**-40 * np.max(np.abs(v))
    check([v], onto, gauge(onto))


# ---- the rest --------------------------------------------------------------------------------------


def test_exactly_at_the_boundary_is_inside_and_an_ulp_more_is_not() -> None:
    grads = [np.array([3.0, 4.0]), np.array([12.0])]
    assert not both(grads, sets.L1capL2(19.0, 13.0))[1].clipped
    assert both(grads, sets.L1capL2(float(np.nextafter(19.0, 0)), 13.0))[1].clipped
    assert both(grads, sets.L1capL2(19.0, float(np.nextafter(13.0, 0))))[1].clipped
    assert not both([np.array([1.0, 5e-324])], sets.L1capL2(2.0, float(np.nextafter(1.0, 2))))[1].clipped
    assert both([np.array([1.0, 5e-324])], sets.L1capL2(2.0, 1.0))[1].clipped


def test_nothing_comes_of_nothing() -> None:
    for grads in ([], [np.zeros((0, 4))], [np.zeros(5), np.zeros((2, 0))]):
        made, info = both(grads, sets.L1capL2(1.0, 0.5))
        assert not info.clipped
        assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]


@pytest.mark.parametrize("radii", [(1e-300, 1.0), (1.0, 1e-300), (1e-300, 1e-300)])
def test_radii_that_no_factor_reaches(radii: tuple[float, float]) -> None:
    made, info = both([np.array([1e300, -3.0])], sets.L1capL2(*radii))
    assert info.clipped
    assert not made[0].any()


def test_inside_writes_nothing() -> None:
    x = normal(6, 2)
    x.flags.writeable = False
    made, info = gc.clip_by_projection([x], sets.L1capL2(100.0, 50.0))
    assert not info.clipped
    assert made[0].tobytes() == x.tobytes()


def test_a_loss_scale_changes_no_bit() -> None:
    grads = [normal(50), normal(4, 6, seed=1)]
    onto = sets.L1capL2(8.0, 2.0)
    plain, info = both(grads, onto)
    made, seen = both([x * 1024 for x in grads], onto, loss_scale=1024.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in plain]
    assert seen.certificate == info.certificate
    unscaled, _ = both([x * (1 / 3.0) for x in grads], onto)
    made, _ = both(grads, onto, loss_scale=3.0)
    assert [y.tobytes() for y in made] == [y.tobytes() for y in unscaled]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1", None, True])
def test_bad_radii(value: Any) -> None:
    with pytest.raises(gc.InvalidArgumentError, match=r"L1capL2, radius1=.*Pass a finite number > 0"):
        sets.L1capL2(value, 1.0)
    with pytest.raises(gc.InvalidArgumentError, match=r"L1capL2, radius2=.*Pass a finite number > 0"):
        sets.L1capL2(1.0, value)
