"""What is special to a framework: its guards, its real view of complex numbers, its way to the host."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from gradclip_core.errors import BackendError
from gradclip_core.protocol import Buffer, FloatArray


class Framework:
    """A namespace of the array API standard, and what the standard leaves open."""

    flushes = False
    """Whether its operations on float32 take subnormals for zeros."""
    has_views = False
    """Whether arrays have NumPy's ``view``, which looks at the same memory as another dtype."""

    def __init__(self, namespace: Any) -> None:
        self.xp = namespace

    def plain(self, x: Any) -> Any:
        """The array without its framework's bookkeeping."""
        return x

    def guard(self, buffer: Buffer) -> AbstractContextManager[Any]:
        """Around all work on the buffer: its device, its stream, and no recording."""
        return nullcontext()

    def parts(self, x: Any) -> Any:
        """A dense ``(rows, n)`` complex array as ``(rows, 2n)`` real and imaginary parts, in the same memory."""
        raise BackendError(
            f"array_api, a complex array of {type(x).__module__}",
            "its framework has no view of complex numbers as their two parts",
            "Pass the real and imaginary parts",
        )

    def on_host(self, x: Any) -> FloatArray:
        """A float64 array, in host memory. Waits for the device."""
        return np.asarray(x, np.float64)

    @staticmethod
    def unavailable() -> str:
        """Why its arrays cannot be worked on in this process; empty where they can."""
        return ""


class NumpyFramework(Framework):
    """NumPy, and the parent of those that do as it does."""

    has_views = True

    def parts(self, x: Any) -> Any:
        """See ``Framework.parts``."""
        return x.view(x.real.dtype)


class CupyFramework(NumpyFramework):
    """CuPy: kernels go to its current stream of its current device, and are compiled with ``-ftz=true``."""

    flushes = True

    @contextmanager
    def guard(self, buffer: Buffer) -> Iterator[None]:
        """See ``Framework.guard``."""
        cupy = sys.modules["cupy"]
        with (
            cupy.cuda.Device(int(buffer.device.partition(":")[2] or 0)),
            cupy.cuda.Stream.from_external(_Stream(buffer.stream or 1)),
        ):
            yield

    def on_host(self, x: Any) -> FloatArray:
        """See ``Framework.on_host``."""
        return np.asarray(x.get(), np.float64)

    @staticmethod
    def unavailable() -> str:
        """See ``Framework.unavailable``."""
        runtime = sys.modules["cupy"].cuda.runtime
        try:
            runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            return f"CUDA does not start in this process ({error})"
        return ""


class TorchFramework(Framework):
    """PyTorch: its operations go to its current stream of the tensor's device by themselves."""

    def plain(self, x: Any) -> Any:
        """Without autograd, and with a version of its own: the core counts a write once, when it is done."""
        return x.data

    def guard(self, buffer: Buffer) -> AbstractContextManager[Any]:
        """In inference mode everything may be written, inference tensors too, and nothing is recorded."""
        mode: AbstractContextManager[Any] = sys.modules["torch"].inference_mode()
        return mode

    def parts(self, x: Any) -> Any:
        """See ``Framework.parts``."""
        return sys.modules["torch"].view_as_real(x).reshape(x.shape[0], -1)

    def on_host(self, x: Any) -> FloatArray:
        """See ``Framework.on_host``."""
        return np.asarray(x.cpu().numpy(), np.float64)

    @staticmethod
    def unavailable() -> str:
        """See ``Framework.unavailable``."""
        in_bad_fork = getattr(sys.modules["torch"].cuda, "_is_in_bad_fork", None)
        if in_bad_fork is not None and in_bad_fork():
            return "CUDA does not survive a fork, and this process was forked from one that uses it: spawn it"
        return ""


ON_DEVICES: dict[str, type[Framework]] = {"cupy": CupyFramework, "torch": TorchFramework}
"""Those whose arrays are worked on where they are, by the name of their module."""


class _Stream:
    """Somebody's stream, as CuPy takes one."""

    def __init__(self, pointer: int) -> None:
        self.ptr = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


def framework_of(array: Any) -> Framework:
    """The framework that an array is of."""
    compat = importlib.import_module("array_api_compat")
    return _framework(name_of(type(array)), compat.array_namespace(array))


def name_of(kind: type) -> str:
    """The top-level module of a type."""
    return kind.__module__.partition(".")[0]


@functools.lru_cache(maxsize=16)
def _framework(name: str, namespace: Any) -> Framework:
    kind: type[Framework] = {**ON_DEVICES, "numpy": NumpyFramework}.get(name, Framework)
    return kind(namespace)
