"""PyTorch tensors that are served: dtypes, layouts, version counters, containers, mixed frameworks."""

from __future__ import annotations

import collections
import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.arrays.layout import flatten_memory

torch = pytest.importorskip("torch")

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


def docked(x: Any) -> Any:
    from gradclip_core.arrays import torch_door

    return torch_door.DOOR.dock(x)


def bits(x: Any) -> bytes:
    """The elements in C order, byte by byte."""
    flat = x.detach().contiguous().view(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if x.numel() else b""


def numbered(shape: tuple[int, ...], dtype: str) -> Any:
    values = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    return (values * (1 + 2j) if dtype.startswith("complex") else values).to(getattr(torch, dtype))


@pytest.mark.shows("torch", "new arrays", "exact")
@pytest.mark.shows("torch", "in place", "exact")
@pytest.mark.shows("torch", "16-bit", "exact")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rule", [gc.GlobalNorm(1.0), gc.ArrayNorm(0.5), gc.GlobalNorm(0.0), gc.GlobalNorm(1e9)], ids=repr
)
def test_every_dtype_gives_the_bits_of_the_reference(dtype: str, rule: Any) -> None:
    grads = [numbered((3, 5), dtype), numbered((2,), dtype), numbered((), dtype), numbered((0, 4), dtype)]
    before = [bits(g) for g in grads]
    expected, wanted = gc.clip(grads, rule, backend="numpy")
    clipped, info = gc.clip(grads, rule)
    assert [bits(g) for g in grads] == before
    assert [type(c) for c in clipped] == [torch.Tensor] * 4
    assert [(c.dtype, c.shape) for c in clipped] == [(g.dtype, g.shape) for g in grads]
    assert (info.norm, info.norms, info.scale) == (wanted.norm, wanted.norms, wanted.scale)
    assert gc.clip_(grads, rule).norm == info.norm
    assert [bits(g) for g in grads] == [bits(c) for c in clipped] == [bits(e) for e in expected]
    assert ([bits(g) for g in grads] == before) == (rule == gc.GlobalNorm(1e9))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex_half() -> None:
    x = torch.complex(torch.tensor([3.0]), torch.tensor([4.0])).to(torch.complex32)
    assert gc.clip_by_norm_([x], 1.0).norm == 5.0
    assert torch.view_as_real(x).float().flatten().tolist() == pytest.approx([0.6, 0.8], rel=1e-3)


def test_values_agree_with_numpy_on_the_same_memory() -> None:
    x = torch.linspace(-3, 3, 101)
    expected, _ = gc.clip_by_value(x.numpy().copy(), (-1.0, 2.0))
    gc.clip_by_value_(x, (-1.0, 2.0))
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3),
        lambda x: x[1:],
        lambda x: x[:, None],
        lambda x: x[:1].expand(1, 3, 4, 5),
    ],
    ids=["plain", "permuted", "channels-last", "transposed", "offset", "new-axis", "size-1-expanded"],
)
def test_dense_layouts_go_through_without_a_copy(dtype: str, make: Any) -> None:
    x = make(numbered((2, 3, 4, 5), dtype))
    flat = flatten_memory(docked(x))
    assert flat.packed is None
    assert flat.buffer.pointer == x.data_ptr()
    clipped, _ = gc.clip_by_global_norm([x], 1.0)
    assert clipped[0].stride() == torch.empty_like(x).stride()
    address = x.data_ptr()
    gc.clip_by_global_norm_([x], 1.0)
    assert x.data_ptr() == address
    assert torch.equal(x, clipped[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [np.s_[::2], np.s_[:, 1:3], np.s_[1:4:2, ::3], np.s_[:, 2]])
def test_strided_views_are_written_back_and_their_neighbours_are_not(dtype: str, index: Any) -> None:
    whole = numbered((5, 4), dtype)
    before, inside = whole.clone(), torch.zeros((5, 4), dtype=torch.bool)
    inside[index] = True
    expected, _ = gc.clip_by_global_norm([whole[index].clone()], 1.0)
    gc.clip_by_global_norm_([whole[index]], 1.0)
    assert torch.equal(whole[index], expected[0])
    assert torch.equal(whole[~inside], before[~inside])
    assert not torch.equal(whole[inside], before[inside])


def test_a_numpy_view_with_negative_strides_stays_outside_of_torch() -> None:
    memory = np.array([3.0, 4.0, 12.0])
    x = torch.from_numpy(memory)
    assert gc.clip_by_global_norm_([x[:2], memory[2:][::-1]], 6.5).norm == 13.0
    np.testing.assert_allclose(memory, [1.5, 2.0, 6.0], rtol=1e-15)


# ----------------------------------------------------------------------------- version counters


def test_a_write_bumps_the_version_and_a_stale_backward_says_so() -> None:
    weight = torch.ones(2, requires_grad=True)
    grad = torch.tensor([3.0, 4.0])
    loss = (weight * grad).sum()  # saves grad
    version = grad._version
    gc.clip_by_norm_([grad], 1.0)
    assert grad._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("how", [{}, {"nonfinite": "skip"}, {"nonfinite": "raise"}])
def test_no_write_no_bump(how: dict[str, Any]) -> None:
    weight = torch.ones(2, requires_grad=True)
    small, large = torch.tensor([0.3, 0.4]), torch.tensor([3.0, torch.nan if how else 4.0])
    loss = (weight * small).sum()
    versions = small._version, large._version
    if how == {"nonfinite": "raise"}:
        with pytest.raises(gc.NonFiniteGradientError):
            gc.clip_by_norm_([small, large], 1.0, **how)
    else:
        gc.clip_by_norm_([small, large], 1.0, **how)
    assert small._version == versions[0]
    assert large._version == versions[1] + (not how)
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, small)


