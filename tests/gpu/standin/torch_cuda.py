"""PyTorch tensors that look as if they were on a GPU, to code that asks them; their type stays ``torch.Tensor``.

What works: ``torch.Tensor`` is a Python class over ``TensorBase``, so a property set on it is found before the C one;
this holds for ``Parameter`` and for views, and a tensor that was not chosen answers as before. What does not: C++ code
never asks these properties. PyTorch's own operations on a chosen tensor run on the CPU, at once and in no stream,
and what they return is a CPU tensor, unless it is a view or comes from a function patched here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from tests.gpu.standin import dlpack, runtime
from tests.gpu.standin.array import order_streams
from tests.gpu.standin.devices import Device, Event
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import Machine
from tests.gpu.standin.memory import FRESH, Block, as_bytes

_MAKERS = ("empty", "zeros", "empty_strided", "full", "asarray")
_LIKE = ("empty_like", "zeros_like")


class TorchStream:
    """What ``torch.cuda.current_stream`` gives."""

    def __init__(self, cuda_stream: int, device: Any) -> None:
        self.cuda_stream = cuda_stream
        self.device = device

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchStream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    def synchronize(self) -> None:
        runtime.streamSynchronize(self.cuda_stream)

    def wait_event(self, event: Event) -> None:
        runtime.streamWaitEvent(self.cuda_stream, event.ptr)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        runtime.eventRecord(event.ptr, self.cuda_stream)
        return event

    def wait_stream(self, stream: TorchStream) -> None:
        self.wait_event(stream.record_event())


class TorchCuda:
    """The chosen tensors, and PyTorch's idea of the current stream."""

    def __init__(self, standin: Machine) -> None:
        self.standin = standin
        self.torch: Any = sys.modules["torch"]
        self._storages: dict[int, Block] = {}
        self._empty: dict[int, tuple[int, Any]] = {}
        """Tensors without memory, by identity: they are kept, so that it stays theirs."""
        self._streams: dict[int, int] = {}

    def add(self, tensor: Any, device: int = 0) -> Any:
        """Choose a tensor: it, and all that shares its memory, is on this device from now on."""
        self.standin.check_device(device)
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            self._empty[id(tensor)] = device, tensor
        elif storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = self.standin.adopt(
                storage.data_ptr(), storage.nbytes(), device, storage
            )
        return tensor

    def device_of(self, tensor: Any) -> int | None:
        """The device that a tensor pretends to be on."""
        try:
            block = self._storages.get(tensor.untyped_storage().data_ptr())
        except Exception:  # tensors without storage of their own
            return None
        return self._empty.get(id(tensor), (None,))[0] if block is None else block.device

    @contextmanager
    def stream(self, handle: int, device: int | None = None) -> Iterator[None]:
        """Make a stream PyTorch's current one; CuPy's is another."""
        device = self.standin.device if device is None else device
        before = self._streams.get(device, 0)
        self._streams[device] = handle
        try:
            yield
        finally:
            self._streams[device] = before

    def current_stream(self, device: Any = None) -> TorchStream:
        """As ``torch.cuda.current_stream``; 0 is the legacy default stream."""
        index = self.standin.device if device is None else self._index(device)
        return TorchStream(self._streams.get(index, 0), self.torch.device("cuda", index))

    def _index(self, device: Any) -> int:
        device = self.torch.device(device) if isinstance(device, str) else device
        index = device if isinstance(device, int) else device.index
        return self.standin.device if index is None else int(index)

    def synchronise(self, device: int, why: str) -> None:
        """What PyTorch does before it lets the host see values."""
        with Device(device):
            queue = self.standin.queue(self._streams.get(device, 0))
            if queue.capture is not None:
                self.standin.work.refuse_capture(queue)
            self.standin.log.add(Entry("d2h", device, queue.handle))
            self.standin.synchronise(None, queue, why)

    def release(self) -> None:
        """Let the memory be nobody's again."""
        for block in self._storages.values():
            self.standin.disown(block)


