"""``to_half``: every code of every narrow type into every other, judged by tables of the target's values.

The oracle: the table of a type's values, made from the definition of its bits, and the nearest of
them to the exact product, by bisection; of two that are as near the one with an even code.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.amp import INTO
from tests.core import exact
from tests.refusals import says

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Bits(NamedTuple):
    """Of exponent and fraction, the bias, and the code of the largest finite value."""

    exponent: int
    fraction: int
    bias: int
    top: int
    infinite: bool = True

    @property
    def code(self) -> np.dtype[Any]:
        return np.dtype(f"u{(1 + self.exponent + self.fraction) // 8}")

    def value(self, code: int) -> float:
        """Of a code without its sign. Exact."""
        field, fraction = divmod(code, 1 << self.fraction)
        steps = fraction + (1 << self.fraction if field else 0)
        return math.ldexp(steps, max(field, 1) - self.bias - self.fraction)

    def table(self) -> Floats:
        """The finite values >= 0 in their order, which is that of their codes."""
        return np.array([self.value(code) for code in range(self.top + 1)])

    def every(self) -> Floats:
        """The value of every code; NaN and infinities where they are such."""
        positive = np.full(2 ** (self.exponent + self.fraction), np.nan)
        positive[: self.top + 1] = self.table()
        if self.infinite:
            positive[self.top + 1] = np.inf
        return np.concatenate([positive, -positive])


BITS = {
    "float16": Bits(5, 10, 15, 0x7BFF),
    "bfloat16": Bits(8, 7, 127, 0x7F7F),
    "float8_e4m3fn": Bits(4, 3, 7, 0x7E, infinite=False),
    "float8_e5m2": Bits(5, 2, 15, 0x7B),
}
TABLES = {name: bits.table() for name, bits in BITS.items()}
EVERY = {name: bits.every() for name, bits in BITS.items()}
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}
NARROW = pytest.mark.parametrize("source", list(BITS))
HUGE = gc.Value(3.4e38)  # in each of the four types this rounds to infinity: it clips nothing


def numpy_type(name: str) -> np.dtype[Any]:
    """NumPy's own, or ml_dtypes'."""
    return np.dtype(name if hasattr(np, name) else getattr(pytest.importorskip("ml_dtypes"), name))


def every_code(name: str) -> tuple[Array, Floats]:
    """All codes of a type as an array, and their values by our own table."""
    values = EVERY[name].copy()
    return np.arange(values.size).astype(BITS[name].code).view(numpy_type(name)), values


def nearest(v: Floats, name: str) -> Array:
    """The codes of ``v``, saturating; a NaN's code means nothing."""
    table = TABLES[name]
    middles = (table[1:] + table[:-1]) / 2  # exact: one bit more
    magnitude = np.minimum(np.abs(v), table[-1])
    code = np.searchsorted(middles, magnitude)
    tie = np.append(middles, np.inf)[np.minimum(code, middles.size)] == magnitude
    code = code + (tie & (code % 2 == 1))
    sign = np.signbit(v).astype(np.int64) << (8 * BITS[name].code.itemsize - 1)
    signed: Array = (code | sign).astype(BITS[name].code)
    return signed


def same(found: Array, v: Floats, name: str) -> None:
    """``found`` is ``v``, converted."""
    assert found.dtype == numpy_type(name)
    nan = np.isnan(v)
    codes = found.view(BITS[name].code)
    wrong = np.flatnonzero((codes != nearest(v, name)) & ~nan)
    assert wrong.size == 0, (v.ravel()[wrong[:5]], found.ravel()[wrong[:5]])
    with np.errstate(invalid="ignore"):
        assert np.isnan(found.astype(np.float32)[nan]).all()


def test_the_oracle_is_that_of_numpy_and_ml_dtypes() -> None:
    """Where it does not saturate."""
    for name in BITS:
        array, values = every_code(name)
        with np.errstate(invalid="ignore"):  # ml_dtypes casts signalling NaNs
            assert np.array_equal(array.astype(np.float64), values, equal_nan=True)
        same(array[np.isfinite(values)], values[np.isfinite(values)], name)
        v = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        assert nearest(v.astype(np.float64), name).tobytes() == v.astype(numpy_type(name)).tobytes()
    assert nearest(np.array([1e9, -1e9, 65520.0]), "float16").tolist() == [0x7BFF, 0xFBFF, 0x7BFF]


