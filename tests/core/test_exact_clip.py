"""The promise, against exact arithmetic: docs/numerics.md, "The shave"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core.precision.factors import coarse_exponent, round_down_float32, split
from tests.core import exact
from tests.core.promises import FIXED, GIVEN_AWAY, ORDERS, Array, U, bits, lossy_lanes, spread

EPSILON = {"float16": Fraction(2) ** -10, "bfloat16": Fraction(2) ** -7, "float32": Fraction(2) ** -23}
SMALLEST = {"float16": Fraction(2) ** -24, "bfloat16": Fraction(2) ** -133, "float32": Fraction(2) ** -149}
NORM_ERROR = Fraction(2) ** -46


def check_float32(arrays: Sequence[Array], max_norm: float, backend: str, ord: float = 2, scale: float = 1.0) -> bool:
    """Everything that is promised of float32. Returns whether it was clipped."""
    clipped, info = gc.clip_by_global_norm(arrays, max_norm, ord=ord, loss_scale=scale, backend=backend)
    exact_scale = math.frexp(scale)[0] == 0.5
    if info.clipped:
        assert exact.norm_at_most(clipped, max_norm, ord), "the promise"
        floor = Fraction(max_norm) * (1 - GIVEN_AWAY) - 2 * spread(arrays, SMALLEST["float32"], ord)
        assert exact.norm_at_least(clipped, floor, ord), "given away"
        assert info.clipped_norm <= max_norm < info.norm
    else:
        # Left alone because its *computed* norm is within the bound.
        quanta = spread(arrays, SMALLEST["float32"], ord)
        assert exact.norm_at_most(clipped, Fraction(max_norm) * (1 + NORM_ERROR) + quanta, ord)
        if scale == 1:
            assert [bits(x) for x in clipped] == [bits(x) for x in arrays]
            assert info.scale == 1
        elif exact_scale:
            assert info.scale == 1 / scale
    if info.clipped or not exact_scale or scale == 1:
        again, second = gc.clip_by_global_norm(clipped, max_norm, ord=ord, backend=backend)
        assert [bits(x) for x in again] == [bits(x) for x in clipped], "idempotence"
        assert not second.clipped
        assert second.scale == 1
    return info.clipped


def cases(rng: np.random.Generator) -> dict[str, list[Array]]:
    span = (10.0 ** rng.uniform(-37, 37, 3000)).astype(np.float32) * rng.choice(np.array([-1, 1], np.float32), 3000)
    lost = np.full((16, 256), 1e-8, np.float32)
    lost[0] = 1
    return {
        "normal": [rng.standard_normal(10_000).astype(np.float32)],
        "constant": [np.full(15, 1.0, np.float32)],
        "constant, full significand": [np.full(4095, 1 + 2.0**-23, np.float32)],
        "1e38": [(rng.uniform(0.5, 3, 5000) * 1e38).astype(np.float32)],
        "largest": [np.full(300, np.finfo(np.float32).max)],
        "70 decades": [span],
        "lost": [lost],
        "subnormal": [rng.integers(0, 2**23, 3000).astype(np.uint32).view(np.float32)],
        "one element": [np.array(-7.3, np.float32)],
        "many arrays": [rng.standard_normal(int(n)).astype(np.float32) for n in rng.integers(0, 50, 300)],
    }


CASES = list(cases(np.random.default_rng(1)))


# ---- float32 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_float32_keeps_the_promise(case: str, ord: float, backend: str) -> None:
    rng = np.random.default_rng(1)
    arrays = cases(rng)[case]
    norm = gc.global_norm(arrays, ord, backend=backend)
    clipped = 0
    for ratio in (0.999999999, 1 - 2.0**-25, 0.5, 1 / 3, 0.123, 1e-3, 1e-9, 1e-30):
        clipped += check_float32(arrays, norm * ratio, backend, ord)
    assert clipped == 8


@FIXED
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    st.one_of(st.floats(1e-6, 1, exclude_min=True), st.floats(1 - 2.0**-20, 1)),
    st.sampled_from([1.0, 2.0, 65536.0, 2.0**-10, 3.0, 1000.0, 0.1]),
)
@pytest.mark.parametrize("ord", ORDERS)
def test_float32_keeps_the_promise_anywhere(ord: float, values: list[float], ratio: float, scale: float) -> None:
    arrays = [np.array(values, np.float32)]
    norm = gc.global_norm(arrays, ord, backend="numpy") / scale * ratio
    if norm <= float(np.finfo(np.float32).max):
        check_float32(arrays, norm, "numpy", ord, scale)


@pytest.mark.parametrize("scale", [2.0, 65536.0, 2.0**-20, 3.0, 1000.0, 0.7, 1e10])
def test_float32_with_a_loss_scale(scale: float, backend: str) -> None:
    rng = np.random.default_rng(2)
    for n in (1, 3, 1000, 20_000):
        arrays = [rng.standard_normal(n).astype(np.float32)]
        norm = gc.global_norm(arrays, backend=backend) / scale
        for ratio in (1 - 2.0**-24, 1 - 2.0**-30, 0.3, 1e-5):
            assert check_float32(arrays, norm * ratio, backend, 2, scale)
        for ratio in (1.0, 1 + 2.0**-50, 1 + 2.0**-24, 1 + 2.0**-23, 2):
            check_float32(arrays, norm * ratio, backend, 2, scale)


def test_the_shave_is_used_up() -> None:
    """It is neither wider nor narrower than it has to be, by bounds around a value that products round to."""
    remains = []
    for offset in (2.0**-27, -(2.0**-27), -(2.0**-30)):
        max_norm = 2 * (1 + 2.0**-23 + offset)
        for k in range(1, 300):
            x = np.full(16, 1 + k * 2.0**-20, np.float32)
            (clipped,), _ = gc.clip_by_global_norm([x], max_norm, backend="numpy")
            assert exact.norm_at_most([clipped], max_norm)
            remains.append(1 - exact.norm([clipped]) / max_norm)
    assert 0 < min(remains) < 2.0**-26


def test_without_the_shave_the_promise_would_break() -> None:
    """That these tests can fail: the plain float32 product with the plain factor exceeds the bound."""
    rng = np.random.default_rng(3)
    broken = 0
    for _ in range(50):
        x = rng.standard_normal(100).astype(np.float32)
        plain = x * np.float32(1 / exact.norm([x]))
        broken += not exact.norm_at_most([plain], 1.0)
    assert broken > 5


@pytest.mark.parametrize("p", [1.5, 3.0, math.pi, 10.0])
def test_general_orders_keep_the_promise(p: float, backend: str) -> None:
    rng = np.random.default_rng(4)
    for scale in (1e-30, 1.0, 1e30):
        x = (rng.standard_normal(80) * scale).astype(np.float32)
        norm = gc.global_norm([x], p, backend=backend)
        for ratio in (0.999, 0.3, 1e-4):
            (clipped,), _ = gc.clip_by_global_norm([x], norm * ratio, ord=p, backend=backend)
            found = float(exact.decimal_norm([clipped], p))
            assert (1 - 2.0**-21.9) * norm * ratio - 1e-43 <= found <= norm * ratio
            (again,), info = gc.clip_by_global_norm([clipped], norm * ratio, ord=p, backend=backend)
            assert bits(again) == bits(clipped)
            assert not info.clipped


# ---- extreme factors and thresholds ---------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-2, 1e-8, 1e-12, 1e-20, 1e-37, 1e-40])
def test_factors_below_the_float32_range(max_norm: float, backend: str) -> None:
    """A factor under 2^-126 is two multipliers, and nothing is lost."""
    x = (np.random.default_rng(5).uniform(0.5, 3, 5000) * 1e38).astype(np.float32)
    plan = gc.plan([x], gc.GlobalNorm(max_norm), backend=backend)
    assert plan.scale < 2.0**-126
    coarse, fine = split(np.array([plan.scale]))
    assert math.frexp(float(fine[0]))[0] == 0.5
    assert float(coarse[0]) * float(fine[0]) == plan.scale
    check_float32([x], max_norm, backend)


@pytest.mark.parametrize("max_norm", [1e-38, 2.0**-126, 1e-40, 2.0**-149 * 1000, 2.0**-149, 1e-60, 1e-320, 5e-324])
def test_tiny_thresholds(max_norm: float, backend: str) -> None:
    rng = np.random.default_rng(6)
    for x in (rng.standard_normal(100), rng.standard_normal(1), rng.standard_normal(100) * 1e-36):
        assert check_float32([x.astype(np.float32)], max_norm, backend)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_threshold_of_zero_gives_positive_zeros(dtype: Any, backend: str) -> None:
    x = np.array([1.0, -2.0, 0.0, -0.0, 3e-5], dtype)
    for scale in (1.0, 8.0, 3.0):
        (clipped,), info = gc.clip_by_global_norm([x], 0.0, loss_scale=scale, backend=backend)
        assert bits(clipped) == bytes(x.nbytes)
        assert (info.clipped_norm, info.clipped, info.scale) == (0.0, True, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ord", [1, 2, math.inf, 3.0])
def test_a_threshold_at_the_norm_leaves_all_bits(dtype: Any, ord: float, backend: str) -> None:
    rng = np.random.default_rng(7)
    for n in (1, 3, 257, 5000):
        x = rng.standard_normal(n).astype(dtype)
        norm = gc.global_norm([x], ord, backend=backend)
        (same,), info = gc.clip_by_global_norm([x], norm, ord=ord, backend=backend)
        assert bits(same) == bits(x)
        assert (info.clipped, info.scale, info.clipped_norm) == (False, 1.0, norm)
        below = norm * (1 - 2.0**-44)  # so near that only the norm's own error is in between
        (less,), info = gc.clip_by_global_norm([x], below, ord=ord, backend=backend)
        assert info.clipped
        assert bits(less) != bits(x) or dtype is np.float16  # which may round the shave away


def test_at_the_threshold_the_norm_decides_as_computed() -> None:
    """The honest limit: what is computed to be within the bound is left alone, bit for bit."""
    ones = [np.ones(3, np.float32)]  # their norm is computed to be math.sqrt(3), which is below it
    assert not exact.norm_at_most(ones, math.sqrt(3))
    assert not gc.clip_by_global_norm(ones, math.sqrt(3), backend="numpy")[1].clipped
    assert exact.norm_at_most(ones, math.sqrt(3) * (1 + 2.0**-52))
    lost = [lossy_lanes(1.0, 1e-8)]  # computed to be 16
    assert not exact.norm_at_most(lost, 16)
    assert not gc.clip_by_global_norm(lost, 16.0, backend="numpy")[1].clipped
    assert exact.norm_at_most(lost, 16 * (1 + 13 * U))


# ---- factors --------------------------------------------------------------------------------------


@FIXED
@given(st.floats(2.0**-275, 2.0**127, exclude_max=True))
def test_round_down_float32(factor: float) -> None:
    (found,) = round_down_float32(np.array([factor]))
    assert factor * (1 - 2.0**-23) < found <= factor
    assert (round_down_float32(np.array([found])) == found).all()
    coarse, fine = split(np.array([found]))
    assert coarse.dtype == fine.dtype == np.float32
    assert float(coarse[0]) * float(fine[0]) == found
    if factor >= 2.0**-126:
        assert fine[0] == 1
        assert coarse_exponent(np.array([factor]))[0] == 0


# ---- 16 bits --------------------------------------------------------------------------------------


@pytest.mark.shows("numpy", "16-bit", "exact")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("ord", ORDERS)
def test_16_bits_keep_the_promise_up_to_a_roundoff(name: str, ord: float, backend: str) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    rng = np.random.default_rng(8)
    roundoff, quantum = EPSILON[name] / 2, SMALLEST[name] / 2
    everything = np.arange(2**16, dtype=np.uint16).view(dtype)
    everything = everything[np.isfinite(everything.astype(np.float32))]
    for x in (rng.standard_normal(5000).astype(dtype), np.full(17, 1.01, dtype), everything):
        norm = gc.global_norm([x], ord, backend=backend)
        for ratio in (0.999, 0.51, 1e-2, 1e-6):
            for scale in (1.0, 1024.0, 3.0):
                max_norm = norm / scale * ratio
                (clipped,), info = gc.clip_by_global_norm([x], max_norm, ord=ord, loss_scale=scale, backend=backend)
                assert info.clipped
                assert clipped.dtype == dtype
                ceiling = Fraction(max_norm) * (1 + roundoff) + spread([x], quantum, ord)
                assert exact.norm_at_most([clipped], ceiling, ord)
                floor = Fraction(max_norm) * (1 - roundoff - GIVEN_AWAY) - spread([x], quantum * Fraction(65, 64), ord)
                assert exact.norm_at_least([clipped], floor, ord)


# ---- groups and arrays ----------------------------------------------------------------------------


def test_every_scope_keeps_its_own_promise(backend: str) -> None:
    rng = np.random.default_rng(14)
    grads = {k: rng.standard_normal(n).astype(np.float32) for k, n in (("a", 300), ("b", 5000), ("c", 1), ("d", 40))}
    clipped, _ = gc.clip_by_norm(grads, 0.7, backend=backend)
    for x in clipped.values():
        assert exact.norm_at_most([x], 0.7)
        assert exact.norm_at_least([x], Fraction(0.7) * (1 - GIVEN_AWAY)) or x.size == 1
    groups = {"even": ["a", "c"], "odd": ["b", "d"]}
    limits = {"even": 0.3, "odd": 1e-3}
    clipped, _ = gc.clip_by_group_norm(grads, limits, groups=groups, backend=backend)
    for group, limit in limits.items():
        members = [clipped[path] for path in groups[group]]
        assert exact.norm_at_most(members, limit)
        assert exact.norm_at_least(members, Fraction(limit) * (1 - GIVEN_AWAY))
    clipped, _ = gc.adaptive_clip(
        grads["b"].reshape(50, 100), np.ones((50, 100), np.float32), 0.01, axis=1, backend=backend
    )
    for row in clipped:
        assert exact.norm_at_most([row], 0.1)  # 0.01 · ‖ones(100)‖, and both are exact
        assert exact.norm_at_least([row], Fraction(0.1) * (1 - GIVEN_AWAY))
