"""The L1 ball and the simplex, against the definition in exact rational arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.forms import Form

Array = npt.NDArray[Any]
UNIT = 1 << 1074  # every float64 is a multiple of its inverse


def units(x: Array) -> list[int]:
    """Elements as integers, in units of 2^-1074."""
    return [int(Fraction(float(v)) * UNIT) for v in x.ravel()]


def exact_threshold(elements: list[int], radius: Fraction, signed: bool) -> tuple[Fraction, int]:
    """τ in units, and how many elements are above it: sort, add up, take the last that holds (Duchi 2008)."""
    target = radius * UNIT
    ordered = sorted(elements if signed else map(abs, elements), reverse=True)
    tau, count, total = Fraction(0), 0, 0
    for k, u in enumerate(ordered, 1):
        total += u
        if u * k <= total - target:
            break
        tau, count = (total - target) / k, k
    return (tau, count) if signed else (max(tau, Fraction(0)), count)


def ulp(dtype: np.dtype[Any], y: Fraction) -> Fraction:
    """The distance between neighbouring values at the magnitude of y (units)."""
    info = np.finfo(dtype)
    least = Fraction(float(info.smallest_subnormal)) * UNIT
    if y == 0:
        return least
    exponent = (abs(y).numerator // abs(y).denominator).bit_length() - 1
    return max(least, Fraction(2) ** (exponent - int(info.nmant)))


def shave(arrays: Sequence[Array], radius: Fraction) -> Fraction:
    """By how much the radius aimed at is smaller, as L1Ball's docstring says."""
    narrow, size = any(x.dtype != np.float64 and x.size for x in arrays), sum(x.size for x in arrays)
    part = Fraction(1, 1 << 24) + Fraction(1, 1 << 40) if narrow else Fraction(1, 1 << 51)
    return radius * part + size * Fraction(1, 1 << 150 if narrow else 1 << 1075)


def check(arrays: Sequence[Array], onto: sets.L1Ball | sets.Simplex, backend: str) -> None:
    """One global scope: every element within a rounding of the projection, and the sum where it has to be."""
    made, info = gc.clip_by_projection(list(arrays), onto, backend=backend)
    assert [(y.shape, y.dtype) for y in made] == [(x.shape, x.dtype) for x in arrays]
    signed = isinstance(onto, sets.Simplex)
    radius = Fraction(onto.total if isinstance(onto, sets.Simplex) else onto.radius)
    elements = [u for x in arrays for u in units(x)]
    roundoff = max(float(np.finfo(x.dtype).eps) / 2 for x in arrays if x.size)
    smallest = max(Fraction(float(np.finfo(x.dtype).smallest_subnormal)) for x in arrays if x.size) * UNIT
    inside = sum(map(abs, elements)) <= radius * UNIT
    if signed:  # to the roundoff, as its docstring says
        near = radius * UNIT * Fraction(2 * roundoff + 2.0**-46) + len(elements) * smallest
        inside = min(elements) >= 0 and abs(sum(elements) - radius * UNIT) <= near
    if inside:
        assert not info.clipped
        assert [y.tobytes() for y in made] == [x.tobytes() for x in arrays]
        return
    assert info.clipped
    lost = Fraction(0) if signed else shave(arrays, radius)
    tau, count = Fraction(max(map(abs, elements))), 0  # no radius is left: all zeros
    if radius > lost:
        tau, count = exact_threshold(elements, radius - lost, signed)
    total = Fraction(0)
    for x, y in zip(arrays, made, strict=True):
        for u, got in zip(units(x), units(y), strict=True):
            magnitude = max((u if signed else abs(u)) - tau, Fraction(0))
            expected = -magnitude if u < 0 and not signed else magnitude
            assert abs(got - expected) <= ulp(x.dtype, expected), (x.dtype, u / UNIT, got / UNIT)
            total += abs(got)
    wide = all(x.dtype in (np.float32, np.float64) for x in arrays)
    assert info.certificate is not None
    if signed:
        assert abs(total - radius * UNIT) <= radius * UNIT * 2 * Fraction(roundoff) + count * smallest
    elif wide:
        assert total <= radius * UNIT
    else:
        assert total <= radius * UNIT * (1 + Fraction(roundoff)) + count * smallest / 2
    subnormal = len(elements) * smallest / (radius * UNIT)
    assert info.certificate.feasibility <= 2 * roundoff + 2.0**-50 + subnormal
    if wide:
        again, _ = gc.clip_by_projection(made, onto, backend=backend)
        assert [z.tobytes() for z in again] == [y.tobytes() for y in made], "twice is once"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def slow_for_michelot(rounds: int) -> list[float]:
    """Falling elements, of which each of Michelot's rounds drops but one, for the radius 1/2.

    The threshold of the first k has to be above the k-th and below the one before, so that the gaps grow
    as factorials: float64 ends after some 150.
    """
    elements = [Fraction(1)]
    for k in range(1, rounds):
        tau = (sum(elements) - Fraction(1, 2)) / k
        gap = tau - elements[-1] if k > 1 else Fraction(-1, 4)
        elements.append(Fraction(float(elements[-1] - k * max(gap, Fraction(0)) * Fraction(9, 8) - Fraction(3, 4))))
    return [float(u) for u in elements]


