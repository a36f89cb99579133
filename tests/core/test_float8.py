"""float8: every code read, every rounding written, and the rules on arrays of them, against ml_dtypes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import registry
from gradclip_core.plan import actions_of, stored_values
from gradclip_core.precision.factors import round_down_float32
from gradclip_core.protocol import (
    DTYPES,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    SCALE,
    ZERO,
    Buffer,
    DType,
    Request,
    What,
)
from gradclip_core.reference import narrow, widen
from tests.core import exact

ml_dtypes: Any = pytest.importorskip("ml_dtypes")
Array = npt.NDArray[Any]
BOTH = pytest.mark.parametrize("dtype", [FLOAT8_E4M3FN, FLOAT8_E5M2], ids=str)
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba_cpu"])
CODES = np.arange(256, dtype=np.uint8)
FACTORS = (1.0, 0.5, 0.3, 1 / 3, 0.75, 5.0, 1 + 2.0**-11, 2.0**-16, 3 * 2.0**-9, 1.5, 3 * 2.0**-140, 1e30)


def kind(dtype: DType) -> Any:
    return np.dtype(getattr(ml_dtypes, dtype.name))


def rounded(values: Any, dtype: DType) -> Array:
    """Float32 values as ml_dtypes rounds them."""
    with np.errstate(all="ignore"):
        made: Array = np.asarray(values, np.float32).astype(kind(dtype))
    return made


def same(found: Array, expected: Array) -> bool:
    """To the bit, any NaN being as good as any other."""
    a, b = (x.astype(np.float32) for x in (found, expected))
    nan = np.isnan(b)
    return bool((np.isnan(a) == nan).all() and (found.view(np.uint8) == expected.view(np.uint8))[~nan].all())


def load(backend: str) -> Any:
    if backend == "numba_cpu":
        pytest.importorskip("numba")
    return registry.load(backend)


def buffer(x: Array, dtype: DType, rows: int = 1) -> Buffer:
    return Buffer(x.ctypes.data, x.size // rows, dtype, rows, owner=x)


def gradients(dtype: DType, count: int = 9000, seed: int = 0, scale: float = 1.0) -> Array:
    return rounded(np.random.default_rng(seed).standard_normal(count) * scale, dtype)


# ---- codes and values ----------------------------------------------------------------------------


@BOTH
def test_what_is_said_of_the_type(dtype: DType) -> None:
    info = ml_dtypes.finfo(kind(dtype))
    assert (dtype.largest, dtype.smallest) == (float(info.max), float(info.smallest_subnormal))
    assert dtype.roundoff == float(info.eps) / 2
    assert dtype.has_infinity == bool(np.isinf(CODES.view(kind(dtype)).astype(np.float32)).any())
    assert DTYPES[dtype.name] is dtype


@BOTH
def test_every_code_is_read(dtype: DType) -> None:
    expected = CODES.view(kind(dtype)).astype(np.float32)
    found = widen(CODES, dtype)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@BOTH
def test_every_rounding_of_float32(dtype: DType) -> None:
    """Codes, what is half way between them, its neighbours, and a float32 of every exponent and 2^13 more bits."""
    values = np.sort(widen(CODES, dtype)[np.isfinite(widen(CODES, dtype))])
    past = dtype.largest * (1 + 2 * dtype.roundoff)
    between = np.concatenate([(values[1:] + values[:-1]) / 2, values, [past, -past, dtype.largest + 16]])
    between = between.astype(np.float32)
    near = [np.nextafter(between, np.float32(toward)) for toward in (-np.inf, np.inf)]
    every = np.arange(0, 1 << 32, 2039, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for y in (between, *near, every):
        with np.errstate(invalid="ignore"):
            assert narrow(y, dtype).tobytes() == rounded(y, dtype).tobytes()


@BOTH
def test_limits_that_the_type_cannot_hold_are_infinite(dtype: DType) -> None:
    assert stored_values((-np.inf, np.inf), dtype) == [-np.inf, np.inf]
    assert stored_values((0.3, -1e9), dtype) == [float(rounded(0.3, dtype).astype(float)), -np.inf]
    assert stored_values((dtype.largest * 1.01,), dtype) == [dtype.largest]


# ---- the passes ----------------------------------------------------------------------------------


@BOTH
@BACKENDS
@pytest.mark.parametrize("factor", FACTORS)
def test_every_code_times_a_factor(dtype: DType, backend: str, factor: float) -> None:
    """A product of 4 and 24 bits is exact in float64; ml_dtypes rounds it, by way of float32 as is promised."""
    served = load(backend)
    (stored,) = round_down_float32(np.array([factor]))
    for bound in (np.inf, 1.5):
        low, high = np.array([-bound]), np.array([bound])
        actions = actions_of(np.array([SCALE], np.uint8), np.array([stored]), low, high)
        assert Fraction(float(actions.coarse[0])) * Fraction(float(actions.fine[0])) == Fraction(float(stored))
        with np.errstate(all="ignore"):
            y = (widen(CODES, dtype).astype(np.float64) * float(actions.coarse[0])).astype(np.float32)
            y = (y.astype(np.float64) * float(actions.fine[0])).astype(np.float32)
        expected = rounded(np.where(y < -bound, -bound, np.where(y > bound, bound, y)), dtype)
        x, out = CODES.copy(), np.full(256, 77, np.uint8)
        served.apply([buffer(x, dtype)], [buffer(out, dtype)], actions)
        assert (x == CODES).all()
        served.apply([buffer(x, dtype)], [buffer(x, dtype)], actions)
        assert same(out.view(expected.dtype), expected)
        assert same(x.view(expected.dtype), expected)


@BOTH
@BACKENDS
def test_sums_and_counts(dtype: DType, backend: str) -> None:
    served, wide = load(backend), widen(CODES, dtype).astype(np.float64)
    finite = wide[np.isfinite(wide)]
    x = CODES.repeat(33)
    found = served.measure([buffer(x, dtype)], What(2.0))
    assert (found.infs[0], found.nans[0]) == (33 * np.isinf(wide).sum(), 33 * np.isnan(wide).sum())
    assert found.largest[0] == dtype.largest
    assert math.isnan(found.sums[0])
    for power in (1.0, 2.0):
        exactly = 33 * sum(abs(Fraction(float(v))) ** int(power) for v in finite)
        mended = exactly + 33 * int(np.isinf(wide).sum()) * Fraction(dtype.largest) ** int(power)
        alone = served.measure([buffer(CODES[np.isfinite(wide)].repeat(33), dtype)], What(power)).sums[0]
        all_of_it = served.measure([buffer(x, dtype)], What(power, sanitize=True)).sums[0]
        # The squares of e5m2 have sums of more than 53 bits; docs/numerics.md bounds their roundoff.
        rounds = Fraction(2) ** -46 if dtype is FLOAT8_E5M2 and power == 2 else 0
        assert abs(Fraction(float(alone)) - exactly) <= exactly * rounds
        assert abs(Fraction(float(all_of_it)) - mended) <= mended * rounds
    rows = served.measure([buffer(x, dtype, 256)], What(2.0))
    np.testing.assert_array_equal(rows.sums, 33 * wide**2)
    assert (rows.nans == 33 * np.isnan(wide)).all()


@BOTH
@BACKENDS
def test_sanitized_and_zeroed(dtype: DType, backend: str) -> None:
    served, wide = load(backend), widen(CODES, dtype)
    x = CODES.copy()
    served.apply([buffer(x, dtype)], [buffer(x, dtype)], actions_of(np.array([SCALE]), np.ones(1), sanitize=True))
    expected = np.clip(np.where(np.isnan(wide), np.float32(0), wide), -dtype.largest, dtype.largest)
    assert same(x.view(kind(dtype)), rounded(expected, dtype))
    served.apply([buffer(x, dtype)], [buffer(x, dtype)], actions_of(np.array([ZERO]), np.zeros(1)))
    assert not x.any()


# ---- the rules -----------------------------------------------------------------------------------


def by_torch(x: Array) -> Any:
    torch: Any = pytest.importorskip("torch")
    return torch.from_numpy(x.view(np.uint8).copy()).view(getattr(torch, x.dtype.name))


def back(x: Any, dtype: DType) -> Array:
    if isinstance(x, np.ndarray):
        return x
    torch: Any = pytest.importorskip("torch")
    assert x.dtype == getattr(torch, dtype.name)
    made: Array = x.view(torch.uint8).numpy().view(kind(dtype))
    return made


MAKERS = pytest.mark.parametrize("make", [np.copy, by_torch], ids=["numpy", "torch"])


@BOTH
@BACKENDS
@MAKERS
@pytest.mark.parametrize("ord", [1, 2, np.inf])
def test_by_global_norm(dtype: DType, backend: str, make: Any, ord: float) -> None:
    load(backend)
    host = [gradients(dtype, 5000), gradients(dtype, 300, 1)]
    norm = exact.norm(host, ord)
    grads = [make(x) for x in host]
    assert gc.global_norm(grads, ord, backend=backend) == norm
    made, info = gc.clip_by_global_norm(grads, norm / 3, ord=ord, backend=backend)
    assert info.clipped
    assert info.norm == norm
    assert norm / 3 * (1 - 2.0**-20) <= norm * info.scale <= norm / 3
    expected = [rounded(x.astype(np.float32) * np.float32(info.scale), dtype) for x in host]
    assert all(same(back(x, dtype), y) for x, y in zip(made, expected, strict=True))
    assert all(same(back(x, dtype), y) for x, y in zip(grads, host, strict=True)), "only read"
    count = {1: 5300, 2: math.sqrt(5300), np.inf: 1}[ord]
    assert exact.norm_at_most(expected, norm / 3 * (1 + dtype.roundoff) + count * dtype.smallest / 2, ord)
    again = gc.clip_by_global_norm_(grads, norm / 3, ord=ord, backend=backend)
    assert (again.norm, again.scale) == (info.norm, info.scale)
    assert all(same(back(x, dtype), y) for x, y in zip(grads, expected, strict=True))
    assert not gc.clip_by_global_norm_(grads, norm, ord=ord, backend=backend).clipped
    assert all(same(back(x, dtype), y) for x, y in zip(grads, expected, strict=True))


@BOTH
@BACKENDS
@MAKERS
def test_by_norm_unscaling_and_beside_other_types(dtype: DType, backend: str, make: Any) -> None:
    load(backend)
    host, other = gradients(dtype, 700, 2, 8.0), np.random.default_rng(3).standard_normal(9).astype(np.float32)
    made, info = gc.clip_by_norm([make(host), other], 3.0, loss_scale=4.0, backend=backend)
    assert info.norms["0"] == exact.norm([host]) / 4
    assert exact.within(4 * info.norms["1"], [other], 2.0**-46)
    factor = info.scale
    assert same(back(made[0], dtype), rounded(host.astype(np.float32) * np.float32(factor), dtype))
    assert made[1].dtype == np.float32
    np.testing.assert_array_equal(made[1], other / 4)


@BOTH
@BACKENDS
@MAKERS
@pytest.mark.parametrize("limit", [0.3, (-0.5, 1.4), (-math.inf, 0.0), 1e6])
def test_by_value(dtype: DType, backend: str, make: Any, limit: Any) -> None:
    load(backend)
    host = gradients(dtype, 4100, 4)
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    low, high = (v if abs(v) >= 1e6 else float(rounded(v, dtype).astype(np.float64)) for v in (low, high))
    expected = rounded(np.clip(host.astype(np.float64), low, high), dtype)
    made, info = gc.clip_by_value([make(host)], limit, backend=backend)
    assert info.clipped == (limit != 1e6)
    assert same(back(made[0], dtype), expected)
    grads = make(host)
    gc.clip_by_value_([grads], limit, backend=backend)
    assert same(back(grads, dtype), expected)


@BOTH
@BACKENDS
@MAKERS
def test_what_is_not_finite(dtype: DType, backend: str, make: Any) -> None:
    load(backend)
    host = gradients(dtype, 4200, 5)
    host[[7, 4111]] = np.nan
    host[[9, 10, 11]] = [np.inf, -np.inf, np.inf]  # NaN, where there is no infinity
    infs, nans = (3, 2) if dtype.has_infinity else (0, 5)
    grads = make(host)
    with pytest.raises(gc.NonFiniteGradientError, match=rf"'0' \({infs} inf, {nans} NaN\)"):
        gc.clip_by_global_norm_([grads], 1.0, backend=backend)
    info = gc.clip_by_global_norm_([grads], 1.0, nonfinite="skip", backend=backend)
    assert (info.skipped, info.infs, info.nans) == (True, infs, nans)
    assert same(back(grads, dtype), host)
    made, info = gc.clip_by_global_norm([grads], 1.0, nonfinite="zero", backend=backend)
    assert info.skipped
    assert not back(made[0], dtype).view(np.uint8).any()
    mended = np.clip(np.nan_to_num(host.astype(np.float64), nan=0.0), -dtype.largest, dtype.largest)
    made, info = gc.clip_by_global_norm([grads], 1.0, nonfinite="sanitize", backend=backend)
    assert info.norm == exact.norm([mended])
    factor = np.float32(info.scale)
    assert same(back(made[0], dtype), rounded(mended.astype(np.float32) * factor, dtype))
    made, info = gc.clip_by_global_norm([grads], 1.0, nonfinite="propagate", backend=backend)
    assert math.isnan(info.norm)
    assert np.isnan(back(made[0], dtype).astype(np.float32)).all()
    made, info = gc.clip_by_value([grads], 0.5, nonfinite="propagate", backend=backend)
    clamped = np.clip(host.astype(np.float32), -0.5, 0.5)
    assert same(back(made[0], dtype), rounded(clamped, dtype))


@BOTH
def test_units_and_strides(dtype: DType) -> None:
    host = gradients(dtype, 60 * 40, 6).reshape(60, 40)
    results = []
    for grads in (host, np.asfortranarray(host), host.repeat(2, axis=1)[:, ::2]):
        made, info = gc.clip_by_global_norm([grads], 2.0)
        assert same(made[0], rounded(host.astype(np.float32) * np.float32(info.scale), dtype))
        results.append(gc.adaptive_clip([grads], [np.ones((60, 40), np.float32)], 0.5, axis=1)[0][0])
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    norms = np.sqrt(np.sum(results[0].astype(np.float64) ** 2, axis=1))
    assert (norms <= 0.5 * math.sqrt(40) * (1 + dtype.roundoff) + math.sqrt(40) * dtype.smallest).all()


@pytest.mark.parametrize("name", ["array_api", "cupy_raw", "numba_cuda"])
def test_backends_without_float8_say_so(name: str) -> None:
    try:
        backend = registry.load(name)
    except gc.BackendError as error:
        pytest.skip(str(error))
    device = frozenset({"cpu" if name == "array_api" else "cuda:0"})
    reasons = backend.not_supported_reasons(Request(device, frozenset({"float32", "float8_e5m2"})))
    assert "it has no float8_e5m2" in reasons


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_of_ml_dtypes_is_served(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.array([[3.0, 4.0, 0.0]] * 2, getattr(ml_dtypes, name))[:, ::-1]
    clipped, info = gc.clip_by_norm([a, np.asfortranarray(a)], 0.5 * np.sqrt(50.0))
    assert info.norms == {"0": np.sqrt(50.0), "1": np.sqrt(50.0)}
    assert clipped[0].dtype == a.dtype
    np.testing.assert_array_equal(clipped[0].astype(float), [[0.0, 2.0, 1.5]] * 2)
    np.testing.assert_array_equal(a.astype(float), [[0.0, 4.0, 3.0]] * 2)
    gc.clip_by_norm_([a], 0.5 * np.sqrt(50.0))
    assert a.tobytes() == clipped[0].tobytes()