# ---- every code -------------------------------------------------------------------------------------


@NARROW
@INTO
def test_every_code_where_nothing_is_clipped(source: str, target: str, backend: str) -> None:
    x, values = every_code(source)
    for scale in (1.0, 2.0**10, 2.0**-9, 3.0, 1000.0, 0.3):
        found, info = gc.to_half(x, target, HUGE, loss_scale=scale, nonfinite="propagate", backend=backend)
        assert 1 / scale * (1 - 2.0**-23) < info.scale <= 1 / scale
        assert math.frexp(scale)[0] != 0.5 or info.scale == 1 / scale
        with np.errstate(invalid="ignore"):
            same(found, values * info.scale, target)


@NARROW
@INTO
def test_every_finite_code_under_a_norm(source: str, target: str, backend: str) -> None:
    x, values = every_code(source)
    x, values = x[np.isfinite(values)], values[np.isfinite(values)]
    norm = gc.global_norm(x)
    for bound in (1e300, 0.9 * norm, norm / 3, 1e-3 * norm, 1.0, 1e-30):
        for scale in (1.0, 2.0**7, 5.0):
            found, info = gc.to_half(x, target, gc.GlobalNorm(bound), loss_scale=scale, backend=backend)
            assert info.norm == pytest.approx(norm / scale, rel=1e-15)
            assert info.clipped == (bound < norm / scale)
            assert info.scale == pytest.approx(min(1, bound / info.norm) / scale, rel=2**-22)
            same(found, values * info.scale, target)


@INTO
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_wide_numbers_at_every_boundary(target: str, kind: type[np.floating[Any]], backend: str) -> None:
    """Each value, each middle between two, the numbers beside them, beyond the largest, subnormals, any bits."""
    table = TABLES[target]
    middles = np.append((table[1:] + table[:-1]) / 2, table[-1] + (table[-1] - table[-2]) / 2)
    with np.errstate(over="ignore"):
        edges = np.concatenate([table, middles]).astype(kind)
    edges = edges[np.isfinite(edges)]
    beside = [np.nextafter(edges, kind(toward)) for toward in (0, 1e38)]
    top = float(np.finfo(kind).max)
    ends = np.array([0.0, np.finfo(kind).smallest_subnormal, np.finfo(kind).tiny, top, 1e30, table[-1] * 1.001], kind)
    bits = np.random.default_rng(1).integers(0, 2 ** (8 * ends.itemsize - 1), 50_000, dtype=np.uint64)
    some = bits.astype(f"u{ends.itemsize}").view(kind)
    x = np.concatenate([edges, *beside, ends, some[np.isfinite(some)]])
    x = np.concatenate([x, -x])
    wide = x.astype(np.float64)
    same(gc.to_half(x, target, gc.ArrayNorm(top, math.inf), backend=backend)[0], wide, target)
    for scale in (2.0**8, 3.0):
        found, report = gc.to_half(x, target, gc.GlobalNorm(1.7e308), loss_scale=scale, backend=backend)
        same(found, wide * report.scale, target)


# ---- every rule -------------------------------------------------------------------------------------


def grads(kind: Any = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    shapes = {"a": (6, 50), "b": (300,), "c": ()}
    return {name: np.asarray(rng.standard_normal(s) * 1000).astype(kind) for name, s in shapes.items()}


@INTO
@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "bfloat16"])
def test_norm_rules(target: str, kind: str, backend: str) -> None:
    given = grads(numpy_type(kind) if kind == "bfloat16" else kind)
    groups = {"weights": ["a"], "rest": ["b", "c"]}
    for rule in (gc.GlobalNorm(50.0), gc.GlobalNorm(7.0, 1), gc.ArrayNorm(9.0), gc.GroupNorm(8.0, groups)):
        halves, info = gc.to_half(given, target, rule, loss_scale=16.0, backend=backend)
        for path, x in given.items():
            same(halves[path], np.asarray(x.astype(np.float64) * info.scales[path]), target)
        assert info.norm == gc.plan(given, rule, loss_scale=16.0, backend=backend).info.norm


