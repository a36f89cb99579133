"""The promise for float64, alone and beside narrower dtypes: docs/numerics.md, "The shave"."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from tests.core import exact
from tests.core.promises import FIXED, GIVEN_AWAY, GIVEN_AWAY_FLOAT64, ORDERS, Array, bits, lossy_lanes, spread

# ---- float64 --------------------------------------------------------------------------------------


def check_float64(x: Array, max_norm: float, backend: str, ord: float = 2, scale: float = 1.0) -> None:
    """Everything that is promised of float64 that is clipped: exactly, by the carries."""
    (clipped,), info = gc.clip_by_global_norm([x], max_norm, ord=ord, loss_scale=scale, backend=backend)
    assert info.clipped
    assert exact.norm_at_most([clipped], max_norm, ord), "the promise"
    floor = Fraction(max_norm) * (1 - GIVEN_AWAY_FLOAT64) - 3 * spread([x], Fraction(5e-324), ord)
    assert exact.norm_at_least([clipped], floor, ord), "given away"
    (again,), second = gc.clip_by_global_norm([clipped], max_norm, ord=ord, backend=backend)
    assert bits(again) == bits(clipped), "idempotence"
    assert not second.clipped


@pytest.mark.parametrize("n", [1, 2, 3, 10, 255, 1000, 4096, 20_000])
@pytest.mark.parametrize("ord", ORDERS)
def test_float64_keeps_the_promise(ord: float, n: int, backend: str) -> None:
    rng = np.random.default_rng(9)
    for x in (rng.standard_normal(n), rng.uniform(0.5, 1, n), np.exp(5 * rng.standard_normal(n)), np.full(n, 1.1)):
        norm = gc.global_norm([x], ord, backend=backend)
        for ratio in (*rng.uniform(0.01, 0.99, 2), 1 - 1e-12, 1 - 2.0**-45):
            check_float64(x, norm * ratio, backend, ord)
        for scale in (1024.0, 3.0, 0.7):
            check_float64(x, norm / scale * 0.37, backend, ord, scale)


@pytest.mark.jit
def test_a_million_float64() -> None:
    pytest.importorskip("numba")
    check_float64(np.random.default_rng(10).standard_normal(10**6), 1.0, "numba_cpu")


@FIXED
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 0.999))
@pytest.mark.parametrize("ord", ORDERS)
def test_any_float64_keeps_the_promise(ord: float, values: list[float], ratio: float) -> None:
    x = np.array(values)
    check_float64(x, gc.global_norm([x], ord, backend="numpy") * ratio, "numpy", ord)


@pytest.mark.parametrize("small", [1e-8, 1.06e-8])
def test_malicious_float64_keeps_the_promise(small: float, backend: str) -> None:
    """All squares round the same way: the norm is off by 6.5 units of roundoff, the shave is 2."""
    x = lossy_lanes(1.0, small)
    assert abs(exact.units_off(gc.global_norm([x], backend=backend), [x])) > 6
    for max_norm in np.linspace(0.1, 15.9, 50).tolist():
        check_float64(x, max_norm, backend)


@pytest.mark.parametrize("max_norm", [0.1, 0.3, 1.0])
def test_what_info_says_of_malicious_float64(max_norm: float, backend: str) -> None:
    _, info = gc.clip_by_global_norm([lossy_lanes(1.0, 1.06e-8)], max_norm, backend=backend)
    assert info.clipped_norm <= max_norm


def test_lossy_lanes_of_any_significand(backend: str) -> None:
    """What is lost from the gradient need not be lost from the clipped one, and the other way round."""
    rng = np.random.default_rng(15)
    for _ in range(60):
        large = rng.uniform(1, 2)
        x = lossy_lanes(large, large * rng.uniform(0.6, 1.6) * 1e-8)
        check_float64(x, rng.uniform(0.01, 15.9), backend)


def test_arrays_of_float64_share_their_carries(backend: str) -> None:
    rng = np.random.default_rng(16)
    arrays = [lossy_lanes(1.0, 1e-8), *(rng.standard_normal(int(n)) for n in rng.integers(0, 9, 500))]
    norm = gc.global_norm(arrays, backend=backend)
    for ratio in (0.9, 0.5, 0.11):
        clipped, info = gc.clip_by_global_norm(arrays, norm * ratio, backend=backend)
        assert info.clipped
        assert exact.norm_at_most(clipped, norm * ratio)
        assert exact.norm_at_least(clipped, Fraction(norm * ratio) * (1 - GIVEN_AWAY_FLOAT64))
        assert not gc.clip_by_global_norm(clipped, norm * ratio, backend=backend)[1].clipped


@pytest.mark.parametrize("magnitude", [1e300, 1e200, 1e130, 1e-130, 1e-200, 1e-290])
def test_float64_at_the_ends_of_its_range(magnitude: float, backend: str) -> None:
    x = np.random.default_rng(11).uniform(0.5, 1, 1000) * magnitude
    for ratio in (0.9, 0.1, 1e-9):
        check_float64(x, gc.global_norm([x], backend=backend) * ratio, backend)


def test_subnormal_float64(backend: str) -> None:
    x = np.random.default_rng(17).integers(1, 10**6, 100) * 5e-324
    norm = gc.global_norm([x], backend=backend)
    for ratio in (0.9, 0.1, 1e-4):
        check_float64(x, norm * ratio, backend)


def test_float64_factors_below_the_normal_range(backend: str) -> None:
    for max_norm in (1e-5, 1e-10, 1e-13, 1e-14, 2e-15):
        (clipped,), info = gc.clip_by_global_norm([np.array([1.7e308])], max_norm, backend=backend)
        assert exact.norm_at_most([clipped], max_norm)
        assert info.clipped_norm <= max_norm


@pytest.mark.parametrize("beside", [[], [np.ones(1, np.float32)]], ids=["alone", "mixed"])
def test_any_float64_factor_below_the_normal_range(beside: list[Array]) -> None:
    rng = np.random.default_rng(18)
    for _ in range(1000):
        max_norm = 10 ** rng.uniform(-15, -6)
        clipped, info = gc.clip_by_global_norm([rng.uniform(0.9e308, 1.79e308, 1), *beside], max_norm, backend="numpy")
        assert exact.norm_at_most(clipped, max_norm)
        assert info.clipped_norm <= max_norm


def test_factors_above_the_float32_range(backend: str) -> None:
    zeros = np.array([0, -0.0], np.float32)
    for scale in (2.0**-126, 2.0**-150, 2.0**-254, 2.0**-300, 2.0**-1000):
        (same,), _ = gc.clip_by_global_norm([zeros], 1.0, loss_scale=scale, backend=backend)
        assert bits(same) == bits(zeros)
        x = np.append(zeros, np.float32(2.0**-149))
        (clipped,), _ = gc.clip_by_value([x], 1.0, loss_scale=scale, backend=backend)
        assert bits(clipped[:2]) == bits(zeros)
        assert 0 < clipped[2] <= 1


# ---- mixed dtypes ---------------------------------------------------------------------------------


def test_a_scope_of_mixed_dtypes_has_one_factor(backend: str) -> None:
    """Literally one: element by element what the factor alone makes of it."""
    rng = np.random.default_rng(12)
    grads: dict[str, Array] = {
        "a": rng.standard_normal(100),
        "b": rng.standard_normal(100).astype(np.float32),
        "c": rng.standard_normal(100).astype(np.float16),
    }
    for max_norm, scale in ((1.0, 1.0), (1e-3, 1024.0), (0.1, 3.0)):
        clipped, info = gc.clip_by_global_norm(grads, max_norm, loss_scale=scale, backend=backend)
        factor = info.scale
        assert set(info.scales.values()) == {factor}
        assert float(np.float32(factor)) == factor
        single = np.float32(factor)
        assert bits(clipped["a"]) == bits(grads["a"] * factor)
        assert bits(clipped["b"]) == bits(grads["b"] * single)
        assert bits(clipped["c"]) == bits((grads["c"].astype(np.float32) * single).astype(np.float16))
        without_halves = [clipped["a"], clipped["b"]]
        assert exact.norm_at_most(without_halves, max_norm)


def test_float64_beside_float32_keeps_the_promise(backend: str) -> None:
    rng = np.random.default_rng(13)
    for n in (1, 50, 5000):
        arrays = [rng.standard_normal(n), rng.standard_normal(n).astype(np.float32)]
        norm = gc.global_norm(arrays, backend=backend)
        for ratio in (0.9999, 0.3, 1e-6):
            clipped, _ = gc.clip_by_global_norm(arrays, norm * ratio, backend=backend)
            assert exact.norm_at_most(clipped, norm * ratio)
            assert exact.norm_at_least(clipped, Fraction(norm * ratio) * (1 - GIVEN_AWAY))
            again, _ = gc.clip_by_global_norm(clipped, norm * ratio, backend=backend)
            assert [bits(x) for x in again] == [bits(x) for x in clipped]


@pytest.mark.parametrize("huge", [1e95, 1e100, 1e300])
def test_huge_float64_beside_float32_is_not_thrown_away(huge: float, backend: str) -> None:
    arrays = [np.array([huge]), np.ones(1, np.float32)]
    clipped, _ = gc.clip_by_global_norm(arrays, 1.0, backend=backend)
    assert exact.norm_at_most(clipped, 1.0)
    assert exact.norm_at_least(clipped, 1 - GIVEN_AWAY)


def test_what_is_lost_between_arrays_is_carried_too(backend: str) -> None:
    """Each square is exact and each array's sum too; only the sum over the arrays rounds, and always down."""
    arrays = [np.array([1.0 if i < 256 else 2.0**-27]) for i in range(4096)]
    norm = gc.global_norm(arrays, backend=backend)
    for ratio in (0.9, 0.51, 0.3):
        clipped, info = gc.clip_by_global_norm(arrays, norm * ratio, backend=backend)
        assert info.clipped
        assert exact.norm_at_most(clipped, norm * ratio)
        assert not gc.clip_by_global_norm(clipped, norm * ratio, backend=backend)[1].clipped


@pytest.mark.parametrize("top", [1e297, 1.3e300, 1.4e300, 1.7e308])
def test_the_largest_elements_are_clipped_by_their_largest(top: float) -> None:
    """Beyond 2^996 the halves of a product overflow, which once made everything NaN."""
    clipped, info = gc.clip_by_global_norm(np.array([top, 1.0]), 1e50, ord=np.inf)
    assert info.norm == top
    assert 0.999999 * 1e50 < clipped[0] <= 1e50
    assert clipped[1] == 1.0 * info.scale