def adversaries() -> dict[str, tuple[list[Array], float]]:
    rng = np.random.default_rng(1)
    one_huge = normal(999)
    one_huge[500] = 1e12
    ties = np.repeat([3.0, 2.0, 1.0, 0.5], 250) * rng.choice([-1.0, 1.0], 1000)
    last = np.full(1000, 0.25)
    last[::2] = np.nextafter(0.25, 1)
    geometric = 2.0 ** np.arange(-500, 500)
    slow = slow_for_michelot(100)
    mixed = [normal(7, 11), normal(90, seed=2).astype(np.float32), normal(5, seed=3).astype(np.float16)]
    tiny = rng.integers(-9, 10, 300)
    return {
        "normal": ([normal(1000)], 20.0),
        "inside": ([normal(1000)], 1e4),
        "all equal": ([np.full(1000, -0.1)], 1.0),
        "all equal, float32": ([np.full(1001, 0.1, np.float32)], 1.0),
        "one huge": ([one_huge], 1.0),
        "one huge, radius near it": ([one_huge], 1e12),
        "ties at the threshold": ([ties], 250.0),
        "ties below the threshold": ([ties], 249.0),
        "ties above the threshold": ([ties], 251.0),
        "ties one ulp apart": ([last], 1.0),
        "the sum is the radius": ([np.full(8, 0.125)], 1.0),
        "the sum is an ulp more": ([np.array([0.5, np.nextafter(0.5, 1)])], 1.0),
        "a subnormal more": ([np.array([1.0, 5e-324])], 1.0),
        "subnormals, float64": ([tiny * 5e-324], 3e-322),
        "subnormals, float32": ([(tiny * 2.0**-149).astype(np.float32)], 2.0**-141),
        "subnormals beside ones": ([np.r_[normal(20), tiny * 5e-324]], 3.0),
        "over 20 decades": ([10.0 ** rng.uniform(-10, 10, 800) * rng.choice([-1, 1], 800)], 1e7),
        "over 20 decades, small radius": ([10.0 ** rng.uniform(-10, 10, 800)], 1e-9),
        "geometric": ([geometric], 2.0**480),
        "geometric, rising and falling": ([np.r_[geometric, geometric[::-1]]], 2.0**-400),
        "float32 of every exponent": ([(2.0 ** np.arange(-149, 128)).astype(np.float32)], 1e30),
        "slow for Michelot": ([np.array(slow)], 0.5),
        "slow for Michelot, rising": ([np.array(slow[::-1])], 0.5),
        "1e38": ([np.full(300, 1e38, np.float32), normal(5).astype(np.float32)], 3e38),
        "near overflow": ([np.array([1.7e308, -1.7e308, 1e308, 3.0])], 1e308),
        "overflowing sum, inside": ([np.full(3, 1e307)], 1.7e308),
        "near overflow, small radius": ([np.array([1e308, -1e308, 1e300])], 1.0),
        "near overflow, tiny radius": ([np.array([1e300, -1e300, 9e299])], 1e-80),
        "near underflow": ([np.array([5e-324, -1e-323, 1e-320])], 9e-321),
        "tiny elements, huge radius": ([np.array([1e-300, 1e-310])], 1e300),
        "subnormal radius": ([np.array([1.0, -1e-5])], 1e-320),
        "one element": ([np.array([-3.0])], 1.0),
        "one element of no axes": ([np.array(-3.0, np.float32)], 1.0),
        "zeros": ([np.zeros(30)], 1.0),
        "mixed dtypes": ([*mixed, np.zeros((0, 3)), np.zeros(0, np.float16)], 10.0),
        "many arrays": ([normal(k % 5, seed=k).astype([np.float32, np.float64][k % 2]) for k in range(150)], 4.0),
        "float16": ([(normal(500) * 100).astype(np.float16)], 77.0),
        "float16 subnormals": ([(normal(200) * 2.0**-20).astype(np.float16)], 2.0**-15),
    }


ADVERSARIES = adversaries()


