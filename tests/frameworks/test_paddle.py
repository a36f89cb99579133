"""Paddle's tensors in host memory: dtypes, layouts, versions, what autograd leaves, and Paddle's own clipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import registry, sets
from gradclip_core.arrays.dock import unload
from gradclip_core.arrays.layout import flatten_memory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no ccache
    paddle: Any = pytest.importorskip("paddle")

WIDE = ["float32", "float64", "complex64", "complex128"]
NARROW = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(0.0),
    gc.GlobalNorm(1e9),
    gc.ArrayNorm(0.5),
    gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "0" else "b"),
]


def bits(x: Any) -> bytes:
    """The elements in C order, byte by byte. Of bfloat16 ``numpy()`` has the bits, of float8 too."""
    return bytes(np.ascontiguousarray(x.numpy()).tobytes())


def made(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    values = values + 2j * values[::-1] if dtype.startswith("complex") and values.ndim else values
    return paddle.to_tensor(np.asarray(values, "complex128" if np.iscomplexobj(values) else "float32")).astype(dtype)


def grads(dtype: str = "float32") -> list[Any]:
    return [made((3, 5), dtype), made((7,), dtype, 1), made((), dtype, 2), made((0, 4), dtype)]


def the_same(dtype: str, rule: gc.Rule) -> None:
    given = grads(dtype)
    before = [bits(x) for x in given]
    expected, wanted = gc.clip(given, rule, backend="numpy")
    clipped, info = gc.clip(given, rule)
    assert [bits(x) for x in given] == before
    assert [(type(y), y.dtype, y.shape) for y in clipped] == [(paddle.Tensor, x.dtype, x.shape) for x in given]
    assert all(y.stop_gradient for y in clipped)
    assert (info.norm, info.norms, info.scale) == (wanted.norm, wanted.norms, wanted.scale)
    assert gc.clip_(given, rule).norm == info.norm
    assert [bits(x) for x in given] == [bits(y) for y in clipped] == [bits(e) for e in expected]
    assert ([bits(x) for x in given] == before) == (rule == gc.GlobalNorm(1e9))


@pytest.mark.shows("paddle", "new arrays", "exact")
@pytest.mark.shows("paddle", "in place", "exact")
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_dtype_gives_the_bits_of_the_reference(dtype: str, rule: gc.Rule) -> None:
    the_same(dtype, rule)


@pytest.mark.shows("paddle", "16-bit", "exact")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_narrow_dtypes_too_although_uint16_means_bfloat16_here(dtype: str, rule: gc.Rule) -> None:
    assert paddle.to_tensor(np.array([16384], np.uint16)).dtype == paddle.bfloat16
    the_same(dtype, rule)


@pytest.mark.parametrize(
    "rule",
    [*RULES, gc.Value(0.25), gc.Value((-0.1, 0.5)), gc.Project(sets.L1Ball(1.0))],
    ids=lambda rule: type(rule).__name__,
)
def test_the_same_as_numpy_s_arrays(rule: gc.Rule) -> None:
    given = grads()
    clipped, info = gc.clip(given, rule, loss_scale=3.0)
    expected, known = gc.clip([x.numpy() for x in given], rule, loss_scale=3.0, backend="numpy")
    assert [bits(y) for y in clipped] == [y.tobytes() for y in expected]
    assert (info.norm, info.clipped_norm, info.norms) == (known.norm, known.clipped_norm, known.norms)


# ------------------------------------------------------------------------------------ layouts


def turned() -> list[Any]:
    return [made((3, 5)).T, made((2, 3, 4), seed=1).transpose([1, 2, 0]), made((4, 4), seed=2)[1:3]]


def test_axes_keep_their_order_in_memory() -> None:
    given = turned()
    assert [x.strides for x in given] == [[1, 5], [4, 1, 12], [4, 1]]
    clipped, _ = gc.clip_by_global_norm(given, 1.0)
    expected, _ = gc.clip_by_global_norm([x.numpy() for x in given], 1.0)
    assert [y.strides for y in clipped] == [[1, 5], [4, 1, 12], [4, 1]]
    assert [bits(y) for y in clipped] == [np.ascontiguousarray(y).tobytes() for y in expected]
    gc.clip_by_global_norm_(given, 1.0)
    assert [bits(x) for x in given] == [bits(y) for y in clipped]


def test_a_slice_is_written_and_nothing_beside_it() -> None:
    whole = paddle.ones([4, 8])
    gc.clip_by_norm_([whole[:, ::2]], 1.0)
    values = whole.numpy()
    assert (values[:, 1::2] == 1).all()
    assert np.linalg.norm(values[:, ::2].astype(np.float64)) <= 1
    y = gc.clip_by_norm([whole[:, ::2]], 0.5)[0][0]
    assert (y.shape, y.strides) == ([4, 4], [4, 1])


def test_a_tied_gradient_counts_once() -> None:
    x = paddle.to_tensor([3.0, 4.0])
    info = gc.clip_by_global_norm_({"a": x, "b": x.detach()}, 1.0)
    assert (info.norm, sorted(info.norms)) == (5.0, ["a", "b"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_converted_and_into_arrays_of_the_caller_s(dtype: str) -> None:
    given = [made((50,)), made((3, 4), seed=1).T]
    halves, _ = gc.to_half(given, getattr(paddle, dtype), gc.GlobalNorm(1.0))
    assert [(y.dtype, y.shape, y.strides) for y in halves] == [
        (getattr(paddle, dtype), x.shape, x.strides) for x in given
    ]
    masters = [paddle.zeros(x.shape) for x in halves]
    gc.clip(halves, gc.GlobalNorm(0.5), out=masters)
    assert [bits(y) for y in gc.clip([x.astype("float32") for x in halves], gc.GlobalNorm(0.5))[0]] == [
        bits(x) for x in masters
    ]


def test_units_of_weights_and_one_call_for_two_frameworks() -> None:
    weights, given = [made((6, 5), seed=4)], [made((6, 5), seed=5)]
    expected, _ = gc.adaptive_clip([given[0].numpy()], [weights[0].numpy()], 0.1, axis="all_but_first")
    gc.adaptive_clip_(given, weights, 0.1, axis="all_but_first")
    assert bits(given[0]) == expected[0].tobytes()
    clipped, info = gc.clip_by_global_norm([paddle.to_tensor([3.0]), np.array([4.0])], 1.0)
    assert (info.norm, [type(y) for y in clipped]) == (5.0, [paddle.Tensor, np.ndarray])


# -------------------------------------------------------------------------- the express entrance


def trained_once() -> list[Any]:
    paddle.seed(0)
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.Tanh(), paddle.nn.Linear(8, 2))
    (model(paddle.ones([3, 4])) ** 2).sum().backward()
    return list(model.parameters())


def embedding_grad() -> Any:
    table = paddle.nn.Embedding(10, 4, sparse=True)
    table(paddle.to_tensor([5, 3])).sum().backward()
    return table.weight.grad


def leaf_with_gradient() -> Any:
    x = paddle.to_tensor([1.0, 2.0], stop_gradient=False)
    (x * x).sum().backward()
    return x


def cleared() -> Any:
    x = paddle.ones([3])
    x._clear_data()
    return x


ORDINARY: dict[str, Callable[[], list[Any]]] = {
    **{name: lambda name=name: grads(name) for name in ("float16", "bfloat16", "float32", "float64")},  # type: ignore[misc]
    "turned": turned,
    "what backward leaves": lambda: [p.grad for p in trained_once()],
    "detached": lambda: [p.detach() for p in trained_once()],
    "one": lambda: [paddle.ones([3])],
}
EXTRAORDINARY: dict[str, Callable[[], list[Any]]] = {
    "float8": lambda: grads("float8_e5m2"),
    "complex": lambda: grads("complex64"),
    "strided": lambda: [paddle.ones([8])[::2]],
    "windows": lambda: [paddle.as_strided(paddle.ones([8]), [3, 3], [1, 1])],
    "tied": lambda: [paddle.ones([3])] * 2,
    "integers": lambda: [paddle.ones([3], dtype="int32")],
    "sparse": lambda: [paddle.eye(3).to_sparse_coo(2)],
    "rows of a table": lambda: [embedding_grad()],
    "parameters": trained_once,
    "of a graph": lambda: [paddle.to_tensor([1.0], stop_gradient=False) * 2],
    "a leaf with a gradient": lambda: [leaf_with_gradient()],
    "cleared": lambda: [cleared()],
}


@pytest.fixture
def kernels() -> None:
    pytest.importorskip("numba")
    gc.global_norm([np.ones(3)], backend="numba_cpu")
    gc.global_norm([paddle.ones([3])])


@pytest.fixture
def by_the_dock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "loaded", lambda name: None)
        yield


@pytest.mark.jit
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ORDINARY)
def test_compiled_code_reads_what_the_dock_reads(name: str) -> None:
    given = ORDINARY[name]()
    cargo = unload(given, "test")
    assert cargo.manifest is not None
    for buffer, docked in zip(cargo.manifest, cargo.arrays, strict=True):
        expected = flatten_memory(docked).buffer
        assert (buffer.length, buffer.dtype, buffer.rows) == (expected.length, expected.dtype, expected.rows)
        assert buffer.pointer == expected.pointer or not buffer.length


@pytest.mark.jit
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", EXTRAORDINARY)
def test_whatever_is_not_ordinary_goes_by_the_dock(name: str, request: pytest.FixtureRequest) -> None:
    container = EXTRAORDINARY[name]()
    said = outcome(container)
    request.getfixturevalue("by_the_dock")
    assert said == outcome(container)


def outcome(container: Any) -> tuple[object, ...]:
    try:
        cargo = unload(container, "test", parts=True)
    except gc.GradClipError as error:
        return type(error), str(error)
    assert cargo.manifest is None
    return tuple(docked.key for docked in cargo.arrays)
