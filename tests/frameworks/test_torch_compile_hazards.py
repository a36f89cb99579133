"""What a graph must not do silently: each is served eagerly at a graph break, or refused with a sentence."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gradclip_core as gc
from gradclip_core.surgery import agem_

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    # Dynamo's own, of tensors that come from the graph before a break.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def whole(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, fullgraph=True)
    return compiled


def broken(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    """The function in as many graphs as it takes."""
    compiled: Callable[..., Any] = torch.compile(function, backend=backend)
    return compiled


def good() -> Any:
    return torch.tensor([30.0, 40.0, 120.0])


def parameter() -> Any:
    return torch.nn.Parameter(good())


def by_norm(*grads: Any) -> Any:
    return gc.clip_by_norm_(list(grads), 1.0).norm


NO_RULE: Any = [gc.Value(1.0)]
Case = tuple[Callable[[Any], Any], Callable[[], Any], str, type[gc.GradClipError] | None]
# What is done, with what, what a graph says, and what the eager call says, if it refuses too.
CASES: dict[str, Case] = {
    "a parameter": (by_norm, parameter, "pass p.grad, not p", gc.InvalidArgumentError),
    "a graph's own": (lambda p: by_norm(p * 2), parameter, "autograd knows a gradient", gc.InvalidArgumentError),
    "a norm to differentiate": (lambda p: gc.global_norm([p]), parameter, "requires a gradient", None),
    "one memory, two names": (lambda p: by_norm(p.data, p.data), parameter, "may share memory", None),
    "detached twice": (lambda x: by_norm(x.detach(), x.detach()), good, "may share memory", None),
    "parts of copies": (lambda p: by_norm(p.data[:1], p.data[1:]), parameter, "may share memory", None),
    "overlapping": (lambda x: by_norm(x[:2], x[1:]), good, "may share memory", gc.UnsafeMemoryError),
    "expanded": (lambda x: by_norm(x[:1].expand(3)), good, "elements of a tensor", gc.UnsafeMemoryError),
    "a window": (lambda x: by_norm(x.unfold(0, 2, 1)), good, "elements of a tensor", gc.UnsafeMemoryError),
    "negated": (lambda x: by_norm(torch._neg_view(x)), good, "lazily negated", gc.UnsafeMemoryError),
    "conjugated": (
        lambda x: by_norm(x.conj()), lambda: torch.tensor([3 + 4j]), "lazily negated", gc.UnsafeMemoryError
    ),
    "a set": (lambda x: gc.clip_by_norm_({x}, 1.0), good, "a set is no tensor", gc.ContainerError),
    "NumPy's": (lambda x: gc.clip_by_norm([x.numpy()], 1.0)[1].norm, good, "ndarray is no tensor", None),
    "no rule": (lambda x: gc.clip_([x], NO_RULE), good, "a list is no rule", gc.InvalidArgumentError),
    "a bound in a tensor": (lambda x: gc.clip_by_norm_([x], x[0]).norm, good, "pass a number", None),
    "counting": (lambda x: gc.clip_by_norm_([x], 1.0, underflow="count").norm, good, "underflow='count'", None),
    "a memory": (lambda x: agem_([x], [x * 1]).norm, good, "no rule or set", None),
}  # fmt: skip


def first(x: Any) -> Any:
    return gc.clip_by_norm([x], 1.0)[0][0]


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "vmap": lambda x: torch.func.vmap(first)(x),
    "grad": lambda x: torch.func.grad(lambda y: first(y).sum())(x),
    "grad of what is computed": lambda x: torch.func.grad(lambda y: first(y * 2).sum())(x),
    "jvp": lambda x: torch.func.jvp(first, (x,), (x,)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_a_transform(name: str) -> None:
    says = r"goes eagerly: .*(torch.func|autograd knows)|maybe_current_level"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=says):
        whole(TRANSFORMS[name])(good())


def test_what_a_transform_returns() -> None:
    found = whole(lambda x: first(torch.func.grad(lambda y: (y * y).sum())(x)))(good())
    assert torch.equal(found, first(good() * 2))


@pytest.mark.parametrize("name", CASES)
def test_what_no_graph_holds(name: str) -> None:
    act, make, says, _ = CASES[name]
    given = make()
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        whole(act)(given)
    assert says in str(caught.value)
    assert torch.equal(given, make())


@pytest.mark.parametrize("name", CASES)
def test_it_goes_eagerly_where_graphs_may_break(name: str) -> None:
    act, make, _, error = CASES[name]
    given, like = make(), make()
    if error is not None:
        with pytest.raises(error) as caught:
            broken(act)(given)
        assert type(caught.value) is error
        assert torch.equal(given, like)
    else:
        assert float(broken(act)(given)) == float(act(like))
        assert torch.equal(given, like)


def test_views_of_one_tensor_that_share_nothing() -> None:
    """Gradients in a bucket, as DistributedDataParallel lays them out, inside the graph and outside."""
    inside, outside, wanted = (torch.arange(1.0, 13.0) for _ in range(3))
    norm = by_norm(wanted[:5], wanted[5:])
    assert whole(lambda x: by_norm(x[:5], x[5:]))(inside).item() == norm
    assert whole(by_norm)(outside[:5], outside[5:]).item() == norm
    assert torch.equal(inside, wanted)
    assert torch.equal(outside, wanted)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_tensor_that_is_there_twice_is_one(backend: str) -> None:
    x, wanted = good(), good()
    info = whole(lambda g: gc.clip_by_global_norm_(g, 1.0), backend)([x, x])
    assert list(info.norms) == ["0", "1"]
    assert info.norm.item() == gc.clip_by_global_norm_([wanted, wanted], 1.0).norm
    assert torch.equal(x, wanted)
    first, second = whole(lambda g: gc.clip_by_global_norm(g, 1.0)[0], backend)([x, x])
    assert first is second


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_autograd_notices_a_write(backend: str) -> None:
    weight, saved = parameter(), good()
    loss = (weight * saved).sum()
    whole(by_norm, backend)(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_where_nothing_is_clipped_nothing_is_written() -> None:
    x = good()
    whole(lambda g: gc.clip_by_norm_([g], 1e6).norm, "eager")(x)
    assert x._version == 0


def test_a_clip_under_no_grad_is_no_part_of_the_graph() -> None:
    def step(weight: Any) -> Any:
        y = weight * 5
        with torch.no_grad():
            gc.clip_by_norm_([y], 1.0)
        return y

    assert torch.equal(whole(step)(parameter()), step(parameter()))


def test_inference_mode() -> None:
    with torch.inference_mode():
        x = good()
        whole(by_norm)(x)
    wanted = good()
    by_norm(wanted)
    assert torch.equal(x, wanted)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a policy": ({"nonfinite": "bogus"}, "there is no such policy"),
    "torch's name": ({"error_if_nonfinite": True}, "nonfinite='raise' is the default"),
    "optax's name": ({"clip_norm": 1.0}, "The bound is called max_norm here"),
    "a scale": ({"loss_scale": -2.0}, "not a finite number > 0"),
    "a backend": ({"backend": "nobody"}, "nobody"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_keywords_raise_our_errors_when_the_graph_runs(name: str) -> None:
    keywords, says = WRONG[name]
    x = good()
    with pytest.raises(gc.GradClipError, match=says):
        whole(lambda g: gc.clip_by_norm_([g], 1.0, **keywords).norm)(x)
    assert torch.equal(x, good())


def test_wrong_bounds_raise_our_errors_while_tracing() -> None:
    def step(g: Any, bound: Any) -> Any:
        return gc.clip_by_norm_([g], bound).norm

    for bound, says in ((-1.0, "negative bound"), (math.inf, "infinite bound"), (math.nan, "NaN"), ("1", "no number")):
        with pytest.raises(gc.InvalidArgumentError, match=says):
            broken(step)(good(), bound)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
            whole(step)(good(), bound)
        assert "InvalidArgumentError" in str(caught.value)
        assert says in str(caught.value)


def test_an_integer_tensor_raises_our_error_when_the_graph_runs() -> None:
    with pytest.raises(gc.UnsupportedArrayError, match="int64 is no gradient's dtype"):
        whole(by_norm)(torch.arange(3))


def test_a_refusal_can_be_caught_inside_the_graph() -> None:
    def step(g: Any) -> Any:
        try:
            gc.clip_by_norm_([g], -1.0)
        except gc.GradClipError:
            return g + 1
        return g

    assert torch.equal(whole(step)(good()), good() + 1)


def test_a_generator_that_was_read_before() -> None:
    def step(g: Any) -> Any:
        grads = (x for x in g)
        list(grads)
        return gc.clip_by_norm_(grads, 1.0).norm

    with pytest.raises(gc.ContainerError, match="exhausted"):
        broken(step)([good()])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="yields nothing"):
        whole(step)([good()])


def test_a_meta_tensor_has_no_norm() -> None:
    """The dispatcher takes the operator's fake implementation for it, whose result is memory that nobody wrote."""
    grads = [torch.ones(2, device="meta"), good()]
    with pytest.raises(gc.BackendError, match="meta"):
        broken(lambda g: gc.clip_by_global_norm_(g, 1.0).norm)(grads)
    for function in (gc.clip_by_global_norm, lambda g, bound: gc.global_norm(g)):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="device meta, which holds no values"):
            whole(lambda g, function=function: function(g, 1.0))(grads[:1])
    assert torch.equal(grads[1], good())


