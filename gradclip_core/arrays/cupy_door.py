"""The door for CuPy arrays. Imported only when one arrives, and CuPy with it already."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, refuse_dtype
from gradclip_core.errors import UnsafeMemoryError, UnsupportedArrayError, no_memory_for
from gradclip_core.protocol import DType

cupy: Any = sys.modules["cupy"]
_DTYPES: dict[Any, tuple[DType, bool]] = {}  # NumPy makes a dtype's name anew each time it is asked for
_KIND = "rocm" if cupy.cuda.runtime.is_hip else "cuda"


class CupyDoor:
    """See ``Door``. Work on an array is put on CuPy's current stream of its device."""

    def dock(self, x: Any) -> Docked:
        """A plain ``cupy.ndarray``, where it is."""
        if type(x) is not cupy.ndarray:
            raise Refused(
                UnsupportedArrayError,
                f"it is a {type(x).__name__}, a subclass of cupy.ndarray that may give its memory another meaning",
                "Pass cupy.asarray(x.get()), or x.view(cupy.ndarray) where the memory means what it says",
            )
        entry = _DTYPES.get(x.dtype)
        if entry is None:
            if x.dtype.name not in SUPPORTED:
                raise refuse_dtype(x.dtype.name)
            entry = _DTYPES[x.dtype] = SUPPORTED[x.dtype.name]
        storage, is_complex = entry
        device = x.device.id
        pointer = int(x.data.ptr) if x.size else 0
        if pointer == 0 and x.size:
            raise Refused(
                UnsafeMemoryError,
                f"an array of shape {x.shape} has a NULL pointer: its memory was freed, or it never had any",
                "Make it anew",
            )
        return Docked(
            x,
            self,
            pointer,
            x.shape,
            x.strides,
            storage,
            is_complex,
            device=f"{_KIND}:{device}",
            contiguous=bool(x.flags.c_contiguous),
            stream=int(cupy.cuda.get_current_stream(device).ptr) or 1,
        )

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """``cupy.empty_like``, on the same device: the order of the axes in memory is kept."""
        try:
            with cupy.cuda.Device(docked.array.device.id):
                return self.dock(cupy.empty_like(docked.array))
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise no_memory_for(docked.device, docked.shape, error) from error

    def finish(self, new: Docked, like: Docked) -> Any:
        """The array itself."""
        return new.array

    def after_write(self, written: Sequence[Any]) -> None:
        """CuPy keeps no record of writes."""


DOOR = CupyDoor()