@INTO
def test_units(target: str, backend: str) -> None:
    """Each row has the factor that it has alone."""
    (x, weights) = grads()["a"], np.tile(np.array([3.0, 4.0] + [0.0] * 48, np.float32), (6, 1))
    found, _ = gc.to_half(x, target, gc.UnitNorm(weights, 0.5, axis=1), backend=backend)
    for row, half in zip(x, found, strict=True):
        same(half, row.astype(np.float64) * gc.plan(row, gc.GlobalNorm(2.5), backend=backend).scale, target)


@INTO
@pytest.mark.parametrize("limit", [0.25, 300.0, 7e4, (-1.0, math.inf), (2.0, 3.0), (1e5, 2e5)])
def test_value(target: str, limit: Any, backend: str) -> None:
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    x = np.append(grads()["b"] * np.float32(100), np.array([1e6, -1e6, 0.0], np.float32))
    for scale in (1.0, 8.0):
        found, _ = gc.to_half(x, target, gc.Value(limit), loss_scale=scale, backend=backend)
        same(found, np.clip(x.astype(np.float64) / scale, low, high), target)


@INTO
def test_projections_and_chains(target: str, backend: str) -> None:
    given = grads()
    onto = gc.Project(sets.L1Ball(300.0))
    halves, info = gc.to_half(given, target, onto, loss_scale=4.0, backend=backend)
    wide, _ = gc.clip({name: x.astype(np.float64) for name, x in given.items()}, onto, loss_scale=4.0, backend=backend)
    for path, y in wide.items():
        same(halves[path], y, target)
    assert info.certificate is not None
    chain = gc.Chain(gc.Value(500.0), gc.GlobalNorm(100.0))
    halves, _ = gc.to_half(given, target, chain, loss_scale=4.0, backend=backend)
    first, _ = gc.clip(given, chain.rules[0], loss_scale=4.0, backend=backend)
    second, _ = gc.to_half(first, target, chain.rules[1], backend=backend)
    for path in given:
        assert halves[path].tobytes() == second[path].tobytes()


@INTO
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_the_norm_of_the_halves_is_within_the_bound_but_for_a_roundoff(target: str, ord: float) -> None:
    """Where nothing falls among the subnormals, whose rounding is absolute."""
    rng = np.random.default_rng(7)
    for _ in range(30):
        x = (rng.choice([-1, 1], 20) * rng.uniform(1, 4, 20)).astype(np.float32)
        norm = gc.global_norm(x, ord)
        bound = norm * rng.uniform(0.1, 0.9)
        half, _ = gc.to_half(x, target, gc.GlobalNorm(bound, ord))
        assert np.abs(half.astype(np.float32)).min() >= 2.0**-6
        assert exact.norm_at_most([half], Fraction(bound) * (1 + Fraction(ROUNDOFF[target])), ord)


# ---- arrays and containers --------------------------------------------------------------------------


@INTO
def test_layouts(target: str, backend: str) -> None:
    x = grads()["a"]
    layouts: list[Any] = [x[:, ::3], x[::-2], np.asfortranarray(x), x.T, x[1:1], x.reshape(3, 2, 50).transpose(2, 0, 1)]
    for array in [*layouts, np.float32(3.5), np.array(70000.0, np.float32)]:
        before = array.tobytes()
        scale = gc.plan(array, gc.GlobalNorm(40.0), backend=backend).scale
        found, _ = gc.to_half(array, target, gc.GlobalNorm(40.0), backend=backend)
        same(np.asarray(found), np.asarray(array, np.float64) * scale, target)
        for rule in (gc.Value(500.0), gc.Project(sets.L1Ball(100.0))):
            found, _ = gc.to_half(array, target, rule, backend=backend)
            like, _ = gc.clip(np.array(array, np.float64), rule, backend=backend)
            assert nearest(np.asarray(like), target).tobytes() == np.asarray(found).tobytes()
            assert found.shape == like.shape
        assert array.tobytes() == before


def test_containers_keep_their_types_and_ties() -> None:
    class Pair(NamedTuple):
        first: Any
        second: Any

    tied = np.array([3.0, 4.0], np.float32)
    given = OrderedDict(a=[tied, None, (np.array([12.0]),)], b=Pair(tied, {"x": np.array([], np.float16)}))
    halves, info = gc.to_half(given, "float16", gc.GlobalNorm(6.5))
    assert info.norm == 13.0
    assert type(halves) is OrderedDict
    assert type(halves["b"]) is Pair
    assert halves["a"][1] is None
    assert halves["a"][0] is halves["b"].first
    assert halves["a"][0].tolist() == [1.5, 2.0]
    assert [halves["a"][2][0].dtype, halves["b"].second["x"].dtype] == [np.float16, np.float16]
    assert gc.to_half({}, "float16", gc.GlobalNorm(1.0))[0] == {}


