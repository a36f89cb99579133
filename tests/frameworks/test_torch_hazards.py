"""PyTorch tensors whose memory is not their value: each is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.refusals import check_sentence

torch = pytest.importorskip("torch")

NOISE = [
    "ignore:Sparse (CSR|CSC|BSR) tensor support:UserWarning",  # once a process, of whichever comes first
    "ignore:.*nested tensors is in prototype:UserWarning",
    "ignore:.*quantized tensor creation functions:UserWarning",
    "ignore:.*torch.jit.script:DeprecationWarning",
]
pytestmark = [pytest.mark.filterwarnings(noise) for noise in NOISE]


@contextmanager
def refuses(error: type[gc.GradClipError], seen: str, cure: str, *grads: Any, at: str = "array '1'") -> Iterator[None]:
    """The class, the three parts of its sentence, and that neither memory nor version of ``grads`` changes."""
    before = [(g.detach().clone(), g._version) for g in grads]
    with pytest.raises(error) as caught:
        yield
    check_sentence(caught.value, error, at, seen, cure)
    for g, (values, version) in zip(grads, before, strict=True):
        assert torch.equal(g, values)
        assert g._version == version


def good() -> Any:
    """A gradient that a clip to 1 would certainly write."""
    return torch.tensor([30.0, 40.0])


def freed() -> Any:
    x = good()
    x.untyped_storage().resize_(0)  # as FSDP does
    return x


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


def wrapper() -> Any:
    def new(kind: Any, x: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(kind, x.size(), dtype=x.dtype)
        made.inner = x
        return made

    def dispatch(kind: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*[a.inner if isinstance(a, kind) else a for a in args], **(kwargs or {}))

    body = {"__new__": staticmethod(new), "__torch_dispatch__": classmethod(dispatch)}
    return type("Scaled", (torch.Tensor,), body)(good())


Case = tuple[Callable[[], Any], type[gc.GradClipError], str, str]
CASES: dict[str, Case] = {
    "neg": (lambda: torch._neg_view(good()), gc.UnsafeMemoryError, "lazy negation", "resolve_neg()"),
    "conj": (lambda: torch.tensor([3 + 4j]).conj(), gc.UnsafeMemoryError, "conjugation", "resolve_conj()"),
    "imag-of-conj": (lambda: torch.tensor([3 + 4j]).conj().imag, gc.UnsafeMemoryError, "negation", "resolve_neg()"),
    "freed": (freed, gc.UnsafeMemoryError, "data pointer is NULL", "Gather or materialise"),
    "zerotensor": (lambda: torch._efficientzerotensor((2,)), gc.UnsafeMemoryError, "NULL", "materialise"),
    "fake": (fake, gc.UnsupportedArrayError, "it is a FakeTensor", "torch.compiler.disable"),
    "functional": (lambda: torch._to_functional_tensor(good()), gc.UnsafeMemoryError, "NULL", "materialise"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), gc.UnsupportedArrayError, "layout is sparse_csr", "x.values()"),
    "csc": (lambda: torch.eye(2).to_sparse_csc(), gc.UnsupportedArrayError, "layout is sparse_csc", "x.values()"),
    "bsr": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), gc.UnsupportedArrayError, "sparse_bsr", "x.values()"),
    "nested": (
        lambda: torch.nested.nested_tensor([good(), good()[:1]]), gc.UnsupportedArrayError, "nested", "x.values()",
    ),
    "jagged": (
        lambda: torch.nested.nested_tensor([good(), good()[:1]], layout=torch.jagged),
        gc.UnsupportedArrayError, "it is a NestedTensor", "the plain tensor",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(good(), 0.1, 0, torch.qint8), gc.UnsupportedArrayError, "qint8", "Convert",
    ),
    "wrapper": (wrapper, gc.UnsupportedArrayError, "it is a Scaled", "the plain tensor that it wraps"),
    "int": (lambda: torch.arange(3), gc.UnsupportedArrayError, "int64 is no gradient's dtype", "float32"),
    "bool": (lambda: torch.ones(3) > 0, gc.UnsupportedArrayError, "bool is no gradient's dtype", "float32"),
    "float8": (
        lambda: good().to(torch.float8_e4m3fnuz), gc.UnsupportedArrayError, "float8_e4m3fnuz is not served", "scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_", "global_norm"])
@pytest.mark.parametrize("case", CASES)
def test_refused_whatever_is_done_with_it(case: str, name: str) -> None:
    make, error, seen, cure = CASES[case]
    first, bad = good(), make()
    with refuses(error, seen, cure, first):
        getattr(gc, name)([first, bad], *([] if name == "global_norm" else [1.0]))


def test_mkldnn() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no mkldnn")
    first = good()
    with refuses(gc.UnsupportedArrayError, "layout is _mkldnn", "p.grad.to_dense()", first):
        gc.clip_by_norm_([first, good().to_mkldnn()], 1.0)


def test_meta_tensors_have_a_device_that_nobody_serves() -> None:
    first = good()
    with refuses(gc.BackendError, "meta", "host memory", first, at="arrays on meta"):
        gc.clip_by_norm_([torch.ones(2, device="meta")], 1.0)
    with refuses(gc.BackendError, "meta", "", first, at="backend='numpy'"):
        gc.clip_by_norm_([first, torch.ones(2, device="meta")], 1.0, backend="numpy")


# --------------------------------------------------------------------------- transforms of torch.func


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_in_place_inside_a_functorch_transform(transform: str) -> None:
    def clip(x: Any) -> Any:
        gc.clip_by_norm_([x], 1.0, nonfinite="skip")
        return x.sum()

    x = torch.full((2, 3), 4.0)
    calls: dict[str, Callable[[], Any]] = {
        "vmap": lambda: torch.func.vmap(clip)(x),
        "grad": lambda: torch.func.grad(clip)(x),
        "jvp": lambda: torch.func.jvp(clip, (x,), (x.clone(),)),
    }
    with pytest.raises(gc.ReadOnlyError, match=r"inside a torch.func transform.*Use clip_by_norm, which returns new"):
        calls[transform]()
    assert torch.equal(x, torch.full((2, 3), 4.0))


def test_forward_mode_dual_tensors() -> None:
    fa = torch.autograd.forward_ad
    first, primal, tangent = good(), good(), good()
    with fa.dual_level():
        dual = fa.make_dual(primal, tangent)
        with refuses(gc.UnsupportedArrayError, "forward-mode dual", "unpack_dual(x).primal", first):
            gc.clip_by_norm_([first, dual], 1.0)
        assert gc.clip_by_norm_([first], 1.0).clipped  # other tensors are served inside a dual level
    assert torch.equal(primal, good())
    assert torch.equal(tangent, good())


# ------------------------------------------------------------------------------------ shared memory


@pytest.mark.parametrize(
    "view",
    [
        lambda base: base[:1].expand(4),
        lambda base: base[:2].view(1, 2).expand(3, 2),
        lambda base: base.as_strided((3, 2), (1, 1)),
        lambda base: base.unfold(0, 2, 1),
    ],
    ids=["expand", "expand-rows", "as_strided", "unfold"],
)
def test_elements_that_are_the_same_memory(view: Callable[[Any], Any]) -> None:
    first, base = good(), torch.tensor([3.0, 4.0, 5.0, 6.0])
    with refuses(gc.UnsafeMemoryError, "are the same memory", "Use clip_by_norm,", first, base):
        gc.clip_by_norm_([first, view(base)], 1.0)
    clipped, info = gc.clip_by_norm([view(base)], 1.0)
    assert info.norm == pytest.approx(float(view(base).double().norm()), rel=1e-15)
    assert clipped[0].double().norm() <= 1
    assert torch.equal(base, torch.tensor([3.0, 4.0, 5.0, 6.0]))


def test_views_of_one_tensor() -> None:
    base = torch.arange(1.0, 7.0).reshape(2, 3)
    with refuses(gc.UnsafeMemoryError, "they share memory", "or copies", base, at="arrays '0' and '1'"):
        gc.clip_by_norm_([base, base[0]], 1.0)
    with refuses(gc.UnsafeMemoryError, "they share memory", "or copies", base, at="arrays '0' and '1'"):
        gc.clip_by_norm_([base, base.t()], 1.0)
    tied = torch.nn.Parameter(base.clone())
    info = gc.clip_by_global_norm_({"embed": tied.data, "head": tied.data}, 1.0)
    assert info.norm == np.sqrt(91.0)
    assert tied.detach().double().norm().item() == pytest.approx(1, rel=1e-6)
    assert gc.clip_by_norm_([base[:, 0], base[:, 1:]], 1.0).clipped  # columns share nothing


# ------------------------------------------------------------------------------ the classical slips


def trained() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    (model(torch.full((1, 2), 30.0)) ** 2).sum().backward()
    return model


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_parameters_where_their_gradients_were_meant(name: str) -> None:
    """huggingface/transformers#46113, the other way round: "no gradient is ever actually scaled"."""
    model = trained()
    weights = list(model.parameters())
    with refuses(
        gc.InvalidArgumentError, "weights would be clipped and its gradient not", "p.grad", *weights, at="array '0'"
    ):
        getattr(gc, name)(model.parameters(), 1.0)
    assert gc.clip_by_norm_([p.grad for p in model.parameters()], 1.0).clipped


