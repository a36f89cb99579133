"""PyTorch's tensors on a device, as a training loop has them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import cp, told
from tests.gpu.standin import Machine
from tests.gpu.standin.torch_cuda import cuda_tensors
from tests.refusals import check_sentence

torch: Any = pytest.importorskip("torch")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}


def tensors(dtype: str, scale: float = 1.0) -> list[Any]:
    made = torch.Generator().manual_seed(0)
    shapes = ((100, 30), (4500,), (), (0, 3))
    return [
        (torch.randn(shape, generator=made, dtype=torch.float64) * scale).to(getattr(torch, dtype)) for shape in shapes
    ]


def as_numpy(tensor: Any) -> Any:
    """A copy of its bits, wherever it pretends to be."""
    kind = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    raw = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return raw.reshape(-1).view(torch.uint8).numpy().view(kind).reshape(tuple(tensor.shape)).copy()


def bits(tensors: Any) -> list[bytes]:
    return [x.tobytes() if isinstance(x, np.ndarray) else as_numpy(x).tobytes() for x in tensors]


@pytest.mark.parametrize("policy", ["raise", "skip", "sanitize"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(standin: Machine, dtype: str, policy: str) -> None:
    grads = tensors(dtype, 3.0)
    host = [as_numpy(x) for x in grads]
    for rule in (gc.GlobalNorm(1e6), gc.GlobalNorm(1.0), gc.ArrayNorm(0.5), gc.Value(0.001)):
        expected, info = gc.clip(host, rule, nonfinite=policy, backend="numpy")
        with cuda_tensors(standin, *grads, device=1):
            versions = [x._version for x in grads]
            ours = gc.clip_(grads, rule, nonfinite=policy)
            # Whether anything was written only the device knows: a saved tensor has to count as changed.
            assert [x._version - before for x, before in zip(grads, versions, strict=True)] == [1] * 4
            assert (ours.backend, told(ours)) == ("cupy_raw", told(info))
        assert bits(grads) == bits(expected)
        host = [as_numpy(x) for x in grads]


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_tensors(standin: Machine, dtype: str) -> None:
    grads = tensors(dtype, 3.0)
    before = bits(grads)
    expected, info = gc.clip_by_global_norm([as_numpy(x) for x in grads], 1.0, backend="numpy")
    with cuda_tensors(standin, *grads, device=1):
        versions = [x._version for x in grads]
        made, ours = gc.clip_by_global_norm(grads, 1.0)
        assert {str(x.device) for x in made} == {"cuda:1"}
        assert [type(x) for x in made] == [torch.Tensor] * 4
        assert not any(x.requires_grad for x in made)
        assert [x._version for x in grads] == versions
        assert told(ours) == told(info)
        assert bits(made) == bits(expected)
    assert bits(grads) == before


def test_a_saved_tensor_says_that_it_was_clipped(standin: Machine) -> None:
    weight = torch.ones(5, requires_grad=True)
    grad = torch.full((5,), 3.0)
    product = (weight * grad).sum()  # saves grad
    with cuda_tensors(standin, grad):
        gc.clip_by_global_norm_([grad], 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_layouts(standin: Machine) -> None:
    base = torch.randn(64, 50)
    views = {"t": base.t()[:20], "slice": base[:, 30:45], "expanded": torch.randn(7, 1).expand(7, 9)}
    host = {name: view.numpy().copy() for name, view in views.items()}
    expected, info = gc.clip_by_global_norm(host, 1.0, backend="numpy")
    with cuda_tensors(standin, base, views["expanded"]):
        made, ours = gc.clip_by_global_norm(views, 1.0)
        assert told(ours) == told(info)
        with pytest.raises(gc.UnsafeMemoryError, match="several of its elements are the same memory"):
            gc.clip_by_global_norm_(views, 1.0)
        del views["expanded"]
        del host["expanded"]
        gc.clip_by_global_norm_(views, 1.0)
    assert bits(made.values()) == bits(expected.values())
    expected, _ = gc.clip_by_global_norm(host, 1.0, backend="numpy")
    assert bits(views.values()) == bits(expected.values())


def test_channels_last_stays_so(standin: Machine) -> None:
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    with cuda_tensors(standin, x):
        made, _ = gc.clip_by_global_norm([x], 1.0)
        assert made[0].stride() == x.stride()
    expected, _ = gc.clip_by_global_norm([x.clone()], 1.0, backend="numpy")
    assert bits(made) == bits(expected)


@pytest.mark.parametrize("kind", ["neg", "conj"])
def test_lazy_bits_are_refused(standin: Machine, kind: str) -> None:
    z = torch.ones(4, dtype=torch.complex64) * (3 + 4j)
    lazy = torch._neg_view(torch.ones(4) * 3) if kind == "neg" else z.conj()
    base = lazy._base if kind == "neg" else z
    before = base.clone()
    with cuda_tensors(standin, base), pytest.raises(gc.GradClipError) as caught:
        gc.clip_by_global_norm_([lazy], 1.0)
    check_sentence(
        caught.value, gc.UnsafeMemoryError, "array '0'", "before a lazy negation", "resolve_neg().resolve_conj()"
    )
    assert base.tolist() == before.tolist()


def test_beside_cupys_arrays(standin: Machine) -> None:
    ours, theirs = tensors("float32")[0], np.arange(5000, dtype=np.float32)
    expected, info = gc.clip_by_global_norm({"t": as_numpy(ours), "c": theirs}, 1.0, backend="numpy")
    with cuda_tensors(standin, ours):
        mixed = {"t": ours, "c": cp().asarray(theirs)}
        made, report = gc.clip_by_global_norm(mixed, 1.0)
        assert (type(made["t"]), type(made["c"])) == (torch.Tensor, cp().ndarray)
        assert told(gc.clip_by_global_norm_(mixed, 1.0)) == told(report) == told(info)
        assert bits([made["t"], made["c"].get()]) == bits(expected.values())
        assert bits([ours, mixed["c"].get()]) == bits(expected.values())


@pytest.mark.parametrize("bad", [False, True])
def test_a_grad_scalers_scale(standin: Machine, bad: bool) -> None:
    """``GradScaler._scale`` is a tensor of one float32 on the device: nobody waits for it."""
    grads, scale = tensors("float16", 64.0), torch.full((), 1024.0)
    if bad:
        grads[1][7] = torch.inf
    expected, info = gc.clip_by_global_norm(
        [as_numpy(x) for x in grads], 0.5, loss_scale=1024.0, nonfinite="skip", backend="numpy"
    )
    with cuda_tensors(standin, *grads, scale):
        for turn in range(2):
            standin.log.clear()
            ours = gc.clip_by_global_norm_(grads, 0.5 if turn == 0 else 1e9, loss_scale=scale, nonfinite="skip")
            counts = standin.log.counts()
            assert (counts["sync"], counts["d2h"], counts["h2d"]) == (0, 0, 0)
            if turn == 0:
                assert told(ours) == told(info)
                assert ours.skipped == bad
                assert bits(grads) == bits(expected)


def test_training_is_the_same_as_on_the_cpu(standin: Machine) -> None:
    def train(device: bool) -> tuple[list[float], list[bytes]]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, y, norms = torch.randn(32, 8), 100 * torch.randn(32, 1), []
        for _ in range(6):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            grads = [p.grad for p in model.parameters()]
            if device:
                with cuda_tensors(standin, *grads):
                    norms.append(gc.clip_by_global_norm_(grads, 1.0).norm)
            else:
                norms.append(gc.clip_by_global_norm_(grads, 1.0, backend="numpy").norm)
            optimizer.step()
        return norms, bits(p.detach() for p in model.parameters())

    assert train(device=True) == train(device=False)
