"""Paddle's hazards: each is handled, or refused in a sentence before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.refusals import check_sentence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no ccache
    paddle: Any = pytest.importorskip("paddle")

ROOT = Path(__file__).resolve().parents[2]


def in_a_process(code: str) -> str:
    """What it prints; a process of its own, because Paddle's switches are global and it may die."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])}
    code = f"import gradclip_core as gc, paddle\n{code}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def weight() -> Any:
    return paddle.create_parameter([2], "float32", default_initializer=paddle.nn.initializer.Constant(3.0))


def trained() -> Any:
    w = weight()
    (w * w).sum().backward()
    return w


def of_a_graph() -> Any:
    w = weight()
    return paddle.grad((w * w).sum(), [w], create_graph=True)[0]


def cleared() -> Any:
    x = paddle.ones([3])
    x._clear_data()
    return x


def distributed() -> Any:
    mesh = paddle.distributed.ProcessMesh([0], dim_names=["x"])
    return paddle.distributed.shard_tensor(paddle.ones([4, 4]), mesh, [paddle.distributed.Shard(0)])


REFUSED: dict[str, tuple[Callable[[], Any], type[gc.GradClipError], str, str]] = {
    "integers": (lambda: paddle.ones([3], "int32"), gc.UnsupportedArrayError, "dtype int32 is no", "Convert to"),
    "booleans": (lambda: paddle.ones([3], "bool"), gc.UnsupportedArrayError, "dtype bool is no", "Convert to"),
    "a real uint16": (
        lambda: paddle.from_dlpack(np.ones(3, np.uint16)), gc.UnsupportedArrayError, "dtype uint16 is no", "Convert to",
    ),
    "a parameter": (trained, gc.InvalidArgumentError, "parameter that has a gradient", "Pass [p.grad for p in"),
    "of a graph": (of_a_graph, gc.InvalidArgumentError, "part of an autograd graph", "Clip under paddle.no_grad()"),
    "cleared": (cleared, gc.UnsafeMemoryError, "it has no memory: it was cleared", "Leave it out"),
    "distributed": (distributed, gc.UnsupportedArrayError, "it is a distributed tensor", "unshard_dtensor(x)"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED])
@pytest.mark.parametrize("function", ["clip_by_norm", "clip_by_norm_"])
def test_it_is_refused(name: str, function: str) -> None:
    make, error, seen, cure = REFUSED[name]
    first = paddle.to_tensor([30.0, 40.0])
    with pytest.raises(error) as caught:
        getattr(gc, function)([first, make()], 1.0)
    check_sentence(caught.value, error, "array '1'", seen, cure)
    assert first.tolist() == [30.0, 40.0]


@pytest.mark.shows("paddle", "sharded", "refused")
def test_of_a_distributed_tensor_the_whole_is_served() -> None:
    y, info = gc.clip_by_norm([paddle.distributed.unshard_dtensor(distributed())], 1.0)
    assert (info.norm, y[0].shape) == (4.0, [4, 4])


def test_a_parameter_without_a_gradient_is_not_clipped_in_its_place() -> None:
    w = weight()
    with pytest.raises(gc.InvalidArgumentError, match=r"no gradient yet.*Call backward first"):
        gc.clip_by_norm_([w], 1.0)
    assert w.tolist() == [3.0, 3.0]


def test_weights_can_be_measured_and_clipped_as_data() -> None:
    w = trained()
    assert gc.global_norm([w]) == np.sqrt(18.0)
    gc.clip_by_norm_([w.data], 1.0)
    assert np.linalg.norm(w.numpy().astype(np.float64)) <= 1
    assert w.grad.tolist() == [6.0, 6.0]


def test_a_gradient_s_gradient_can_be_clipped_where_nothing_is_recorded() -> None:
    gradient = of_a_graph()
    with paddle.no_grad():
        assert gc.clip_by_norm([gradient], 1.0)[1].clipped


@pytest.mark.parametrize("in_between", [False, True])
def test_autograd_is_told_of_a_write_and_of_nothing_else(in_between: bool) -> None:
    """``np.from_dlpack(x)[...] = y`` is not: it gives wrong gradients in silence."""
    w = weight()
    hidden = w * 1.0
    loss = (hidden * hidden).sum()  # saves hidden
    info = gc.clip_by_norm_([hidden.detach()], 1.0 if in_between else 100.0)
    assert info.clipped is in_between
    if in_between:
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()
        assert w.grad.tolist() == [6.0, 6.0]


