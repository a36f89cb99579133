"""Chosen tensors answer as CUDA tensors do; all others, and everything afterwards, as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.standin import Machine
from tests.gpu.standin.python_engine import kernel
from tests.gpu.standin.torch_cuda import cuda_tensors

torch: Any = pytest.importorskip("torch")


def answers(x: Any) -> tuple[Any, ...]:
    return type(x) is torch.Tensor, x.is_cuda, x.is_cpu, str(x.device), x.get_device(), int(x.__dlpack_device__()[0])


def test_chosen_tensors_alone(standin: Machine) -> None:
    x, y, empty = torch.ones(4), torch.ones(4), torch.empty(0)
    with cuda_tensors(standin, x, empty, device=1):
        for seen in (x, empty, x[1:], x.detach(), x.view(2, 2).T):
            assert answers(seen) == (True, True, False, "cuda:1", 1, 2)
        assert torch.nn.Parameter(x).is_cuda
        assert answers(y) == answers(x + 1) == answers(x.cpu()) == (True, False, True, "cpu", -1, 1)
        assert "device='cuda:1'" in repr(x)
        with pytest.raises(TypeError, match="can't convert cuda:1 device type tensor to numpy"):
            x.numpy()
        assert y.numpy().tolist() == [1, 1, 1, 1]
    assert answers(x) == (True, False, True, "cpu", -1, 1)
    assert "is_cuda" not in vars(torch.Tensor)
    assert not torch.cuda.is_available()
    assert not hasattr(torch._C, "_cuda_getCurrentRawStream")


def test_a_kernel_runs_on_its_memory(late: Machine, cp: Any) -> None:
    x = torch.ones(4, dtype=torch.float32)
    stream = cp.cuda.Stream(non_blocking=True)
    with cuda_tensors(late, x) as fake:
        scale = kernel(cp, "scale")
        assert torch.cuda.current_stream(0).cuda_stream == 0
        with fake.stream(stream.ptr):
            current = torch.cuda.current_stream(x.device)
            assert (current.cuda_stream, torch._C._cuda_getCurrentRawStream(0)) == (stream.ptr, stream.ptr)
            assert cp.cuda.Stream.from_external(current) == stream
            scale((1,), (1,), (np.uint64(x[1:].data_ptr()), np.uint32(3), np.float32(2)), stream=stream)
            version = x._version
            torch.autograd.graph.increment_version([x])
            assert x._version == version + 1
            assert x[3].item() == 2  # PyTorch waits for its own current stream
        assert late.log.of("sync")[-1].why == "item"
        assert cp.cuda.runtime.pointerGetAttributes(x.data_ptr()).type == 2
    assert cp.cuda.runtime.pointerGetAttributes(x.data_ptr()).type == 0


def test_new_tensors(standin: Machine) -> None:
    x = torch.ones(2, 3)
    with cuda_tensors(standin, x, device=1):
        y = torch.empty_like(x, requires_grad=False)
        assert answers(y) == (True, True, False, "cuda:1", 1, 2)
        assert y.is_contiguous()
        assert y.view(torch.uint8).tolist()[0][0] == 0xAB
        assert torch.zeros(3, device="cuda:1").tolist() == [0, 0, 0]
        assert torch.empty(3, dtype=torch.float64, device=x.device).device == x.device
        assert torch.empty(3).is_cpu
        assert torch.empty_like(torch.ones(2)).is_cpu
        assert len(standin.log.of("alloc")) == 3


def test_devices_and_captures(standin: Machine, cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    x = torch.ones(2)
    with cuda_tensors(standin, x) as fake:
        assert (torch.cuda.is_available(), torch.cuda.device_count()) == (True, 2)
        with torch.cuda.device(1):
            assert torch.cuda.current_device() == cp.cuda.runtime.getDevice() == 1
        with fake.stream(stream.ptr):
            stream.begin_capture()
            assert torch.cuda.is_current_stream_capturing()
            torch.empty_like(x)  # from the graph's own pool
            stream.end_capture()
            stream.begin_capture()
            with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="capturing"):
                x.tolist()
            with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
                stream.end_capture()
        assert not torch.cuda.is_current_stream_capturing()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_dlpack(standin: Machine, cp: Any, dtype: str) -> None:
    x = torch.ones(2, 3, dtype=getattr(torch, dtype)).T
    with cuda_tensors(standin, x):
        y = cp.from_dlpack(x)
        assert (y.data.ptr, y.shape, y.dtype.name, y.strides[0]) == (x.data_ptr(), (3, 2), dtype, y.itemsize)
        with torch.cuda.device(1), pytest.raises(BufferError, match="different CUDA device"):
            x.__dlpack__()
        with pytest.raises(BufferError, match="require gradient"):
            torch.nn.Parameter(x.real).__dlpack__()


def test_training_goes_on(standin: Machine) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    (weight * torch.arange(3.0)).sum().backward()
    with cuda_tensors(standin, weight, weight.grad):
        optimizer = torch.optim.SGD([weight], lr=0.5)
        assert weight.grad.is_cuda
        optimizer.step()
        assert weight.tolist() == [1, 0.5, 0]
