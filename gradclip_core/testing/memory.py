"""Where the suite puts its test arrays: on the host, or wherever a stranger's backend reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import Buffer, DType

Stored = npt.NDArray[Any]
"""Elements as they are stored: ``dtype.view`` elements, bfloat16 as uint16, float8 as uint8."""

GUARD = 64
"""Elements of a known pattern on both sides of every test array."""


class Memory(Protocol):
    """A device's memory. A backend for another device brings its own."""

    device: str

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        """A new buffer with these ``(rows, length)`` elements between two guards.

        ``shift`` elements past the best alignment: arrays begin anywhere.
        """
        ...

    def get(self, buffer: Buffer) -> Stored:
        """A copy of a buffer's elements."""
        ...

    def guards_intact(self, buffer: Buffer) -> bool:
        """Whether the elements beside the buffer are as ``put`` left them."""
        ...

    def written_by(self, buffer: Buffer, call: Callable[[], None]) -> bool | None:
        """Whether ``call`` writes to the buffer, the same bytes even. None: cannot be told here."""
        ...


class HostMemory:
    """The host's memory, by NumPy."""

    device = "cpu"

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        """See ``Memory.put``."""
        block = np.full(rows.size + 2 * GUARD + shift, _pattern(dtype), dtype.view)
        inner = block[GUARD + shift : GUARD + shift + rows.size]
        inner[:] = rows.reshape(-1)
        return Buffer(inner.ctypes.data, rows.shape[1], dtype, rows.shape[0], self.device, block)

    def get(self, buffer: Buffer) -> Stored:
        """See ``Memory.get``."""
        return buffer.as_numpy().copy()

    def guards_intact(self, buffer: Buffer) -> bool:
        """See ``Memory.guards_intact``."""
        block = buffer.owner
        assert isinstance(block, np.ndarray)
        size = buffer.rows * buffer.length
        before = (buffer.pointer - block.ctypes.data) // block.itemsize
        outside = np.concatenate([block[:before], block[before + size :]])
        expected = np.full(outside.shape, _pattern(buffer.dtype), block.dtype)
        return bool((outside.view(np.uint8) == expected.view(np.uint8)).all())

    def written_by(self, buffer: Buffer, call: Callable[[], None]) -> bool | None:
        """By a child process whose memory is write-protected: a write kills it."""
        from gradclip_core.testing.protect import dies_when_protected

        return dies_when_protected(buffer.pointer, buffer.rows * buffer.length * buffer.dtype.itemsize, call)


def _pattern(dtype: DType) -> Any:
    return np.array(77, dtype.view)
