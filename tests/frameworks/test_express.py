"""The express entrance: the same as the dock, array by array; and whatever is not ordinary goes by the dock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import registry
from gradclip_core.arrays.dock import unload
from gradclip_core.arrays.express import in_units
from gradclip_core.arrays.layout import flatten_memory

pytestmark = pytest.mark.jit
torch = pytest.importorskip("torch")
pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def kernels() -> None:
    """Earlier calls have loaded the backend and met both types."""
    gc.global_norm([np.ones(3)], backend="numba_cpu")
    gc.global_norm([torch.ones(3)])


@pytest.fixture
def by_the_dock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "loaded", lambda name: None)
        yield


def tensors(dtype: str = "float32") -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (), (0, 4), (1,), (4097,), (2, 3, 4, 5), (1, 7, 1)]
    return [torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes]


def ndarrays(dtype: str = "float32") -> list[Any]:
    return [t.float().numpy().astype(dtype) for t in tensors()]


ORDINARY: dict[str, Callable[[], Any]] = {
    **{f"torch {name}": lambda name=name: tensors(name) for name in ("float16", "bfloat16", "float32", "float64")},  # type: ignore[misc]
    **{f"numpy {name}": lambda name=name: ndarrays(name) for name in ("float16", "float32", "float64")},  # type: ignore[misc]
    "mixed dtypes": lambda: [*tensors("float16"), *tensors("float64"), *tensors("bfloat16")],
    "dict": lambda: {f"layer.{i}": t for i, t in enumerate(tensors())},
    "dict with None": lambda: {"a": None, **{f"layer.{i}": t for i, t in enumerate(tensors())}, "b": None},
    "nested": lambda: {"a": tuple(tensors()), "b": [*tensors(), {"c": torch.ones(3)}]},
    "transposed": lambda: [torch.randn(3, 5).t(), torch.randn(2, 3, 4).permute(2, 0, 1)],
    "channels last": lambda: [torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)],
    "Fortran order": lambda: [np.asfortranarray(np.ones((3, 5))), np.ones((2, 3, 4)).transpose(1, 2, 0)],
    "detached": lambda: [torch.ones(3, requires_grad=True).detach()],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_it_reads_what_the_dock_reads(name: str) -> None:
    cargo = unload(ORDINARY[name](), "test")
    manifest = cargo.manifest
    assert manifest is not None
    assert len(manifest) == len(cargo.arrays) == len(cargo.index)
    for buffer, docked in zip(manifest, cargo.arrays, strict=True):
        expected = flatten_memory(docked).buffer
        assert (buffer.length, buffer.dtype, buffer.rows) == (expected.length, expected.dtype, expected.rows)
        assert buffer.pointer == expected.pointer or not buffer.length


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize(
    "rule", [gc.GlobalNorm(0.5), gc.ArrayNorm(0.5), gc.Value(0.25), gc.GlobalNorm(1e30)], ids=lambda rule: repr(rule)
)
def test_a_clip_is_the_same(name: str, rule: gc.Rule, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(1)
    fast = ORDINARY[name]()
    torch.manual_seed(1)
    slow = ORDINARY[name]()
    info = gc.clip_(fast, rule, loss_scale=3.0)
    new, again = gc.clip(slow, rule, loss_scale=3.0)
    request.getfixturevalue("by_the_dock")
    expected, dock = gc.clip(slow, rule, loss_scale=3.0)
    assert unload(slow, "test").manifest is None
    assert info == dock == again
    assert info.norms == dock.norms
    assert info.scales == dock.scales
    for a, b, c in zip(leaves(fast), leaves(new), leaves(expected), strict=True):
        assert bits(a) == bits(b) == bits(c)


@pytest.mark.parametrize("axis", ["all_but_first", "all_but_last", None, 0])
@pytest.mark.parametrize("name", ORDINARY)
def test_adaptive_clipping_is_the_same(name: str, axis: Any, request: pytest.FixtureRequest) -> None:
    containers = []
    for _ in range(4):
        torch.manual_seed(1)
        containers.append(ORDINARY[name]())
    fast, slow, weights, untouched = containers
    info = gc.adaptive_clip_(fast, weights, 0.7, axis=axis)
    new, again = gc.adaptive_clip(slow, weights, 0.7, axis=axis)
    replayed = gc.plan(slow, gc.UnitNorm(weights, 0.7, axis=axis)).apply(slow)
    request.getfixturevalue("by_the_dock")
    expected, dock = gc.adaptive_clip(slow, weights, 0.7, axis=axis)
    assert info == dock == again
    assert (info.norms, info.scales) == (dock.norms, dock.scales)
    for a, b, c, d in zip(*map(leaves, (fast, new, expected, replayed)), strict=True):
        assert bits(a) == bits(b) == bits(c) == bits(d)
    for a, b in zip(leaves(slow), leaves(untouched), strict=True):
        assert bits(a) == bits(b)


def test_units_that_lie_in_memory_come_by_the_table() -> None:
    grads = [torch.randn(6, 5), torch.randn(4, 3, 2), torch.randn(7)]
    cargo = unload(grads, "test")
    units = in_units(cargo.arrays, [(1,), (1, 2), None])
    assert units is not None
    expected = [flatten_memory(d, axes).buffer for d, axes in zip(cargo.arrays, [(1,), (1, 2), None], strict=True)]
    assert [(b.pointer, b.length, b.rows) for b in units] == [(b.pointer, b.length, b.rows) for b in expected]
    assert units.lengths.tolist() == [5] * 6 + [6] * 4 + [7]
    assert in_units(cargo.arrays, [(0,), (1, 2), None]) is None
    assert in_units(cargo.arrays, [None] * 3) is cargo.manifest
    none = unload([torch.empty(0, 5)], "test")
    assert in_units(none.arrays, [(1,)]) is None
    turned = unload([torch.randn(6, 5).t()], "test")
    assert in_units(turned.arrays, [(1,)]) is None


def test_of_units_only_arrays_that_were_written_are_told_of() -> None:
    grads = [torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 2)]
    grads[1][2] = 100
    before = [x._version for x in grads]
    gc.adaptive_clip_(grads, [torch.ones(3, 2)] * 3, 2.0, axis="all_but_first")
    assert [x._version - v for x, v in zip(grads, before, strict=True)] == [0, 1, 0]


def leaves(container: Any) -> list[Any]:
    from gradclip_core.tree import flatten

    return flatten(container)[0]


def bits(x: Any) -> bytes:
    return bytes(torch.as_tensor(x).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def read_only() -> Any:
    x = np.ones(3)
    x.flags.writeable = False
    return [x]


EXTRAORDINARY: dict[str, Callable[[], Any]] = {
    "nothing": list,
    "None": lambda: [None],
    "two frameworks": lambda: [torch.ones(3), np.ones(3)],
    "a parameter": lambda: [torch.nn.Parameter(torch.ones(3))],
    "autograd's leaf": lambda: [torch.ones(3, requires_grad=True)],
    "of a graph": lambda: [torch.ones(3, requires_grad=True) * 2],
    "tied": lambda: [torch.ones(3)] * 2,
    "overlapping": lambda: (lambda x: [x[:5], x[3:]])(torch.ones(8)),
    "strided": lambda: [torch.ones(8)[::2]],
    "expanded": lambda: [torch.ones(1).expand(8)],
    "negated": lambda: [torch._neg_view(torch.ones(3))],
    "complex": lambda: [torch.ones(3, dtype=torch.complex64)],
    "integers": lambda: [torch.ones(3, dtype=torch.int32)],
    "float8": lambda: [torch.ones(3).to(torch.float8_e4m3fn)],
    "sparse": lambda: [torch.eye(3).to_sparse()],
    "meta": lambda: [torch.ones(3, device="meta")],
    "freed": lambda: (lambda x: [x, x.untyped_storage().resize_(0)][:1])(torch.ones(3)),
    "backwards": lambda: [np.ones(8)[::-1]],
    "every second": lambda: [np.ones((4, 8))[:, ::2]],
    "windows": lambda: [np.lib.stride_tricks.sliding_window_view(np.ones(8), 3)],
    "byte order": lambda: [np.ones(3, ">f4")],
    "misaligned": lambda: [np.zeros(13, np.uint8)[1:].view(np.float32)],
    "read-only": read_only,
    "a subclass": lambda: [np.ones(3).view(np.recarray)],
    "masked": lambda: [np.ma.masked_array(np.ones(3), np.array([False, True, False]))],
    "scalars": lambda: [np.float32(3.0)],
    "long double": lambda: [np.ones(3, np.longdouble)],
    "objects": lambda: [np.array([1.0, None])],
}


@pytest.mark.parametrize("name", EXTRAORDINARY)
def test_whatever_is_not_ordinary_goes_by_the_dock(name: str, request: pytest.FixtureRequest) -> None:
    container = EXTRAORDINARY[name]()
    said = outcome(container)
    request.getfixturevalue("by_the_dock")
    assert said == outcome(container)


def outcome(container: Any) -> tuple[object, ...]:
    try:
        cargo = unload(container, "test")
    except gc.GradClipError as error:
        return type(error), str(error)
    assert cargo.manifest is None
    return tuple(docked.key for docked in cargo.arrays)


def test_inside_vmap_a_tensor_has_no_memory_of_its_own() -> None:
    def norm(x: Any) -> Any:
        assert not unload([x, x + 1], "test").in_memory
        return x

    torch.func.vmap(norm)(torch.ones(3, 4))


def test_only_what_was_written_is_told_of() -> None:
    grads = [torch.ones(3), torch.ones(3) * 100]
    before = [x._version for x in grads]
    gc.clip_by_norm_(grads, 2.0)
    assert [x._version - v for x, v in zip(grads, before, strict=True)] == [0, 1]


def test_a_reader_that_reads_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradclip_backends.numba_cpu import exchange

    monkeypatch.setattr(exchange, "_readers", {})
    monkeypatch.setattr(exchange, "_NP_PLAIN", 0)
    right = exchange._Ndarrays.fill

    def wrong(self: Any, arrays: Any, pointers: Any, lengths: Any, kinds: Any, only_read: bool) -> int:
        done = right(self, arrays, pointers, lengths, kinds, only_read)
        lengths += 1
        return done

    monkeypatch.setattr(exchange._Ndarrays, "fill", wrong)
    assert unload([np.ones(3)], "test").manifest is None


def test_a_backend_that_knows_buffers_alone_is_served() -> None:
    grads = tensors()
    expected = gc.global_norm(grads)
    assert unload(grads, "test").manifest is not None
    assert gc.global_norm(grads, backend="numpy") == expected
