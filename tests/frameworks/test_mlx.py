"""MLX arrays: read where they are, answered in kind; by MLX's own operations inside its transforms."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets, testing
from gradclip_core.arrays.dock import unload
from gradclip_core.protocol import DType
from gradclip_core.testing.memory import Stored
from tests.refusals import check_sentence

mx: Any = pytest.importorskip("mlx.core")

NORM, ELEMENT = 2.0**-22, 2.0**-19  # testing.approximate: what float32 can promise
traced = pytest.mark.shows("mlx", "under its compiler", "approximate")
RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(3.0, 1),
    gc.GlobalNorm(0.5, math.inf),
    gc.GlobalNorm(1e9),
    gc.ArrayNorm(0.5),
    gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "0" else "b"),
    gc.Value((-0.1, 0.25)),
    gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0), gc.ArrayNorm(0.75)),
    gc.Project(sets.L2Ball(1.0)),
]


def put(values: npt.NDArray[Any], dtype: str) -> Any:
    return mx.array(values, dtype=getattr(mx, dtype))


def bits(x: Any) -> bytes:
    """The elements in C order, byte by byte."""
    return bytes(np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x).tobytes())


def grads(dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype("float32") for shape in ((3, 50), (7,), (), (0, 4))]
    if dtype == "complex64":
        values = [x + 1j * x[::-1] if x.ndim else x for x in values]
    return [put(x, dtype) for x in values]


# -------------------------------------------------------------------------------- concrete arrays


@pytest.mark.shows("mlx", "new arrays", "exact")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_new_arrays_have_the_reference_s_bits(dtype: str) -> None:
    given = grads(dtype)
    before = [bits(x) for x in given]
    for rule in RULES if dtype != "complex64" else RULES[:1]:
        clipped, info = gc.clip(given, rule)
        expected, known = gc.clip([np.array(x) for x in given], rule, backend="numpy")
        assert [(type(y), y.dtype, y.shape) for y in clipped] == [(mx.array, x.dtype, x.shape) for x in given]
        assert [bits(y) for y in clipped] == [y.tobytes() for y in expected]
        assert (info.norm, info.clipped_norm, info.norms) == (known.norm, known.clipped_norm, known.norms)
    assert [bits(x) for x in given] == before


@pytest.mark.shows("mlx", "16-bit", "exact")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype: str) -> None:
    if dtype == "bfloat16":
        importlib.import_module("ml_dtypes") if importlib.util.find_spec("ml_dtypes") else pytest.skip("no ml_dtypes")
    given = grads(dtype)
    for rule in RULES:
        clipped, info = gc.clip(given, rule)
        words = [np.frombuffer(bits(x), dtype).reshape(x.shape) for x in given]
        expected, known = gc.clip(words, rule, backend="numpy")
        assert [y.dtype for y in clipped] == [x.dtype for x in given]
        assert [bits(y) for y in clipped] == [y.tobytes() for y in expected]
        assert info.norms == known.norms
    wide = [x.astype(mx.float32) for x in given]
    halves, _ = gc.to_half(wide, getattr(mx, dtype), gc.GlobalNorm(1.0))
    assert [bits(y) for y in halves] == [bits(y) for y in gc.clip_by_global_norm(given, 1.0)[0]]


def test_bfloat16_needs_no_ml_dtypes() -> None:
    code = """
import sys; sys.modules["ml_dtypes"] = None
import mlx.core as mx, gradclip_core as gc
x = mx.array([3.0, 4.0], dtype=mx.bfloat16)
for _ in range(2):
    (y,), info = gc.clip_by_global_norm([x], 2.5)
