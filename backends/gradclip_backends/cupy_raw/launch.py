"""CuPy as a driver: compiles the kernels at their first use, launches them, and nothing else.

What to launch, and with which tables, is decided in ``gradclip_backends/gpu``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

from gradclip_backends.cupy_raw.sources import OPTIONS, file_of, source
from gradclip_backends.gpu.driver import Allocation, Bytes, Queue
from gradclip_backends.gpu.layout import INLINE_ROWS, THREADS
from gradclip_core.errors import BackendError

_runtime = cupy.cuda.runtime
_CHUNK_WORDS, _LARGE_CHUNK_WORDS = 500, 4000
# From CUDA 12.1 on a launch takes 32,764 bytes of parameters, before that 4,096.
_LARGE_PARAMETERS = 12010
_NO_DEVICE, _INSUFFICIENT_DRIVER = 100, 35
_DEVICE_MEMORY, _MANAGED_MEMORY = 2, 3


class _Stream:
    """Somebody else's stream, as CuPy takes one."""

    def __init__(self, pointer: int) -> None:
        self.ptr = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


class _Memory:
    """See ``Allocation``."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    @property
    def pointer(self) -> int:
        return int(self._memory.ptr)


class CupyDriver:
    """See ``Driver``."""

    name = "cupy_raw"
    inline_rows = INLINE_ROWS

    def __init__(self) -> None:
        self._modules: dict[tuple[int, str], Any] = {}
        self._kernels: dict[tuple[int, str], Any] = {}
        self._processors: dict[int, int] = {}
        self._lock = threading.Lock()

    # ---- the machine ---------------------------------------------------------------------------

    def unavailable(self) -> list[str]:
        """See ``Driver.unavailable``."""
        if _runtime.is_hip:
            return ["CuPy is built for ROCm here, and the kernels are CUDA C for NVIDIA's devices"]
        try:
            count = _runtime.getDeviceCount()
        except _runtime.CUDARuntimeError as error:
            return [_why_no_device(error)]
        return [] if count else ["there is no CUDA device on this machine, or CUDA_VISIBLE_DEVICES hides it"]

    def devices(self) -> int:
        """See ``Driver.devices``."""
        return int(_runtime.getDeviceCount())

    def processors(self, device: int) -> int:
        """See ``Driver.processors``."""
        if device not in self._processors:
            with _failing_as("asking for the device"):
                self._processors[device] = int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])
        return self._processors[device]

    # ---- kernels -------------------------------------------------------------------------------

    def prepare(self, device: int, kernels: Sequence[str]) -> None:
        """See ``Driver.prepare``."""
        for kernel in kernels:
            if (device, kernel) not in self._kernels:
                with self._lock:
                    self._kernels[device, kernel] = self._load(device, kernel)

    def _load(self, device: int, kernel: str) -> Any:
        file = file_of(kernel)
        with _failing_as(f"compiling {file} for cuda:{device}"), cupy.cuda.Device(device):
            if (device, file) not in self._modules:
                self._modules[device, file] = cupy.RawModule(code=source(file), options=OPTIONS)
            return self._modules[device, file].get_function(kernel)

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        """See ``Driver.launch``."""
        self.prepare(queue.device, [kernel])
        with _failing_as(f"launching {kernel}", queue), cupy.cuda.Device(queue.device):
            self._kernels[queue.device, kernel]((grid,), (THREADS,), tuple(args), stream=_Stream(queue.stream))

    # ---- memory --------------------------------------------------------------------------------

    def allocate(self, queue: Queue, size: int) -> Allocation:
        """See ``Driver.allocate``. From CuPy's pool, in the arena of the queue's stream."""
        with (
            _failing_as(f"allocating {size} bytes", queue),
            cupy.cuda.Device(queue.device),
            cupy.cuda.Stream.from_external(_Stream(queue.stream)),
        ):
            return _Memory(cupy.cuda.alloc(size))

    def clear(self, queue: Queue, pointer: int, size: int) -> None:
        """See ``Driver.clear``."""
        with _failing_as("clearing memory", queue), cupy.cuda.Device(queue.device):
            _runtime.memsetAsync(pointer, 0, size, queue.stream)

    def upload(self, queue: Queue, pointer: int, data: Bytes) -> None:
        """See ``Driver.upload``: as the argument of a kernel, which is copied when it is launched."""
        words = data.view(np.uint64)
        large = min(_runtime.driverGetVersion(), _runtime.runtimeGetVersion()) >= _LARGE_PARAMETERS
        while words.size:
            most = _LARGE_CHUNK_WORDS if large and words.size > _CHUNK_WORDS else _CHUNK_WORDS
            kernel = "store_chunk" if most == _CHUNK_WORDS else "store_large_chunk"
            now, words = words[:most], words[most:]
            chunk = np.zeros(1, np.dtype([("words", "u8", (most,))]))
            chunk["words"][0, : now.size] = now
            self.launch(queue, kernel, 1, (chunk, np.uint64(pointer), np.uint32(now.size)))
            pointer += 8 * now.size

    def read(self, queue: Queue, pointer: int, size: int) -> Bytes:
        """See ``Driver.read``."""
        host = np.empty(size, np.uint8)
        with _failing_as("reading a result", queue), cupy.cuda.Device(queue.device):
            _runtime.memcpyAsync(host.ctypes.data, pointer, size, _runtime.memcpyDeviceToHost, queue.stream)
            _runtime.streamSynchronize(queue.stream)
        return host

    def device_of(self, pointer: int) -> int | None:
        """See ``Driver.device_of``."""
        try:
            found = _runtime.pointerGetAttributes(pointer)
        except _runtime.CUDARuntimeError:
            return None
        return int(found.device) if found.type in (_DEVICE_MEMORY, _MANAGED_MEMORY) else None

    # ---- streams -------------------------------------------------------------------------------

    def capturing(self, queue: Queue) -> bool:
        """See ``Driver.capturing``. The default stream cannot be captured, nor asked while another one is."""
        if queue.stream in (0, 1):
            return False
        with _failing_as("asking whether the stream is captured", queue), cupy.cuda.Device(queue.device):
            try:
                return bool(_runtime.streamIsCapturing(queue.stream))
            except _runtime.CUDARuntimeError:
                raise
            except RuntimeError:  # how CuPy says that it is, and that the capture is spoilt already
                return True

    def order(self, first: Queue, then: Queue) -> None:
        """See ``Driver.order``."""
        event = self.mark(first)
        with _failing_as("ordering two streams", then), cupy.cuda.Device(then.device):
            _runtime.streamWaitEvent(then.stream, event.ptr)

    def mark(self, queue: Queue) -> Any:
        """See ``Driver.mark``."""
        with _failing_as("recording an event", queue), cupy.cuda.Device(queue.device):
            event = cupy.cuda.Event(disable_timing=True)
            _runtime.eventRecord(event.ptr, queue.stream)
            return event

    def passed(self, mark: Any) -> bool:
        """See ``Driver.passed``."""
        return bool(mark.done)


def _why_no_device(error: Any) -> str:
    """What CUDA's error means for somebody who has arrays on a device, or thinks so."""
    if error.status == _NO_DEVICE:
        return "CUDA finds no device: there is none, or CUDA_VISIBLE_DEVICES hides it"
    if error.status == _INSUFFICIENT_DRIVER:
        needs = _runtime.runtimeGetVersion() // 1000
        return (
            f"there is no NVIDIA driver, or one too old for CUDA {needs}, which this CuPy is built for: "
            f"install a newer driver, or a CuPy for an older CUDA"
        )
    return f"CUDA does not start ({error})"


