"""The door for NumPy arrays, memory-mapped ones and ``ml_dtypes`` bfloat16 and float8 included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, numpy_dtype, refuse_dtype
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.protocol import DType

_PLAIN = (np.ndarray, np.memmap)


class NumpyDoor:
    """See ``Door``."""

    def dock(self, x: Any) -> Docked:
        """Any plain ``ndarray``; NumPy scalars for the functions that return new arrays."""
        if isinstance(x, np.generic):
            docked = self.dock(np.array(x))
            docked.read_only = "a NumPy scalar is immutable"
            return docked
        if type(x) not in _PLAIN:
            raise _refuse_subclass(x)
        dtype = x.dtype
        if not dtype.isnative:
            raise Refused(
                UnsupportedArrayError,
                f"dtype {dtype.str} is not in this machine's byte order",
                "Convert it with x.astype(x.dtype.newbyteorder('='))",
            )
        # By exact name, never by kind: NumPy gives bfloat16 the kind 'V' and float8_e5m2 'f'.
        if dtype.name not in SUPPORTED:
            raise refuse_dtype(dtype.name)
        storage, is_complex = SUPPORTED[dtype.name]
        flags = x.flags
        return Docked(
            x,
            self,
            x.__array_interface__["data"][0] if x.size else 0,
            x.shape,
            x.strides,
            storage,
            is_complex,
            read_only="" if flags.writeable else "its writeable flag is off",
            contiguous=flags.c_contiguous,
        )

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """``np.empty_like``: the order of the axes in memory is kept."""
        kind = None if dtype is None else numpy_dtype(dtype)
        return self.dock(np.empty_like(docked.array, kind, subok=False))

    def finish(self, new: Docked, like: Docked) -> Any:
        """The array itself."""
        return new.array[()] if like.read_only == "a NumPy scalar is immutable" else new.array

    def after_write(self, written: Sequence[Any]) -> None:
        """NumPy keeps no record of writes."""

    def plain(self, leaves: Sequence[Any]) -> bool:
        """Arrays, no subclass of them; what is read-only or not native is found out as they are read."""
        return type(leaves[0]) is np.ndarray

    def empty_like(self, x: Any) -> Any:
        """``np.empty_like``."""
        return np.empty_like(x)


def _refuse_subclass(x: Any) -> Refused:
    name = type(x).__name__
    if x.dtype.name == "void":
        return refuse_dtype("void")
    if isinstance(x, np.ma.MaskedArray):
        return Refused(
            UnsupportedArrayError,
            "it is a masked array, whose masked elements would be measured and scaled",
            "Pass x.filled(0), or x.data to clip what is behind the mask",
        )
    return Refused(
        UnsupportedArrayError,
        f"it is a {name}, a subclass of ndarray that may give its memory another meaning",
        "Pass np.asarray(x), which shares its memory",
    )


DOOR = NumpyDoor()