def test_each_python_object_of_a_gradient_sees_the_version() -> None:
    w = trained()
    before = w.grad.inplace_version
    gc.clip_by_global_norm_([w.grad, paddle.to_tensor([0.0])], 1.0)
    assert w.grad.inplace_version == before + 1


def test_memory_of_a_device_is_not_read_as_the_host_s() -> None:
    """By a stand-in: a Paddle that knows devices is another wheel."""
    from gradclip_core.arrays.docked import Refused
    from gradclip_core.arrays.paddle_door import _pointer

    place = SimpleNamespace(is_cpu_place=lambda: False)
    with pytest.raises(Refused, match="Paddle's tensors are served in host memory") as caught:
        _pointer(SimpleNamespace(data_ptr=lambda: 4096, place=place), (3,))
    assert caught.value.kind is gc.UnsupportedArrayError
    assert "x.cpu()" in caught.value.cure


def test_a_loss_scale_may_be_a_tensor() -> None:
    x = paddle.to_tensor([6.0, 8.0])
    info = gc.clip_by_global_norm_([x], 100.0, loss_scale=paddle.to_tensor(2.0))
    assert (info.norm, x.tolist()) == (5.0, [3.0, 4.0])


def test_elements_that_are_the_same_memory() -> None:
    x = paddle.as_strided(paddle.ones([8]), [3, 3], [1, 1])
    with pytest.raises(gc.UnsafeMemoryError, match="several of its elements are the same memory"):
        gc.clip_by_norm_([x], 1.0)
    assert gc.clip_by_norm([x], 1.0)[1].norm == 3.0
    whole = paddle.ones([8])
    with pytest.raises(gc.UnsafeMemoryError, match="they share memory without being the same array"):
        gc.clip_by_global_norm_([whole[:5], whole[3:]], 1.0)


def test_an_expanded_tensor_is_memory_of_its_own() -> None:
    x = paddle.ones([1])
    y = x.expand([4])
    gc.clip_by_norm_([y], 1.0)
    assert x.tolist() == [1.0]
    assert np.linalg.norm(y.numpy().astype(np.float64)) <= 1


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_no_elements_and_no_memory(shape: tuple[int, ...]) -> None:
    for x in (paddle.zeros(shape), paddle.Tensor() if shape == (0,) else paddle.ones([2, 3])[:0]):
        y, info = gc.clip_by_norm([x], 1.0)
        assert (tuple(y[0].shape), info.norm) == (shape, 0.0)
        assert not gc.clip_by_norm_([x], 1.0).clipped


@pytest.mark.jit
def test_paddle_s_reader_would_die_of_a_sparse_gradient_and_is_not_asked() -> None:
    """``dltensor_from_py_object_no_sync`` of SelectedRows: SIGSEGV, in Paddle 3.3."""
    pytest.importorskip("numba")
    code = """
import numpy as np
table = paddle.nn.Embedding(10, 4, sparse=True)
table(paddle.to_tensor([1, 3])).sum().backward()
gc.global_norm([np.ones(3)], backend="numba_cpu")
for _ in range(2):
    print(gc.global_norm([paddle.ones([1]), table.weight.grad]), gc.global_norm([table.weight.grad]))
"""
    assert in_a_process(code).split() == [str(3.0), str(np.sqrt(8.0))] * 2


@pytest.mark.shows("paddle", "under its compiler", "refused")
def test_static_graphs_have_no_values() -> None:
    code = """
paddle.enable_static()
x = paddle.static.data("x", [3, 4], "float32")
for call in (lambda: gc.clip_by_norm([x], 1.0), lambda: gc.clip_by_norm_({"a": x}, 1.0), lambda: gc.global_norm([x])):
    try:
        call()
    except gc.UnsupportedArrayError as error:
        print(error.seen, "|", error.cure)
"""
    said = in_a_process(code).splitlines()
    assert len(said) == 3
    assert all(line.startswith("it is a Value of a static graph, which has a shape and no values") for line in said)
    assert all("grad_clip=paddle.nn.ClipGradByGlobalNorm(max_norm)" in line for line in said)


@pytest.mark.parametrize("full_graph", [False, True])
def test_inside_to_static_there_is_an_error_and_never_a_wrong_number(full_graph: bool) -> None:
    """Paddle reads this library's code and fails in it; a sentence of ours does not come that far."""
    code = f"""
def step(x):
    return gc.clip_by_norm([x * 2], 1.0)[0][0] + 1
try:
    print("clipped", paddle.jit.to_static(step, full_graph={full_graph})(paddle.ones([3])))
except Exception as error:
    print("raised", type(error).__name__)
"""
    assert in_a_process(code).strip().splitlines()[-1].startswith("raised")
