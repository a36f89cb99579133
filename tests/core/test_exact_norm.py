"""The norm against exact arithmetic: docs/numerics.md, "The error bound"."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core.protocol import BFLOAT16, Buffer, What
from gradclip_core.reference import BACKEND
from tests.core import exact
from tests.core.promises import FIXED

Array = npt.NDArray[Any]
U = 2.0**-53
LARGEST = float(np.finfo(np.float64).max)
NARROW_BOUND = 2.0**-46
LESS = 1 - Fraction(NARROW_BOUND)
EDGES = (0, 1, 2, 255, 256, 257, 511, 512, 4095, 4096, 4097, 8191, 8192, 8193, 12289)
NARROW = ("float16", "bfloat16", "float32")


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        bfloat16: np.dtype[Any] = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
        return bfloat16
    return np.dtype(name)


def additions(n: int) -> int:
    """The most roundings that ``tree_sum`` of ``n`` elements does to any one of them; adding 0 is none."""
    found = 0
    while n > 1:
        rows, lanes = min(16, -(-n // 256)), min(n, 256)
        found += rows - 1 + (lanes - 1).bit_length()
        n = -(-n // 4096)
    return found


def float64_bound(sizes: Sequence[int], ord: float = 2) -> float:
    """docs/numerics.md, "float64": so many units of roundoff, and a bit for the products of errors."""
    roundings = additions(max(sizes, default=0)) + additions(len(sizes))
    return (((roundings + 1) / 2 + 1) if ord == 2 else roundings) * U * (1 + 2.0**-30)


def check(arrays: Sequence[Array], backend: str, ord: float = 2) -> float:
    """The norm is within its bound, and where it is of narrow arrays, correctly rounded as float32."""
    computed = gc.global_norm(list(arrays), ord, backend=backend)
    if any(x.dtype == np.float64 for x in arrays):
        bound = float64_bound([x.size for x in arrays], ord)
        true = exact.norm(arrays, ord)
        if true < 2.0**-1021:  # rounded among the subnormals
            assert abs(computed - true) <= 5e-324 * (1 + 2 * bound * true / 5e-324), (computed, true)
        elif true > LARGEST * (1 - bound):
            assert computed >= LARGEST * (1 - 2 * bound)
            assert math.isfinite(computed)
        else:
            assert exact.within(computed, arrays, bound, ord), (computed, true)
    else:
        assert exact.within(computed, arrays, NARROW_BOUND, ord), (computed, exact.norm(arrays, ord))
        check_float32(computed, arrays, ord)
    if not any(x.size and np.any(x != 0) for x in arrays):
        assert computed == 0
    return computed


def check_float32(computed: float, arrays: Sequence[Array], ord: float) -> None:
    """``float32(computed)`` is a float32 nearest to the true norm, or to one within 2^-46 of it."""
    with np.errstate(over="ignore"):
        rounded = np.float32(computed)
    if not np.isfinite(rounded):
        assert exact.norm_at_least(arrays, (2 - Fraction(2) ** -24) * 2**127 * LESS, ord)
        return
    here = Fraction(float(rounded))
    with np.errstate(over="ignore"):
        below, above = (float(np.nextafter(rounded, np.float32(side))) for side in (-np.inf, np.inf))
    assert exact.norm_at_least(arrays, (here + Fraction(below)) / 2 * LESS, ord)
    if math.isfinite(above):
        assert exact.norm_at_most(arrays, (here + Fraction(above)) / 2 / LESS, ord)


def adversarial(rng: np.random.Generator) -> dict[str, Array]:
    """Float32 arrays that are hard to sum."""
    span = np.float32(10.0) ** rng.uniform(-37, 37, 5000).astype(np.float32)
    huge = rng.standard_normal(300_000).astype(np.float32)
    huge[123_456] = 3e38
    lost = np.full((16, 256), 1e-8, np.float32)  # each small square is below half an ulp of the large one's
    lost[0] = 1
    up = np.full((16, 256), 1.06e-8, np.float32)  # and here just above
    up[0] = 1
    return {
        "subnormal": rng.integers(0, 2**23, 5000).astype(np.uint32).view(np.float32),
        "one subnormal": np.array([1], np.uint32).view(np.float32),
        "largest": np.full(4097, np.finfo(np.float32).max),
        "1e38": (rng.uniform(0.5, 3, 5000) * 1e38).astype(np.float32),
        "70 decades": span * rng.choice(np.array([-1, 1], np.float32), 5000),
        "one huge": huge,
        "one huge among zeros": np.where(np.arange(9000) == 8999, np.float32(3e38), np.float32(0)),
        "a bit more than a power of two": np.full(4096, 1 + 2.0**-23, np.float32),
        "just below a power of two": np.full(4095, 1 - 2.0**-24, np.float32),
        "lost": lost,
        "rounded up": up,
        "negative zeros": np.full(10, -0.0, np.float32),
    }


# ---- float32 and narrower -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_sizes_around_the_block_edges(name: str, ord: float, backend: str) -> None:
    rng = np.random.default_rng(1)
    for n in EDGES:
        check([(rng.standard_normal(n) * 3).astype(dtype_of(name))], backend, ord)


@pytest.mark.parametrize("case", list(adversarial(np.random.default_rng(2))))
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_adversarial_float32(case: str, ord: float, backend: str) -> None:
    x = adversarial(np.random.default_rng(2))[case]
    computed = check([x], backend, ord)
    # In reverse the additions are others, and the bound is the same.
    check([x.ravel()[::-1].copy()], backend, ord)
    assert computed == gc.global_norm([x], ord, backend="numpy")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_every_finite_16_bit_value_at_once(name: str, ord: float, backend: str) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(dtype_of(name))
    check([x[np.isfinite(x.astype(np.float32))]], backend, ord)


def test_raw_bfloat16_needs_no_ml_dtypes() -> None:
    # 1, -2, 2^-133 (the smallest), 255·2^120 (the largest)
    x = np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], np.uint16)
    found = BACKEND.measure([Buffer(x.ctypes.data, 4, BFLOAT16, owner=x)], What())
    assert found.sums[0] == exact.nearest(Fraction(5) + Fraction(2) ** -266 + Fraction(255 * 2**120) ** 2)
    assert found.largest[0] == 255 * 2.0**120
    alone = BACKEND.measure([Buffer(x[2:].ctypes.data, 1, BFLOAT16, owner=x)], What())
    assert alone.sums[0] == 2.0**-266


def test_many_arrays(backend: str) -> None:
    rng = np.random.default_rng(3)
    types = [np.float32, np.float16, np.float32]
    arrays = [rng.standard_normal(int(rng.integers(0, 9))).astype(types[i % 3]) for i in range(5000)]
    for ord in (1, 2, math.inf):
        check(arrays, backend, ord)


def test_past_two_levels_of_the_tree(backend: str) -> None:
    """2^24 + 1 elements, so that there are 4097 blocks: a repeated block, whose exact sum is cheap."""
    block = np.random.default_rng(4).standard_normal(4096).astype(np.float16)
    x = np.append(np.tile(block, 4096), np.float16(0.1))
    for ord in (1, 2):
        true = 4096 * exact.power_sum([block], ord) + exact.power_sum([x[-1:]], ord)
        assert exact.close(gc.global_norm([x], ord, backend=backend), true, NARROW_BOUND, ord)


@FIXED
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), max_size=10),
)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_any_values(ord: float, singles: list[float], halves: list[float]) -> None:
    check([np.array(singles, np.float32), np.array(halves, np.float16)], "numpy", ord)


def test_the_square_of_a_float32_is_exact() -> None:
    """The premise of the bound, at the ends of the range and at a full significand."""
    for value in (2.0**-149, 2.0**-126 - 2.0**-149, (2 - 2.0**-23) * 2.0**127, 1 + 2.0**-23, 1 / 3):
        x = float(np.float32(value))
        assert Fraction(x * x) == Fraction(x) ** 2


# ---- float64 --------------------------------------------------------------------------------------


def wide(rng: np.random.Generator) -> dict[str, Array]:
    """Float64 arrays at and beyond the range of their squares."""
    lost = np.full((16, 256), 1e-8)
    lost[0] = 1
    up = np.full((16, 256), 1.06e-8)
    up[0] = 1
    one_huge = rng.standard_normal(300_000)
    one_huge[7] = 1e308
    return {
        "ordinary": rng.standard_normal(100_000),
        "1e308": rng.uniform(0.1, 1.7, 300) * 1e308,
        "one 1e308": np.array([1.7e308]),
        "1e-308": rng.uniform(0.1, 9, 5000) * 1e-308,
        "subnormal": rng.integers(0, 1000, 5000) * 5e-324,
        "the smallest": np.array([5e-324]),
        "600 decades": 10.0 ** rng.uniform(-307, 307, 5000),
        "60 decades": 10.0 ** rng.uniform(-30, 30, 5000),
        "one huge": one_huge,
        "inside the upper edge": np.full(5000, 2.0**400),
        "outside the upper edge": np.full(5000, np.nextafter(2.0**400, np.inf)),
        "inside the lower edge": np.full(5000, 2.0**-400),
        "outside the lower edge": np.full(5000, np.nextafter(2.0**-400, 0)),
        "lost": lost,
        "rounded up": up,
        "constant": np.full(4096, 1.1),
        "negative zeros": np.full(10, -0.0),
    }


@pytest.mark.parametrize("case", list(wide(np.random.default_rng(5))))
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_float64(case: str, ord: float, backend: str) -> None:
    x = wide(np.random.default_rng(5))[case]
    computed = check([x], backend, ord)
    assert computed == gc.global_norm([x], ord, backend="numpy")


def test_the_float64_bound_is_not_idle() -> None:
    """Fifteen squares lost in each lane: the error is half of what the bound allows, so neither is slack."""
    x = wide(np.random.default_rng(5))["lost"]
    off = exact.units_off(gc.global_norm([x], backend="numpy"), [x])
    assert -float64_bound([4096]) / U <= off < -6


@pytest.mark.parametrize("n", EDGES)
def test_float64_sizes_around_the_block_edges(n: int, backend: str) -> None:
    x = np.random.default_rng(6).standard_normal(n)
    for ord in (1, 2, math.inf):
        check([x], backend, ord)


@pytest.mark.parametrize(
    "magnitudes",
    [(1e300, 1.0), (1.0, 1e-300), (1e300, 1e-300), (1e-310, 1e-200), (2.0**401, 2.0**399), (2.0**-401, 2.0**-399)],
)
def test_float64_arrays_on_different_scales(magnitudes: tuple[float, float], backend: str) -> None:
    rng = np.random.default_rng(7)
    arrays = [rng.uniform(0.5, 1, 100) * m for m in magnitudes] + [np.zeros(3), rng.uniform(0, 1, 3).astype(np.float32)]
    for ord in (1, 2, math.inf):
        check(arrays, backend, ord)
        check(arrays[::-1], backend, ord)


@pytest.mark.parametrize("ord", [1, 2])
def test_a_norm_beyond_float64_saturates(ord: float, backend: str) -> None:
    x = np.full(100, 1.5e308)
    assert exact.norm([x], ord) == math.inf
    assert gc.global_norm([x], ord, backend=backend) == LARGEST
    assert gc.global_norm([x, np.full(5, 1.5e308)], ord, backend=backend) == LARGEST
    assert gc.global_norm([x], math.inf, backend=backend) == 1.5e308


@FIXED
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_any_float64_values(ord: float, values: list[float]) -> None:
    check([np.array(values)], "numpy", ord)
    check([np.array([v]) for v in values], "numpy", ord)


def test_complex_counts_its_parts(backend: str) -> None:
    rng = np.random.default_rng(8)
    z = rng.standard_normal(5000) + 1j * rng.standard_normal(5000)
    narrow = z.astype(np.complex64)
    assert exact.within(gc.global_norm([narrow], backend=backend), [narrow], NARROW_BOUND)
    assert exact.within(gc.global_norm([z], backend=backend), [z], float64_bound([10_000]))


# ---- general orders -------------------------------------------------------------------------------


ORDERS = [1.0001, 1.5, 2.5, 3, math.pi, 10, 1000.0]


@functools.cache
def general_cases(p: float) -> list[tuple[list[Array], Decimal]]:
    rng = np.random.default_rng(9)
    cases: list[list[Array]] = [
        [rng.standard_normal(60)],
        [rng.standard_normal(30).astype(np.float32), rng.standard_normal(30).astype(np.float16), np.zeros(4)],
        [10.0 ** rng.uniform(-300, 300, 60)],
        [rng.uniform(0.1, 1, 50) * 1e308 / 50, np.array([1e300])],
        [rng.uniform(1, 9, 60) * 1e-308],
        [np.full(30, np.finfo(np.float32).max)],
        [np.full(60, 2.0**-149, np.float32)],
    ]
    return [(arrays, exact.decimal_norm(arrays, p)) for arrays in cases]


@pytest.mark.parametrize("p", ORDERS)
def test_general_orders(p: float, backend: str) -> None:
    for arrays, true in general_cases(p):
        computed = gc.global_norm(arrays, p, backend=backend)
        assert abs(Decimal(computed) - true) <= true * Decimal("1e-12")


def test_a_general_norm_beyond_float64_saturates(backend: str) -> None:
    assert gc.global_norm([np.full(100, 1.5e308)], 3, backend=backend) == LARGEST


# ---- the backends ---------------------------------------------------------------------------------


@pytest.mark.jit
def test_backends_agree_to_the_bit() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(10)
    cases = [*adversarial(rng).values(), *wide(rng).values(), rng.standard_normal(10**6)]
    for ord in (1, 2, math.inf):
        for x in cases:
            assert gc.global_norm([x], ord, backend="numba_cpu") == gc.global_norm([x], ord, backend="numpy")
        assert gc.global_norm(cases, ord, backend="numba_cpu") == gc.global_norm(cases, ord, backend="numpy")
