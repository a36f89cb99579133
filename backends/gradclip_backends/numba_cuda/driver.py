"""Numba's CUDA target as a driver: compiles the kernels at their first use, launches them, and nothing else.

What to launch, and with which tables, is decided in ``gradclip_backends/gpu``. Nothing of Numba is imported
before it is asked for: that takes a second, and there may be no Numba.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_backends.gpu.driver import Allocation, Bytes, Queue
from gradclip_backends.gpu.layout import THREADS
from gradclip_backends.numba_cuda.failures import failing_as, reasons_against_start

_CAPTURE_NONE = 0
_MEMORY_TYPE, _DEVICE_ORDINAL = 2, 9  # of CUpointer_attribute
_HOST_MEMORY = 1


class _Memory:
    """See ``Allocation``. Freed by Numba's memory manager, which waits for the device to be done with it."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    @property
    def pointer(self) -> int:
        return int(self._memory.device_pointer_value or 0)


class NumbaDriver:
    """See ``Driver``."""

    name = "numba_cuda"
    inline_rows = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: set[tuple[int, str]] = set()
        self._launches: dict[tuple[str, int, Queue], Any] = {}
        self._processors: dict[int, int] = {}
        self._uploads: list[tuple[Any, Bytes]] = []

    # ---- the machine ---------------------------------------------------------------------------

    def unavailable(self) -> list[str]:
        """See ``Driver.unavailable``."""
        if importlib.util.find_spec("numba") is None or importlib.util.find_spec("numba_cuda") is None:
            return ["Numba's CUDA target is not installed: pip install 'numba-cuda[cu13]', or [cu12]"]
        return reasons_against_start()

    def devices(self) -> int:
        """See ``Driver.devices``."""
        with failing_as("counting the devices"):
            return int(self._cuda.get_device_count())

    def processors(self, device: int) -> int:
        """See ``Driver.processors``."""
        if device not in self._processors:
            with failing_as("asking for the device"):
                self._processors[device] = int(self._cuda.get_device(device).MULTIPROCESSOR_COUNT)
        return self._processors[device]

    @property
    def _cuda(self) -> Any:
        """CUDA's driver, function by function: what fails raises, what succeeds returns its result."""
        from numba.cuda.cudadrv.driver import driver

        return driver

    def _on(self, device: int) -> Any:
        from numba import cuda

        return cuda.gpus[device]

    # ---- kernels -------------------------------------------------------------------------------

    def prepare(self, device: int, kernels: Sequence[str]) -> None:
        """See ``Driver.prepare``."""
        for kernel in kernels:
            if (device, kernel) not in self._prepared:
                with self._lock:
                    self._load(device, kernel)
                    self._prepared.add((device, kernel))

    def _load(self, device: int, kernel: str) -> None:
        from gradclip_backends.numba_cuda.kernels import KERNELS

        with failing_as(f"compiling {kernel} for cuda:{device}"), self._on(device):
            KERNELS[kernel].function.compile(KERNELS[kernel].types()).bind()

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        """See ``Driver.launch``."""
        from gradclip_backends.numba_cuda.structs import argument

        self.prepare(queue.device, [kernel])
        flat = [argument(arg) for arg in args]
        with failing_as(f"launching {kernel}", queue), self._on(queue.device):
            self._configured(kernel, grid, queue)(*flat)

    def _configured(self, kernel: str, grid: int, queue: Queue) -> Any:
        """A kernel with its grid and its stream. Made once: Numba warns of every grid of less than 128 blocks."""
        key = (kernel, grid, queue)
        if key not in self._launches:
            from numba import cuda

            from gradclip_backends.numba_cuda.kernels import KERNELS

            with self._lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stream = cuda.external_stream(queue.stream)
                self._launches[key] = KERNELS[kernel].function[grid, THREADS, stream]
        return self._launches[key]

    # ---- memory --------------------------------------------------------------------------------

    def allocate(self, queue: Queue, size: int) -> Allocation:
        """See ``Driver.allocate``."""
        from numba import cuda

        with failing_as(f"allocating {size} bytes", queue), self._on(queue.device):
            return _Memory(cuda.current_context().memalloc(size))

    def clear(self, queue: Queue, pointer: int, size: int) -> None:
        """See ``Driver.clear``."""
        with failing_as("clearing memory", queue), self._on(queue.device):
            self._cuda.cuMemsetD8Async(pointer, 0, size, queue.stream)

    def upload(self, queue: Queue, pointer: int, data: Bytes) -> None:
        """See ``Driver.upload``."""
        if self.capturing(queue):
            self._upload_by_launches(queue, pointer, data)
            return
        # CUDA mostly copies what is in ordinary memory before it returns, but does not promise it.
        kept = data.copy()
        with failing_as("copying a table", queue), self._on(queue.device):
            self._cuda.cuMemcpyHtoDAsync(pointer, kept.ctypes.data, kept.nbytes, queue.stream)
        with self._lock:
            self._uploads = [(mark, held) for mark, held in self._uploads if not self.passed(mark)]
            self._uploads.append((self.mark(queue), kept))

    def _upload_by_launches(self, queue: Queue, pointer: int, data: Bytes) -> None:
        """As arguments of launches, which a CUDA graph keeps. A recorded copy would read the host's memory again."""
        from gradclip_backends.numba_cuda.structs import WORDS

        words = data.view(np.int64)
        while words.size:
            chunk = np.zeros(1, WORDS)
            most = chunk["words"].size
            now, words = words[:most], words[most:]
            chunk["words"][0, : now.size] = now
            self.launch(queue, "store_words", 1, (chunk, np.uint64(pointer), np.uint32(now.size)))
            pointer += 8 * now.size

    def read(self, queue: Queue, pointer: int, size: int) -> Bytes:
        """See ``Driver.read``."""
        host = np.empty(size, np.uint8)
        with failing_as("reading a result", queue), self._on(queue.device):
            self._cuda.cuMemcpyDtoHAsync(host.ctypes.data, pointer, size, queue.stream)
            self._cuda.cuStreamSynchronize(queue.stream)
        return host

    def device_of(self, pointer: int) -> int | None:
        """See ``Driver.device_of``."""
        from numba.cuda.cudadrv.driver import CudaAPIError

        bindings = importlib.import_module("cuda.bindings.driver")
        attribute, there = bindings.CUpointer_attribute, bindings.CUdeviceptr(pointer)
        try:
            kind = self._cuda.cuPointerGetAttribute(attribute(_MEMORY_TYPE), there)
            device = self._cuda.cuPointerGetAttribute(attribute(_DEVICE_ORDINAL), there)
        except CudaAPIError:
            return None
        return None if int(kind) == _HOST_MEMORY else int(device)

    # ---- streams -------------------------------------------------------------------------------

    def capturing(self, queue: Queue) -> bool:
        """See ``Driver.capturing``. The default stream cannot be captured, nor asked while another one is."""
        if queue.stream in (0, 1):
            return False
        with failing_as("asking whether the stream is captured", queue), self._on(queue.device):
            return int(self._cuda.cuStreamIsCapturing(queue.stream)) != _CAPTURE_NONE

    def order(self, first: Queue, then: Queue) -> None:
        """See ``Driver.order``."""
        _, event = self.mark(first)
        with failing_as("ordering two streams", then), self._on(then.device):
            self._cuda.cuStreamWaitEvent(then.stream, int(event.handle), 0)

    def mark(self, queue: Queue) -> Any:
        """See ``Driver.mark``."""
        from numba import cuda

        with failing_as("recording an event", queue), self._on(queue.device):
            event = cuda.event(timing=False)
            self._cuda.cuEventRecord(int(event.handle), queue.stream)
            return queue.device, event

    def passed(self, mark: Any) -> bool:
        """See ``Driver.passed``."""
        device, event = mark
        with failing_as("asking for an event"), self._on(device):
            return bool(event.query())