@contextmanager
def _failing_as(what: str, queue: Queue | None = None) -> Iterator[None]:
    """What CUDA and CuPy raise, as an error of this library."""
    asked = f"cupy_raw, {what}" + (f" on cuda:{queue.device}" if queue else "")
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        cure = "Free memory on the device (what is kept here: 20 bytes for 4096 elements, 200 for an array or unit)"
        raise BackendError(asked, f"the device is out of memory ({error})", cure) from error
    except cupy.cuda.compiler.CompileException as error:
        first = next((line for line in str(error).splitlines() if "error" in line), str(error).partition("\n")[0])
        cure = "This is a bug of gradclip-core or an unknown architecture: pass backend='numba_cuda', and report it"
        raise BackendError(asked, f"the kernel does not compile ({first.strip()})", cure) from error
    except (_runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
        raise BackendError(asked, f"CUDA says {error}", _cure(str(error), queue)) from error


def _cure(error: str, queue: Queue | None) -> str:
    if "apture" in error:
        return "Clip once with the same gradients, on this stream, before capturing: that allocates and compiles"
    if "ResourceHandle" in error or "INVALID_HANDLE" in error or "INVALID_CONTEXT" in error:
        return f"The stream is not one of cuda:{queue.device if queue else 0}: make the array's device the current one"
    return "An earlier kernel may have failed; CUDA_LAUNCH_BLOCKING=1 shows where"