class Model(torch.nn.Module):  # type: ignore[name-defined, misc]  # torch is untyped here
    """A user's own, which is what models are."""


@pytest.mark.parametrize("make", [lambda: trained()[0], trained, Model, lambda: [Model()]])
def test_a_module_where_its_gradients_were_meant(make: Callable[[], Any]) -> None:
    with pytest.raises(gc.UnsupportedArrayError) as caught:
        gc.clip_by_norm_(make(), 1.0)
    assert "is no array" in caught.value.seen
    assert caught.value.cure == "Pass its gradients: [p.grad for p in module.parameters()]"


def test_a_generator_that_was_read_before() -> None:
    """pytorch#148259: ``clip_grad_norm_`` clips nothing, and says nothing."""
    model = trained()
    grads = (p.grad for p in model.parameters())
    assert gc.global_norm(grads) > 1
    with pytest.raises(gc.ContainerError) as caught:
        gc.clip_by_norm_(grads, 1.0)
    assert "exhausted" in caught.value.seen
    assert "list" in caught.value.cure
    named = map(lambda p: p.grad, model.parameters())  # noqa: C417  # a map is what is meant
    list(named)
    with pytest.raises(gc.ContainerError, match="yields nothing"):
        gc.clip_by_norm_(named, 1.0)


def test_a_generator_over_parameters_that_were_read_before() -> None:
    """The same slip one step removed: the outer generator is new, the inner one is empty."""
    parameters = trained().parameters()
    torch.optim.SGD(parameters, lr=0.1)
    with pytest.raises(gc.ContainerError, match="exhausted"):
        gc.clip_by_norm_((p.grad for p in parameters), 1.0)
    assert gc.clip_by_norm_((p.grad for p in [torch.nn.Parameter(good())]), 1.0).norm == 0.0  # no gradient yet


def test_a_compiled_caller_gets_what_an_eager_one_gets() -> None:
    """Dynamo rewrites NumPy calls and would trace into kernels; it sees an operator (test_torch_compile.py)."""

    def step(x: Any) -> Any:
        y = x * 2
        gc.clip_by_norm_([y], 1.0)
        return y

    try:
        got = torch.compile(step, backend="eager", fullgraph=True)(good())
    finally:
        torch._dynamo.reset()
    assert torch.equal(got, step(good()))