print(y.dtype, y.tolist(), info.norm, gc.to_half([mx.array([3.0])], "bfloat16", gc.Value(1.0))[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "mlx.core.bfloat16 [1.5, 2.0] 5.0 [array([1], dtype=bfloat16)]", done.stderr


def test_what_is_left_as_it_is_is_given_back_as_it_is() -> None:
    given = grads()
    clipped, _ = gc.clip_by_global_norm(given, 1e9)
    assert all(a is b for a, b in zip(clipped, given, strict=True))


def test_layouts_that_are_no_memory_of_their_own() -> None:
    x = put(np.random.default_rng(1).standard_normal((6, 8)), "float32")
    views = [x.T, x[::2, 1::3], x[::-1], mx.broadcast_to(x[:1], (4, 8)), x.astype(mx.bfloat16).T]
    for view in views:
        (y,), info = gc.clip_by_global_norm([view], 1.0)
        dense = np.array(view.astype(mx.float32))
        assert info.norm == gc.global_norm(dense)
        assert y.shape == view.shape
        np.testing.assert_allclose(np.array(y.astype(mx.float32)), dense / info.norm, rtol=2.0**-8)


def test_a_large_matrix_that_is_turned_comes_back_the_right_way_round() -> None:
    values = np.random.default_rng(1).standard_normal((128, 128)).astype("float32")
    for _ in range(3):  # the first call goes by the dock, the others by express
        (y,), info = gc.clip_by_global_norm([mx.array(values).T], 1.0)
        assert bits(y) == np.ascontiguousarray(gc.clip_by_global_norm([values], 1.0)[0][0].T).tobytes()
        assert info.clipped


def test_lazy_arrays_are_computed() -> None:
    x = mx.arange(5, dtype=mx.float32) + 1
    mx.async_eval(y := x * 2)
    assert gc.global_norm([x * 3, y]) == math.sqrt(9 * 55 + 4 * 55)


@pytest.mark.jit
def test_compiled_code_reads_them_all_at_once() -> None:
    pytest.importorskip("numba")
    gc.global_norm([np.ones(3)], backend="numba_cpu")
    gc.global_norm(grads())
    assert unload(grads(), "test").manifest is not None
    assert unload(grads("complex64"), "test").manifest is None


@pytest.mark.shows("mlx", "in place", "refused")
def test_in_place_is_refused_with_the_other_function_s_name() -> None:
    x = mx.array([3.0, 4.0])
    shared = x.reshape(2, 1)
    with pytest.raises(gc.ReadOnlyError) as caught:
        gc.clip_by_global_norm_([x], 1.0)
    seen = "an MLX array's memory may be another one's too"
    check_sentence(caught.value, gc.ReadOnlyError, "array '0'", seen, "Use clip_by_global_norm, which returns")
    assert shared.tolist() == [[3.0], [4.0]]


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint16"])
def test_what_is_no_gradient(dtype: str) -> None:
    """uint16 is what bfloat16's bits are read as."""
    x = mx.ones(3).astype(mx.bool_ if dtype == "bool" else getattr(mx, dtype))
    with pytest.raises(gc.UnsupportedArrayError, match=f"dtype {dtype}"):
        gc.global_norm([x])


def test_there_is_no_float8() -> None:
    with pytest.raises(gc.UnsupportedArrayError, match="MLX has no float8_e5m2"):
        gc.to_half([mx.ones(3)], "float8_e5m2", gc.GlobalNorm(1.0))


# -------------------------------------------------------------------------- inside transforms


def near(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = (np.asarray(x.astype(mx.float32) if isinstance(x, mx.array) else x, np.float64) for x in (a, b))
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-126).all())


class MlxArrays:
    """MLX's, for the conformance suite."""

    def __init__(self, wide: str) -> None:
        self.wide = wide
        self.dtypes = ["float16", "bfloat16", "float32"] if wide == "float32" else ["float64"]

    def put(self, values: Stored, dtype: DType) -> Any:
        values = np.asarray(values)
        return mx.array(values).view(mx.bfloat16) if dtype.coded else mx.array(values, dtype=getattr(mx, dtype.name))

    def get(self, x: Any, dtype: DType) -> Stored:
        return np.array(x.view(mx.uint16) if dtype.coded else x)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return function(*arrays)


@traced
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_the_suite(wide: str) -> None:
    """Not compiled, which takes seconds for each check."""
    if not importlib.util.find_spec("ml_dtypes"):
        pytest.skip("the suite makes bfloat16 by ml_dtypes")
    backend: Any = importlib.import_module("gradclip_backends.array_api").BACKEND
    for check in itertools.islice(testing.approximate_checks(backend.operations, MlxArrays(wide)), 0, None, 3):
        check.run()


@traced
def test_compiled() -> None:
    given = grads()[:2]
    rule = gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0))

    def step(a: Any, b: Any) -> Any:
        (y, z), info = gc.clip([a, b], rule, nonfinite="skip")
        return y, z, info.norm, info.clipped_norm, info.skipped, *info.norms.values()

    y, z, norm, after, skipped, *norms = mx.compile(step)(*given)
    expected, known = gc.clip(given, rule)
    assert near(y, expected[0])
    assert near(z, expected[1])
    assert near(norm, known.norm, NORM)
    assert near(after, known.clipped_norm)
    assert not bool(skipped)
    assert all(near(a, b, NORM) for a, b in zip(norms, known.norms.values(), strict=True))


@traced
def test_a_loss_scale_that_only_the_program_knows() -> None:
    x = mx.array([6.0, 8.0])

    def step(x: Any, scale: Any) -> Any:
        (y,), info = gc.clip_by_global_norm([x], 2.5, nonfinite="skip", loss_scale=scale)
        return y, info.norm

    y, norm = mx.vmap(step)(x[None], mx.array([2.0]))
    assert near(y[0], [1.5, 2.0])
    assert near(norm, [5.0], NORM)
    assert gc.clip_by_global_norm([x], 2.5, loss_scale=mx.array(2.0))[1].norm == 5.0


@traced
def test_vmapped_each_by_itself() -> None:
    rows = mx.array([[3.0, 4.0], [0.3, 0.4], [math.nan, 1.0]])
    clipped, skipped = mx.vmap(lambda x: _with_skipped(x, 1.0))(rows)
    assert near(clipped[:2], [[0.6, 0.8], [0.3, 0.4]])
    assert skipped.tolist() == [False, False, True]