def test_a_write_through_a_view_bumps_its_base() -> None:
    base = torch.ones(4, 4)
    gc.clip_by_norm_([base[:, ::2]], 1.0)
    assert base._version == 1
    tied = base.t()
    gc.clip_by_norm_([tied, base.t()], 0.5)
    assert base._version == 2


def test_inference_tensors_have_no_version() -> None:
    with torch.inference_mode():
        inside = torch.tensor([3.0, 4.0])
        gc.clip_by_norm_([inside], 2.5)
    normal = torch.tensor([3.0, 4.0])
    gc.clip_by_norm_([inside, normal], 1.0)
    assert torch.equal(inside, gc.clip_by_norm([inside], 1.0)[0][0])
    torch.testing.assert_close(inside, torch.tensor([0.6, 0.8]))
    assert normal._version == 1


# ------------------------------------------------------------------------- parameters, subclasses


def test_plain_subclasses_are_served_and_their_version_bumped() -> None:
    x = torch.tensor([3.0, 4.0]).as_subclass(type("Tagged", (torch.Tensor,), {}))
    assert gc.clip_by_norm_([x], 1.0).norm == 5.0
    assert x._version == 1
    torch.testing.assert_close(x.as_subclass(torch.Tensor), torch.tensor([0.6, 0.8]))


def test_weights_can_be_measured_and_clipped_on_purpose() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    assert gc.global_norm([weight]) == 5.0
    clipped, _ = gc.clip_by_norm([weight], 1.0)
    assert not clipped[0].requires_grad
    assert clipped[0].grad_fn is None
    with pytest.raises(gc.InvalidArgumentError, match="has no gradient yet: its weights would be clipped"):
        gc.clip_by_norm_([weight], 1.0)
    assert weight.tolist() == [3.0, 4.0]
    weight.grad = torch.ones(2)
    assert gc.global_norm(weight) == 5.0
    gc.clip_by_norm_([weight.data], 1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.6, 0.8]))


def test_parameters_are_left_alone_by_clipping_their_gradients() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    (model(torch.ones(3, 4)) ** 2).sum().backward()
    before = {name: bits(p) for name, p in model.named_parameters()}
    kept = {name: p.grad for name, p in model.named_parameters()}
    info = gc.clip_by_global_norm_(kept, 0.01)
    assert list(info.norms) == list(before)
    assert {name: bits(p) for name, p in model.named_parameters()} == before
    assert all(p.grad is kept[name] for name, p in model.named_parameters())
    assert gc.global_norm(p.grad for p in model.parameters()) <= 0.01


def test_adaptive_clipping_reads_parameters_by_name() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    grads = {"weight": torch.tensor([[6.0, 8.0, 0.0], [3.0, 4.0, 0.0]]), "bias": None}
    clipped, _ = gc.adaptive_clip(grads, dict(model.named_parameters()), 1.0, axis="all_but_first")
    assert clipped["bias"] is None
    assert clipped["weight"].norm(dim=1).tolist() == pytest.approx([5.0, 1e-3], rel=1e-6)