@contextmanager
def cuda_tensors(standin: Machine, *tensors: Any, device: int = 0) -> Iterator[TorchCuda]:
    """Make CPU tensors look like CUDA tensors: their answers, their makers, and the parts of ``torch.cuda`` needed."""
    from gradclip_core.arrays.torch_door import TorchDoor  # which needs torch to be imported

    fake = TorchCuda(standin)
    torch = fake.torch
    with ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        for name, value in _answers(fake).items():
            inherited = name not in vars(torch.Tensor)
            if inherited:  # mock.patch would leave a copy of the inherited one behind
                setattr(torch.Tensor, name, value)
                stack.callback(delattr, torch.Tensor, name)
            else:
                patch(torch.Tensor, name, value)
        for name in _MAKERS:
            patch(torch, name, _maker(fake, getattr(torch, name)))
        for name in _LIKE:
            patch(torch, name, _maker_like(fake, getattr(torch, name)))
        # The express entrance asks PyTorch's C code, which knows these tensors to be in host memory.
        patch(TorchDoor, "plain", lambda door, leaves: False)
        patch(torch.cuda, "current_stream", fake.current_stream)
        patch(torch.cuda, "current_device", lambda: standin.device)
        patch(torch.cuda, "device", lambda device: Device(fake._index(device)))
        patch(torch.cuda, "set_device", lambda device: runtime.setDevice(fake._index(device)))
        patch(torch.cuda, "device_count", lambda: standin.devices)
        patch(torch.cuda, "is_available", lambda: True)
        patch(torch.cuda, "synchronize", lambda device=None: Device(fake._index(device or 0)).synchronize())
        patch(
            torch.cuda,
            "is_current_stream_capturing",
            lambda: standin.queue(fake.current_stream().cuda_stream).capture is not None,
        )
        patch(torch._C, "_cuda_getCurrentRawStream", lambda index: fake.current_stream(index).cuda_stream)
        for tensor in tensors:
            fake.add(tensor, device)
        try:
            yield fake
        finally:
            fake.release()


def _answers(fake: TorchCuda) -> dict[str, Any]:
    """What chosen tensors say of themselves; the others are asked as before."""
    torch = fake.torch
    base = {
        name: getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "get_device", "__dlpack__")
    }

    def answer(name: str, on_gpu: Callable[[int], Any]) -> property:
        original = getattr(torch._C.TensorBase, name)

        def get(self: Any) -> Any:
            device = fake.device_of(self)
            return original.__get__(self) if device is None else on_gpu(device)

        return property(get)

    def reading(name: str, copies: bool = False) -> Callable[..., Any]:
        def read(self: Any, *args: Any, **kwargs: Any) -> Any:
            device = fake.device_of(self)
            if device is None:
                return base[name](self, *args, **kwargs)
            fake.synchronise(device, name)
            return self.clone() if copies else base[name](self, *args, **kwargs)

        return read

    def numpy(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = fake.device_of(self)
        if device is not None:
            raise TypeError(
                f"can't convert cuda:{device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
                "to host memory first."
            )
        return base["numpy"](self, *args, **kwargs)

    def get_device(self: Any) -> Any:
        device = fake.device_of(self)
        return base["get_device"](self) if device is None else device

    def to_dlpack(self: Any, *, stream: Any = -1, max_version: Any = None, **kwargs: Any) -> Any:
        device = fake.device_of(self)
        if device is None:
            return base["__dlpack__"](self, stream=stream, max_version=max_version, **kwargs)
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if device != fake.standin.device:
            raise BufferError(f"Can't export tensors on a different CUDA device index. Expected: {device}.")
        order_streams(fake.current_stream(device).cuda_stream, stream)
        size = self.element_size()
        versioned = max_version is not None and max_version[0] >= 1
        strides = [size * step for step in self.stride()]
        return dlpack.export(
            self, self.data_ptr(), self.shape, strides, _dtype(self.dtype), device, versioned=versioned
        )

    return {
        "is_cuda": answer("is_cuda", lambda device: True),
        "is_cpu": answer("is_cpu", lambda device: False),
        "device": answer("device", lambda device: torch.device("cuda", device)),
        "item": reading("item"),
        "tolist": reading("tolist"),
        "cpu": reading("cpu", copies=True),
        "numpy": numpy,
        "get_device": get_device,
        "__dlpack__": to_dlpack,
    }


def _dtype(torch_dtype: Any) -> np.dtype[Any]:
    name: Any = str(torch_dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _made(fake: TorchCuda, tensor: Any, device: int, fresh: bool) -> Any:
    """A new tensor on a device: PyTorch's allocator, which a capture allows."""
    fake.standin.log.add(Entry("alloc", device, nbytes=tensor.untyped_storage().nbytes(), why="torch"))
    if fresh:
        as_bytes(tensor.data_ptr(), tensor.untyped_storage().nbytes())[:] = FRESH
    return fake.add(tensor, device)


def _maker(fake: TorchCuda, original: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or fake.torch.device(device).type != "cuda":
            return original(*args, device=device, **kwargs)
        index = fake._index(fake.torch.device(device))
        return _made(fake, original(*args, **kwargs), index, original.__name__.startswith("empty"))

    return make


def _maker_like(fake: TorchCuda, original: Callable[..., Any]) -> Callable[..., Any]:
    def make(like: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        device = like.device if device is None else fake.torch.device(device)
        if device.type != "cuda":
            return original(like, *args, device=device, **kwargs)
        return _made(fake, original(like, *args, **kwargs), fake._index(device), original.__name__ != "zeros_like")

    return make