def _with_skipped(x: Any, max_norm: float) -> Any:
    y, info = gc.clip_by_global_norm(x, max_norm, nonfinite="skip")
    return y, info.skipped


@traced
@pytest.mark.parametrize("max_norm", [1.0, 100.0])
def test_derivatives_go_through_the_clip(max_norm: float) -> None:
    """Inside ``mx.grad`` arrays have values: read as such, the clip would have no derivative."""
    direction = mx.array([1.0, 2.0])

    def loss(x: Any) -> Any:
        return (gc.clip_by_global_norm([x], max_norm, nonfinite="skip")[0][0] * direction).sum()

    x, v = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    norm = float(np.linalg.norm(x))
    expected = max_norm * (v / norm - x * (x @ v) / norm**3) if norm > max_norm else v
    for found in (
        mx.grad(loss)(mx.array([3.0, 4.0])),
        mx.value_and_grad(loss)(mx.array([3.0, 4.0]))[1],
        mx.vjp(loss, [mx.array([3.0, 4.0])], [mx.array(1.0)])[1][0],
    ):
        assert near(found, expected, 1e-5)
    (_, (slope,)) = mx.jvp(loss, [mx.array([3.0, 4.0])], [mx.array([1.0, 0.0])])
    assert near(slope, expected[0], 1e-5)


def test_what_is_concrete_inside_a_transform_is_read() -> None:
    constant, seen = mx.array([3.0, 4.0]), []

    def loss(x: Any) -> Any:
        seen.append(gc.clip_by_global_norm([constant], 1.0)[1])
        seen.append(gc.clip_by_global_norm([constant, x], 1.0, nonfinite="skip")[1])
        return x.sum()

    mx.grad(loss)(mx.array([12.0]))
    assert seen[0].norm == 5.0
    assert isinstance(seen[0], gc.ClipInfo)
    assert near(seen[1].norm, 13.0, NORM)
    assert isinstance(gc.clip_by_global_norm([constant], 1.0)[1], gc.ClipInfo)


@traced
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
def test_other_dtypes_traced(dtype: str) -> None:
    given = grads(dtype)[0]
    (y,) = mx.vmap(lambda x: gc.clip_by_global_norm([x], 1.0, nonfinite="sanitize")[0])(given[None])
    expected = gc.clip_by_global_norm([given], 1.0)[0][0]
    assert y.dtype == given.dtype
    parts = (mx.real, mx.imag) if dtype == "complex64" else (lambda x: x,)
    assert all(near(part(y[0]), part(expected), 2.0**-7 if dtype == "bfloat16" else 2.0**-9) for part in parts)


@pytest.mark.parametrize("transform", ["compile", "vmap", "grad"])
def test_nothing_can_be_raised_on_values_that_are_not_there(transform: str) -> None:
    def step(x: Any) -> Any:
        return gc.clip_by_global_norm([x], 1.0)[0][0].sum()

    with pytest.raises(gc.InvalidArgumentError, match=r"called while a function is traced.*Pass nonfinite='skip'"):
        getattr(mx, transform)(step)(mx.ones((2, 3)))


def test_a_plan_is_for_arrays_in_memory() -> None:
    def step(x: Any) -> Any:
        return gc.plan([x], gc.GlobalNorm(1.0), nonfinite="skip").scale * x

    with pytest.raises(gc.InvalidArgumentError, match="a plan is for arrays in memory"):
        mx.vmap(step)(mx.ones((2, 3)))
    x = mx.array([3.0, 4.0])
    assert near(gc.plan([x], gc.GlobalNorm(1.0)).apply([x])[0], [0.6, 0.8])


@traced
def test_bounds_that_are_traced() -> None:
    x = mx.array([3.0, 4.0, 12.0])
    slope = mx.grad(lambda m: gc.clip_by_global_norm(x, m, nonfinite="skip")[0].sum())(mx.array(1.0))
    assert slope.item() == pytest.approx(19 / 13, rel=ELEMENT)
    made = mx.compile(lambda x, m: gc.clip_by_norm(x, m, nonfinite="skip")[0])(x, mx.array(1.0))
    np.testing.assert_allclose(made, np.array([3, 4, 12]) / 13, rtol=ELEMENT)
    with pytest.raises(gc.InvalidArgumentError, match="it is traced: what stands in its place is known when"):
        mx.grad(lambda m: gc.clip_by_value(x, m, nonfinite="skip")[0].sum())(mx.array(1.0))


@traced
def test_the_slope_of_the_largest() -> None:
    def clipped(x: Any) -> Any:
        made, _ = gc.clip_by_global_norm(x, 1.0, ord=math.inf, nonfinite="skip")
        return (made * mx.arange(3.0)).sum()

    slope = mx.grad(clipped)(mx.array([3.0, 4.0, 12.0]))
    np.testing.assert_allclose(slope, [0, 1 / 12, -4 / 144], rtol=1e-5)