@pytest.mark.parametrize("case", ADVERSARIES)
def test_l1_ball(case: str, backend: str) -> None:
    arrays, radius = ADVERSARIES[case]
    check(arrays, sets.L1Ball(radius), backend)


@pytest.mark.parametrize("case", [case for case in ADVERSARIES if case not in ("the sum is the radius",)])
def test_simplex(case: str, backend: str) -> None:
    arrays, total = ADVERSARIES[case]
    check(arrays, sets.Simplex(total), backend)
    check([-np.abs(x) for x in arrays], sets.Simplex(total), backend)  # nothing but negative elements


@pytest.mark.parametrize("seed", range(30))
def test_drawn(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    dtypes = [np.float16, np.float32, np.float64]
    arrays = []
    for _ in range(rng.integers(1, 5)):
        x = rng.standard_normal(tuple(rng.integers(0, 9, rng.integers(0, 3)))) * 10.0 ** rng.integers(-4, 4)
        if rng.random() < 0.3:
            x = np.round(x, 1)  # ties
        arrays.append(np.asarray(x, dtypes[rng.integers(0, 3)]))
    size = sum(x.size for x in arrays)
    arrays = arrays if size else [np.ones(3)]
    reach = sum(float(np.abs(x).sum(dtype=np.float64)) for x in arrays) or 1.0
    check(arrays, sets.L1Ball(reach * rng.uniform(0.01, 1.2)), backend)
    check(arrays, sets.Simplex(reach * rng.uniform(0.01, 1.2)), backend)


# ---- corners ---------------------------------------------------------------------------------------


def test_l1_of_nothing_is_nothing(backend: str) -> None:
    for grads in ([], [np.zeros((0, 4))], {"a": None}):
        made, info = gc.clip_by_projection(grads, sets.L1Ball(1.0), backend=backend)
        assert not info.clipped
        assert str(made) == str(grads)


@pytest.mark.parametrize(
    ("grads", "scope"), [([], "global"), ([np.zeros((0, 2))], "global"), ([np.ones(3), np.zeros(0)], "array")]
)
def test_no_element_no_simplex(grads: list[Array], scope: str, backend: str) -> None:
    before = [x.copy() for x in grads]
    with pytest.raises(gc.InvalidArgumentError, match=r"without elements has no point whose sum is that.*Leave empty"):
        gc.clip_by_projection_(grads, sets.Simplex(1.0), scope, backend=backend)
    assert [x.tobytes() for x in grads] == [x.tobytes() for x in before]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "1", None, True])
@pytest.mark.parametrize("onto", [sets.L1Ball, sets.Simplex])
def test_bad_radii(onto: Any, value: Any) -> None:
    with pytest.raises(gc.InvalidArgumentError, match=f"{onto.__name__}.*Pass a finite number > 0"):
        onto(value)


def test_a_radius_beyond_float64_beside_the_gradient(backend: str) -> None:
    """1e308 and 5e-324 have no common units: zeros are as near as any point of the ball, to 2^-1400."""
    grads = np.array([1e308, -3.0])
    made, info = gc.clip_by_projection(grads, sets.L1Ball(1e-323), backend=backend)
    assert (made == 0).all()
    assert info.clipped
    with pytest.raises(gc.InvalidArgumentError, match=r"1e\+308, is more than 2\^1400 times that"):
        gc.clip_by_projection_(grads, sets.Simplex(1e-323), backend=backend)
    assert grads.tolist() == [1e308, -3.0]


@pytest.mark.parametrize("onto", [sets.L1Ball(9.0), sets.Simplex(9.0)])
def test_a_loss_scale_changes_no_bit(onto: sets.Set, backend: str) -> None:
    """2^k is exact; 3 is one rounding of each element, as if it had been unscaled before."""
    grads = normal(500)
    expected, info = gc.clip_by_projection(grads, onto, backend=backend)
    for scale in (2.0**10, 2.0**-7):
        made, seen = gc.clip_by_projection(grads * scale, onto, loss_scale=scale, backend=backend)
        assert made.tobytes() == expected.tobytes()
        assert seen.certificate == info.certificate
    made, _ = gc.clip_by_projection(grads, onto, loss_scale=3.0, backend=backend)
    assert made.tobytes() == gc.clip_by_projection(grads * (1 / 3.0), onto, backend=backend)[0].tobytes()


def test_given_forms_are_what_the_sets_decide() -> None:
    """The form of an L1 ball shrinks, that of a simplex shifts."""
    assert Form.of("soft", 2, 1.0).a.tolist() == [1.0, 1.0]
    plan = gc.plan(np.array([3.0, -1.0]), gc.Project(sets.Simplex(1.0)))
    assert plan.apply(np.array([3.0, -1.0])).tolist() == [1.0, 0.0]
