"""A device that is host memory, for both lanes: what runs a kernel there, each lane says for itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gradclip_backends.gpu.driver import Allocation, Bytes, Queue
from gradclip_backends.numba_cuda.driver import NumbaDriver

from gradclip_core.protocol import Buffer, DType
from gradclip_core.testing.memory import HostMemory, Stored

_UNSET = 0xAB


class HostAllocation:
    """See ``Allocation``."""

    def __init__(self, size: int) -> None:
        self.block = np.full(size + 256, _UNSET, np.uint8)
        self.size = size

    @property
    def pointer(self) -> int:
        return self.block.ctypes.data + -self.block.ctypes.data % 256


class HostDriver(NumbaDriver):
    """Numba's driver, but for the calls of CUDA. Counts what it is asked for."""

    def __init__(self, processors: int = 2) -> None:
        super().__init__()
        self.launched: list[tuple[str, int]] = []
        self.captures = False
        self._live: list[weakref.ref[Any]] = []
        self._some = processors

    # ---- the machine ---------------------------------------------------------------------------

    def unavailable(self) -> list[str]:
        return []

    def devices(self) -> int:
        return 1

    def processors(self, device: int) -> int:
        return self._some

    def prepare(self, device: int, kernels: Sequence[str]) -> None:
        from gradclip_backends.numba_cuda.kernels import KERNELS

        assert set(kernels) <= set(KERNELS)

    # ---- memory --------------------------------------------------------------------------------

    def register(self, owner: HostAllocation | npt.NDArray[Any]) -> None:
        """Memory that kernels may touch as long as it lives."""
        self._live = [one for one in self._live if one() is not None]
        self._live.append(weakref.ref(owner))

    def regions(self) -> Iterator[tuple[int, int]]:
        """(address, bytes) of all that lives."""
        for one in self._live:
            owner = one()
            if isinstance(owner, HostAllocation):
                yield owner.pointer, owner.size
            elif owner is not None:
                yield owner.ctypes.data, owner.nbytes

    def allocate(self, queue: Queue, size: int) -> Allocation:
        made = HostAllocation(size)
        self.register(made)
        return made

    def clear(self, queue: Queue, pointer: int, size: int) -> None:
        _view(pointer, size)[:] = 0

    def upload(self, queue: Queue, pointer: int, data: Bytes) -> None:
        if self.captures:
            self._upload_by_launches(queue, pointer, data)
        else:
            _view(pointer, data.nbytes)[:] = data

    def read(self, queue: Queue, pointer: int, size: int) -> Bytes:
        return _view(pointer, size).copy()

    # ---- streams -------------------------------------------------------------------------------

    def capturing(self, queue: Queue) -> bool:
        return self.captures

    def order(self, first: Queue, then: Queue) -> None:
        """Nothing is asynchronous here."""

    def mark(self, queue: Queue) -> Any:
        return None

    def passed(self, mark: Any) -> bool:
        return True


class FakeMemory(HostMemory):
    """The conformance suite's arrays, where the kernels of a ``HostDriver`` may touch them."""

    device = "cuda:0"

    def __init__(self, driver: HostDriver) -> None:
        self.driver = driver

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        buffer = super().put(rows, dtype, shift=shift)
        assert isinstance(buffer.owner, np.ndarray)
        self.driver.register(buffer.owner)
        return buffer

    def aligned(self, rows: Stored, dtype: DType) -> Buffer:
        """At a multiple of 256, as CUDA's allocators give it: there the fast paths are."""
        block = np.zeros(rows.nbytes + 256, np.uint8)
        start = -block.ctypes.data % 256
        block[start : start + rows.nbytes] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        self.driver.register(block)
        return Buffer(block.ctypes.data + start, rows.shape[1], dtype, rows.shape[0], self.device, block)


def _view(pointer: int, size: int) -> Bytes:
    from gradclip_core.protocol import host_view

    return host_view(pointer, (size,), np.dtype(np.uint8), None)
