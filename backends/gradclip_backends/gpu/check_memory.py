"""Device memory for the conformance suite, by a backend's own driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.gpu.driver import Allocation, Driver, Queue
from gradclip_core.protocol import Buffer, DType

Stored = npt.NDArray[Any]
_GUARD, _PATTERN = 64, 77


class DriverMemory:
    """See ``gradclip_core.testing.Memory``."""

    def __init__(self, driver: Driver, device: int = 0) -> None:
        self.driver = driver
        self.queue = Queue(device, 1)
        self.device = f"cuda:{device}"

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        """See ``Memory.put``."""
        start = _GUARD + shift
        block = np.full(-(-(rows.size + start + _GUARD) // 8) * 8, _PATTERN, dtype.view)
        block[start : start + rows.size] = rows.reshape(-1)
        memory = self.driver.allocate(self.queue, block.nbytes)
        self.driver.upload(self.queue, memory.pointer, block.view(np.uint8))
        pointer = memory.pointer + start * dtype.itemsize
        owner = _Block(memory, block.size, start)
        return Buffer(pointer, rows.shape[1], dtype, rows.shape[0], self.device, owner, self.queue.stream)

    def get(self, buffer: Buffer) -> Stored:
        """See ``Memory.get``."""
        block, start, size = self._read(buffer)
        return block[start : start + size].reshape(buffer.rows, buffer.length).copy()

    def guards_intact(self, buffer: Buffer) -> bool:
        """See ``Memory.guards_intact``."""
        block, start, size = self._read(buffer)
        outside = np.concatenate([block[:start], block[start + size :]])
        return bool((outside == np.full(outside.shape, _PATTERN, block.dtype)).all())

    def written_by(self, buffer: Buffer, call: Callable[[], None]) -> bool | None:
        """See ``Memory.written_by``. On a device nothing can be write-protected."""
        return None

    def _read(self, buffer: Buffer) -> tuple[Stored, int, int]:
        owner = buffer.owner
        assert isinstance(owner, _Block)
        data = self.driver.read(self.queue, owner.memory.pointer, owner.items * buffer.dtype.itemsize)
        return data.view(buffer.dtype.view), owner.start, buffer.rows * buffer.length


class _Block:
    """The allocation around a buffer."""

    def __init__(self, memory: Allocation, items: int, start: int) -> None:
        self.memory = memory
        self.items = items
        self.start = start