def test_plans_and_clippers_go_eagerly() -> None:
    clipper = gc.Clipper(gc.GlobalNorm(1.0))
    wanted = good()
    norm = gc.clip_by_global_norm_([wanted], 1.0).norm
    assert broken(lambda g: gc.plan([g], gc.GlobalNorm(1.0)).info.norm)(good()) == norm
    x = good()
    info = broken(lambda g: clipper.step_([g]))(x)
    assert type(info) is gc.ClipInfo
    assert info.norm == norm
    assert torch.equal(x, wanted)


MEANWHILE = """
import sys, threading, time
import torch
import gradclip_core as gc

def importing():
    while not over.is_set():
        sys.modules["imported meanwhile"] = sys
        time.sleep(1e-4)
        del sys.modules["imported meanwhile"]
        time.sleep(1e-4)

x, y = torch.ones(4), torch.ones(4)
torch.compile(lambda g: g + 1, backend="eager")(x)
over = threading.Event()
sys.setswitchinterval(1e-4)
threading.Thread(target=importing, daemon=True).start()
clipper = gc.Clipper(gc.GlobalNorm(1.0))
print(torch.compile(lambda g: clipper.step_([g]).norm, backend="eager")(y))
norm = torch.compile(lambda g: gc.clip_by_global_norm_([g], 1.0).norm, backend="eager", fullgraph=True)(x)
print(norm.item())
over.set()
"""


def test_another_thread_may_import_while_it_traces() -> None:
    done = subprocess.run([sys.executable, "-c", MEANWHILE], capture_output=True, text=True)
    assert done.stdout == "2.0\n2.0\n", done.stderr