@INTO
def test_torch(target: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, target)
    x = grads()["a"]
    for tensor in (torch.from_numpy(x.copy()), torch.from_numpy(x.copy()).t(), torch.from_numpy(x.copy())[:, ::3]):
        (half,), info = gc.to_half([tensor], dtype, gc.GlobalNorm(100.0))
        assert isinstance(half, torch.Tensor)
        assert half.dtype is dtype
        wide = tensor.numpy().astype(np.float64) * info.scale
        codes = half.contiguous().view(torch.uint8).numpy().reshape(*wide.shape, -1)
        code = np.ascontiguousarray(codes).view(BITS[target].code)[..., 0]
        assert (code == nearest(wide, target)).all()


@INTO
def test_jax(target: str) -> None:
    jax = pytest.importorskip("jax")
    x = grads()["a"]
    halves, info = gc.to_half({"w": jax.numpy.asarray(x)}, getattr(jax.numpy, target), gc.GlobalNorm(100.0))
    assert isinstance(halves["w"], jax.Array)
    same(np.asarray(halves["w"]), x.astype(np.float64) * info.scale, target)


# ---- what is not finite -----------------------------------------------------------------------------


@INTO
def test_policies(target: str, backend: str) -> None:
    largest = float(TABLES[target][-1])
    x = np.array([np.inf, -np.inf, np.nan, 3.0], np.float32)

    def made(policy: str) -> str:
        half, info = gc.to_half(x, target, gc.Value(2.0), nonfinite=policy, backend=backend)
        assert info.skipped == (policy in ("skip", "zero"))
        return str(half.astype(np.float64).tolist())

    assert made("skip") == f"[{largest}, -{largest}, nan, 3.0]"
    assert made("zero") == "[0.0, 0.0, 0.0, 0.0]"
    assert made("sanitize") == "[2.0, -2.0, 0.0, 2.0]"
    assert made("propagate") == "[2.0, -2.0, nan, 2.0]"
    with says(gc.NonFiniteGradientError, "to_half", "2 inf, 1 NaN"):
        made("raise")
    assert np.isnan(gc.to_half(x, target, gc.GlobalNorm(1.0), nonfinite="propagate")[0].astype(np.float32)).all()
    half, _ = gc.to_half(x, target, gc.GlobalNorm(1e39), nonfinite="sanitize", backend=backend)
    assert half.astype(np.float64).tolist() == [largest, -largest, 0.0, 3.0]


@pytest.mark.parametrize("dtype", ["float32", "int8", "half", None, np.float32, 16, "float8_e4m3", "torch.int8"])
def test_no_half(dtype: Any) -> None:
    with says(gc.InvalidArgumentError, "to_half, dtype=", "Pass float16, bfloat16, float8_e4m3fn, float8_e5m2"):
        gc.to_half([np.ones(2)], dtype, gc.GlobalNorm(1.0))


def test_names_of_a_half() -> None:
    for dtype in (np.float16, np.dtype("float16"), "float16", "torch.float16"):
        assert gc.to_half(np.ones(2), dtype, gc.GlobalNorm(9.0))[0].dtype == np.float16


def test_what_has_no_half() -> None:
    with says(gc.UnsupportedArrayError, "to_half, array 'w': it is complex", "real and imaginary parts"):
        gc.to_half({"w": np.ones(2, np.complex64)}, "float16", gc.GlobalNorm(1.0))
    x = np.array([3e5, 1.0], np.float32)
    before = x.tobytes()
    with says(gc.InvalidArgumentError, "to_half", "an element of 2e+05", "ends at 65504", "a smaller set"):
        gc.to_half(x, "float16", gc.Project(sets.L1Ball(2e5)))
    assert x.tobytes() == before
    assert gc.to_half(x, "float16", gc.Project(sets.L1Ball(65504.0)))[0].tolist() == [65504.0, 0.0]
    assert gc.to_half(x, "float16", gc.Project(sets.L1Ball(1e9)))[0].tolist() == [65504.0, 1.0]  # within: saturated