# -------------------------------------------------------------------------------------- containers


def test_a_none_gradient_holds_no_leaf() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    weights[1].grad = torch.full((3,), 4.0)
    info = gc.clip_by_global_norm_([w.grad for w in weights], 1.0)
    assert info.norms == {"1": np.sqrt(48.0)}


class Box:
    """A node that only torch's own tree utilities know."""

    def __init__(self, held: Any, tag: str) -> None:
        self.held, self.tag = held, tag


@dataclasses.dataclass
class Labelled:
    """A dataclass of which one field is no gradient, as its registration says."""

    weight: Any
    label: str = "kept"


def test_nodes_that_torch_was_told_about() -> None:
    pytree = torch.utils._pytree
    if Box not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(Box, lambda box: (list(box.held), box.tag), lambda held, tag: Box(list(held), tag))
    clipped, info = gc.clip_by_norm({"box": Box([torch.tensor([3.0, 4.0]), None], "tag")}, 1.0)
    assert type(clipped["box"]) is Box
    assert clipped["box"].tag == "tag"
    assert clipped["box"].held[1] is None
    assert info.norms == {"box.0": 5.0}


def test_a_registered_dataclass_is_walked_as_it_was_registered() -> None:
    pytree = torch.utils._pytree
    if Labelled not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(Labelled, field_names=["weight"], drop_field_names=["label"])
    clipped, info = gc.clip_by_norm(Labelled(torch.tensor([3.0, 4.0])), 1.0)
    assert (type(clipped), clipped.label) == (Labelled, "kept")
    assert info.norm == 5.0


def test_one_call_over_numpy_and_torch() -> None:
    grads = collections.OrderedDict(
        a=np.array([3.0], np.float32), b=[torch.tensor([4.0], dtype=torch.bfloat16)], c=torch.tensor([12.0 + 0j])
    )
    clipped, info = gc.clip_by_global_norm(grads, 6.5)
    assert info.norm == 13.0
    assert type(clipped) is collections.OrderedDict
    assert (type(clipped["a"]), type(clipped["b"][0]), clipped["c"].dtype) == (
        np.ndarray,
        torch.Tensor,
        torch.complex64,
    )
    gc.clip_by_global_norm_(grads, 6.5)
    assert [float(grads["a"][0]), float(grads["b"][0]), float(grads["c"].real)] == pytest.approx([1.5, 2, 6], rel=2**-8)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_one_memory_in_two_frameworks_is_refused(swap: bool, name: str) -> None:
    """One result cannot be both, and the version counter of a tensor that came second would not be bumped."""
    x = torch.tensor([3.0, 4.0])
    with pytest.raises(gc.UnsafeMemoryError, match="they share memory"):
        getattr(gc, name)([x.numpy(), x] if swap else [x, x.numpy()], 1.0)
    assert x.tolist() == [3.0, 4.0]
    assert x._version == 0


# ------------------------------------------------------------------------------------ sys.modules


@pytest.mark.parametrize("imported", ["", "import torch"])
def test_nothing_here_imports_torch(imported: str) -> None:
    """And the test can fail: with torch imported by the user, it is seen."""
    program = f"""if True:
        import sys
        {imported}
        import numpy as np, gradclip_core as gc
        gc.clip_by_norm_([np.array([3.0, 4.0])], 1.0)
        gc.clip_by_value([np.array([3.0, 4.0])], 1.0)
        gc.adaptive_clip([np.ones((2, 2))], [np.ones((2, 2))], axis=1)
        found = {{"torch", "jax", "tensorflow", "cupy", "paddle", "mlx"}} & set(sys.modules)
        sys.exit(len(found))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=120)
    assert done.returncode == (1 if imported else 0)


@pytest.mark.parametrize("function", [gc.clip_by_norm, gc.clip_by_norm_, gc.plan])
def test_a_graph_s_own_tensor_is_refused_while_autograd_records(function: Any) -> None:
    """Its backward would take the clipped values for the unclipped ones, or lose the graph."""
    x = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    rule = gc.ArrayNorm(1.0) if function is gc.plan else 1.0
    with pytest.raises(gc.InvalidArgumentError, match=r"part of an autograd graph.*torch.no_grad"):
        function([g], rule)
    assert g.tolist() == [3.0, 3.0, 3.0]
    with torch.no_grad():
        function([g], rule)
    function([g.detach()], rule)
