"""Where the conformance suite puts its arrays when a GPU backend is under test: CuPy's memory, real or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import Buffer, DType
from gradclip_core.testing.memory import GUARD, Stored
from gradclip_core.testing.protect import dies_when_protected

_PATTERN = 77


class CupyMemory:
    """See ``gradclip_core.testing.Memory``. ``cupy`` is the module, or its stand-in."""

    def __init__(self, cupy: Any, device: int = 0, *, on_host: bool) -> None:
        self.cupy = cupy
        self.index = device
        self.device = f"cuda:{device}"
        self.on_host = on_host
        """Whether device memory is host memory, as in the stand-in."""

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        """See ``Memory.put``."""
        block = np.full(rows.size + 2 * GUARD + shift, _PATTERN, dtype.view)
        start = GUARD + shift
        block[start : start + rows.size] = rows.reshape(-1)
        with self.cupy.cuda.Device(self.index):
            owner = self.cupy.asarray(block)
        pointer = owner.data.ptr + start * dtype.itemsize
        return Buffer(pointer, rows.shape[1], dtype, rows.shape[0], self.device, owner, stream=1)

    def get(self, buffer: Buffer) -> Stored:
        """See ``Memory.get``."""
        block, start, size = self._block(buffer)
        return block[start : start + size].reshape(buffer.rows, buffer.length).copy()

    def guards_intact(self, buffer: Buffer) -> bool:
        """See ``Memory.guards_intact``."""
        block, start, size = self._block(buffer)
        outside = np.concatenate([block[:start], block[start + size :]])
        return bool((outside == np.full(outside.shape, _PATTERN, block.dtype)).all())

    def written_by(self, buffer: Buffer, call: Callable[[], None]) -> bool | None:
        """See ``Memory.written_by``. On a device nothing can be protected."""
        if not self.on_host:
            return None
        return dies_when_protected(buffer.pointer, buffer.rows * buffer.length * buffer.dtype.itemsize, call)

    def _block(self, buffer: Buffer) -> tuple[npt.NDArray[Any], int, int]:
        owner: Any = buffer.owner
        start = (buffer.pointer - owner.data.ptr) // buffer.dtype.itemsize
        return owner.get(), start, buffer.rows * buffer.length
