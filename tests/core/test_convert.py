"""From each storage type to each other, rounded once: every 16-bit code, ties, subnormals, and the form "fit"."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradclip_core import registry
from gradclip_core.forms import Form, Passes, Reading, passes_of
from gradclip_core.protocol import (
    BFLOAT16,
    DTYPES,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Buffer,
    DType,
)

ml_dtypes: Any = pytest.importorskip("ml_dtypes")
Array = npt.NDArray[Any]
PLAIN_PYTHON = os.environ.get("NUMBA_DISABLE_JIT") == "1"
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba_cpu"])
ALL = tuple(DTYPES.values())


def kind(dtype: DType) -> Any:
    """The type to whom its values are numbers: NumPy's, or ml_dtypes'."""
    return np.dtype(getattr(ml_dtypes, dtype.name)) if dtype.coded else dtype.view


def load(backend: str) -> Passes:
    if backend == "numba_cpu":
        pytest.importorskip("numba")
    return passes_of(registry.load(backend))


def buffer(x: Array, dtype: DType, rows: int = 1) -> Buffer:
    return Buffer(x.ctypes.data, x.size // rows, dtype, rows, owner=x)


# ---- the oracle ----------------------------------------------------------------------------------


def magnitudes(dtype: DType) -> tuple[npt.NDArray[np.float64], Array]:
    """The finite values >= 0 of a type of at most 16 bits, rising, and their codes. ml_dtypes and NumPy know them."""
    codes = np.arange(1 << (8 * dtype.itemsize - 1)).astype(f"u{dtype.itemsize}")
    values = codes.view(kind(dtype)).astype(np.float64)
    return values[np.isfinite(values)], codes[np.isfinite(values)]


def once(y: npt.NDArray[np.float64], dtype: DType) -> Array:
    """Float64 values in a type, rounded once. By comparison with what is half way between two values, which has one
    bit more than they and is exact in float64. (ml_dtypes itself goes by way of float32: it rounds twice.)
    """
    with np.errstate(all="ignore"):
        if dtype in (FLOAT32, FLOAT64):
            return y.astype(dtype.view)
        values, codes = magnitudes(dtype)
        last = values[-1] + (values[-1] - values[-2]) / 2
        half = np.append((values[1:] + values[:-1]) / 2, last)
        low, high = np.searchsorted(half, np.abs(y), "left"), np.searchsorted(half, np.abs(y), "right")
        place = np.where((low != high) & (low % 2 == 1), high, low)  # a tie goes to the even code
        beyond = np.array([np.inf], np.float32).astype(kind(dtype)).view(codes.dtype)
        code = np.append(codes, beyond)[place] | (np.signbit(y).astype(codes.dtype) << (8 * dtype.itemsize - 1))
        return np.where(np.isnan(y), np.array([np.nan], np.float32).astype(kind(dtype)).view(codes.dtype), code)


def same(found: Array, expected: Array, dtype: DType) -> None:
    """To the bit, any NaN being as good as any other."""
    with np.errstate(invalid="ignore"):
        a, b = (x.view(kind(dtype)).astype(np.float64) for x in (found, expected))
    nan = np.isnan(b)
    np.testing.assert_array_equal(np.isnan(a), nan)
    unsigned = f"u{dtype.itemsize}"
    np.testing.assert_array_equal(found.view(unsigned)[~nan], expected.view(unsigned)[~nan])


def test_the_oracle_is_numpy_where_numpy_rounds_once_and_ml_dtypes_from_float32() -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.standard_normal(20_000) * 2.0 ** rng.integers(-30, 20, 20_000), ties(FLOAT16)])
    with np.errstate(all="ignore"):
        same(once(y, FLOAT16), y.astype(np.float16), FLOAT16)
    for dtype in (BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2):
        with np.errstate(all="ignore"):
            wide = np.concatenate([y, ties(dtype), every(FLOAT16), every(BFLOAT16)]).astype(np.float32)
            expected = wide.astype(kind(dtype)).view(dtype.view)
        same(once(wide.astype(np.float64), dtype), expected, dtype)


# ---- what is converted ---------------------------------------------------------------------------


def ties(dtype: DType) -> npt.NDArray[np.float64]:
    """Half way between values, and a hair, less than float32 can tell, to both sides; the ends, and beyond."""
    if dtype.itemsize <= 2:
        values, _ = magnitudes(dtype)
        half = np.append((values[1:] + values[:-1]) / 2, 1.5 * values[-1] - 0.5 * values[-2])
        half, values = (v[:: 1 if dtype.itemsize == 1 else 29] for v in (half, values))
    else:
        rng = np.random.default_rng(7)
        values = (2.0 ** rng.uniform(-149, 127.9, 3000)).astype(np.float32).astype(np.float64)
        half = values + np.maximum(np.spacing(values.astype(np.float32)).astype(np.float64), dtype.smallest) / 2
    at = np.concatenate([half, half * (1 + 2.0**-40), half * (1 - 2.0**-40), values])
    at = np.concatenate([at, [dtype.largest, 1e300, 1e-300, 5e-324, 0.0, math.inf, math.nan]])
    return np.concatenate([at, -at])


def every(dtype: DType) -> npt.NDArray[np.float64]:
    """All values of a type of at most 16 bits."""
    codes = np.arange(1 << 8 * dtype.itemsize).astype(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        values: npt.NDArray[np.float64] = codes.view(kind(dtype)).astype(np.float64)
    return values


def source(dtype: DType, to: DType) -> Array:
    """Memory of a type: all of it, or random bits and what lies at the ties of the type that it goes to."""
    if dtype.itemsize <= 2:
        stored: Array = np.arange(1 << 8 * dtype.itemsize).astype(dtype.view if dtype.coded else f"u{dtype.itemsize}")
        stored = stored.view(dtype.view)
    else:
        noise = np.random.default_rng(3).integers(0, 1 << 62, 20_000, dtype=np.uint64)
        noise = noise * np.uint64(4) + np.uint64(3)
        with np.errstate(all="ignore"):
            at = ties(to).astype(dtype.view)
            near = [np.nextafter(at, dtype.view.type(toward)) for toward in (-math.inf, math.inf)]
        stored = np.concatenate([noise.view(dtype.view), at, *near])
    return stored[:: max(1, stored.size // 1500)].copy() if PLAIN_PYTHON else stored


@BACKENDS
@pytest.mark.parametrize("to", ALL, ids=str)
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_each_type_to_each(dtype: DType, to: DType, backend: str) -> None:
    x = source(dtype, to)
    before = x.tobytes()
    with np.errstate(invalid="ignore"):
        u = x.view(kind(dtype)).astype(np.float64)
    passes = load(backend)
    for reading, a in ((Reading(), 1.0), (Reading(), 1 + 2.0**-40), (Reading(0.75), 1 - 2.0**-40)):
        with np.errstate(all="ignore"):
            y = (u * reading.inverse) * a
        out = np.full(x.size, 77, to.view)
        found = passes.map([buffer(x, dtype)], [buffer(out, to)], reading, Form.of("scale", 1, a), ("count", "max_y"))
        expected = once(y, to)
        same(out, expected, to)
        assert x.tobytes() == before
        wide = expected.view(kind(to)).astype(np.float64)
        assert found[0, 0] == np.count_nonzero(wide)
        assert math.isnan(found[1, 0]) == bool(np.isnan(wide).any())


@BACKENDS
def test_many_at_once_as_rows_of_all_types(backend: str) -> None:
    """Each array goes to a type of its own; those alike in both are one call of a kernel, in whatever order."""
    passes, rng = load(backend), np.random.default_rng(5)
    pairs = [(a, b) for a in ALL for b in ALL] * 2
    shapes = [(1 + i % 3, (5, 0, 300)[i % 3 - 1]) for i in range(len(pairs))]
    wide = [rng.standard_normal(shape) for shape in shapes]
    sources = [once(v, a) for v, (a, _) in zip(wide, pairs, strict=True)]
    targets = [np.full(v.shape, 77, b.view) for v, (_, b) in zip(wide, pairs, strict=True)]
    rows = [shape[0] for shape in shapes]
    factors = 0.5 + np.arange(sum(rows)) / 64
    passes.map(
        [buffer(x, a, n) for x, (a, _), n in zip(sources, pairs, rows, strict=True)],
        [buffer(x, b, n) for x, (_, b), n in zip(targets, pairs, rows, strict=True)],
        Reading(1 / 3),
        Form.of("fit", sum(rows), factors, -0.25, 0.375),
        (),
    )
    first = 0
    for x, made, (a, b), n in zip(sources, targets, pairs, rows, strict=True):
        u = x.view(kind(a)).astype(np.float64) * (1 / 3)
        same(made, once(np.clip(u * factors[first : first + n, None], -0.25, 0.375), b), b)
        first += n


@BACKENDS
def test_moments_are_of_what_the_target_holds(backend: str) -> None:
    x = np.array([1.0, 1.0625, 1.1875, 300.0])
    out = np.zeros(4, np.uint8)
    form = Form.of("same", 1)
    found = load(backend).map([buffer(x, FLOAT64)], [buffer(out, FLOAT8_E4M3FN)], Reading(), form, ("sum", "max_d"))
    assert found[:, 0].tolist() == [1.0 + 1.0 + 1.25 + 288.0, 12.0]
    scaled = load(backend).map(
        [buffer(x, FLOAT64)], [buffer(out, FLOAT8_E4M3FN)], Reading(exponent=2), form, ("sum", "max_d")
    )
    np.testing.assert_array_equal(out.view(kind(FLOAT8_E4M3FN)).astype(float), [1.0, 1.0, 1.25, 288.0])
    assert scaled[:, 0].tolist() == [(1.0 + 1.0 + 1.25 + 288.0) / 4, 3.0]


@BACKENDS
def test_sanitized_by_the_source_s_largest(backend: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 70000.0], np.float32)
    out = np.zeros(4, np.float16)
    form = Form.of("fit", 1, 1.0, -65504.0, 65504.0)
    load(backend).map([buffer(x, FLOAT32)], [buffer(out, FLOAT16)], Reading(sanitize=True), form, ())
    np.testing.assert_array_equal(out, np.array([0, 65504, -65504, 65504], np.float16))


# ---- fit -----------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_fit_is_a_multiplication_and_two_bounds_and_nan_stays_nan(dtype: DType, backend: str) -> None:
    values = np.array([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, math.inf, -math.inf, math.nan, 0.25, -0.25, 6.0])
    x = once(values, dtype)
    u = x.view(kind(dtype)).astype(np.float64)
    for a, b, c in ((1.0, -1.0, 2.0), (-0.5, -math.inf, 1.0), (2.0, 0.0, math.inf), (0.0, -1.0, 1.0), (1.5, 1.0, 1.0)):
        out = np.full(x.size, 77, dtype.view)
        load(backend).map([buffer(x, dtype)], [buffer(out, dtype)], Reading(), Form.of("fit", 1, a, b, c), ())
        with np.errstate(invalid="ignore"):
            z = u * a
        expected = np.where(np.isnan(z), np.nan, np.where(z < b, b, np.where(z > c, c, z)))
        same(out, once(expected, dtype), dtype)
