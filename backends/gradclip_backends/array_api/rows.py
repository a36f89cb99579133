"""A buffer's array as a matrix, a segment in each row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradclip_backends.array_api.frameworks import Framework
from gradclip_core.protocol import BFLOAT16, Buffer, DType


@dataclass(slots=True)
class Rows:
    """A buffer as ``(rows, length)`` stored elements: its own memory, or a copy that ``commit`` puts back."""

    framework: Framework
    buffer: Buffer
    values: Any
    home: Any = None
    """The strided array that ``values`` are a copy of; None: they are the memory itself."""
    copy: Any = None
    """The copy in the shape of ``home``."""

    @property
    def dtype(self) -> DType:
        """The storage type."""
        return self.buffer.dtype

    def commit(self) -> None:
        """Put a copy where it belongs."""
        if self.home is not None:
            self.home[...] = self.copy


def rows_of(framework: Framework, array: Any, buffer: Buffer, *, blank: bool = False) -> Rows:
    """An array in its buffer's order. ``blank``: all of it will be written, so a copy need not be filled."""
    xp, array = framework.xp, framework.plain(array)
    if buffer.order and buffer.order != tuple(range(array.ndim)):
        array = xp.permute_dims(array, buffer.order)
    shape = buffer.rows, math.prod(array.shape) // buffer.rows
    if buffer.dense:  # no framework copies what it can look at
        return Rows(framework, buffer, _real(framework, xp.reshape(array, shape), buffer))
    copy = xp.empty(array.shape, dtype=array.dtype, device=array.device)
    if not blank:
        copy[...] = array
    return Rows(framework, buffer, _real(framework, xp.reshape(copy, shape), buffer), array, copy)


def _real(framework: Framework, values: Any, buffer: Buffer) -> Any:
    """Complex elements as their parts; bfloat16, where that is no number to NumPy's functions, as its bits."""
    if values.shape[1] != buffer.length:
        values = framework.parts(values)
    if buffer.dtype is BFLOAT16 and framework.has_views:
        values = values.view(framework.xp.uint16)
    return values
