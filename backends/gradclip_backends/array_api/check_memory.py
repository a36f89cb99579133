"""A device's memory for the conformance suite, by PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import BFLOAT16, Buffer, DType

Stored = npt.NDArray[Any]
_GUARD, _PATTERN = 64, 77


@dataclass
class _Owner:
    """An array between two guards, as the core's owners have one."""

    array: Any
    block: Any


class TorchMemory:
    """See ``gradclip_core.testing.Memory``."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.torch: Any = importlib.import_module("torch")

    def put(self, rows: Stored, dtype: DType, *, shift: int = 0) -> Buffer:
        """See ``Memory.put``."""
        start = _GUARD + shift
        host = np.full(rows.size + start + _GUARD, _PATTERN, dtype.view)
        host[start : start + rows.size] = rows.reshape(-1)
        block = self.torch.from_numpy(host.view(np.uint8)).to(self.device).view(getattr(self.torch, dtype.name))
        array = block[start : start + rows.size]
        pointer = block.data_ptr() + start * dtype.itemsize
        return Buffer(pointer, rows.shape[1], dtype, rows.shape[0], self.device, _Owner(array, block), order=(0,))

    def get(self, buffer: Buffer) -> Stored:
        """See ``Memory.get``."""
        assert isinstance(buffer.owner, _Owner)
        return _fetched(buffer.owner.array, buffer.dtype).reshape(buffer.rows, buffer.length)

    def guards_intact(self, buffer: Buffer) -> bool:
        """See ``Memory.guards_intact``."""
        assert isinstance(buffer.owner, _Owner)
        block, size = _fetched(buffer.owner.block, buffer.dtype), buffer.rows * buffer.length
        start = block.size - size - _GUARD
        outside = np.concatenate([block[:start], block[start + size :]])
        return bool((outside == np.full(outside.shape, _PATTERN, block.dtype)).all())

    def written_by(self, buffer: Buffer, call: Callable[[], None]) -> bool | None:
        """See ``Memory.written_by``. PyTorch counts the writes through its own operations, but to views of its own."""
        return None


def _fetched(tensor: Any, dtype: DType) -> Stored:
    host = tensor.cpu()
    if dtype is BFLOAT16:
        host = host.view(importlib.import_module("torch").int16)
    found: Stored = host.numpy().view(dtype.view).copy()
    return found
