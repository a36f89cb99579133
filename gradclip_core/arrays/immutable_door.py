"""The door for arrays in host memory that nobody may write: JAX's, TensorFlow's, MLX's.

They are read where they are, as NumPy arrays that share their memory. Results are written into NumPy's memory,
which the framework is then given; what was left as it is, is its old array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, numpy_dtype, refuse_dtype
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.protocol import DType


class ImmutableDoor:
    """See ``Door``. A framework's own says how its arrays are looked at (``view``), and made (``make``)."""

    name = ""
    """The framework's, in sentences."""
    immutable = True
    """What is left as it is, is given back as it is."""

    def view(self, x: Any) -> npt.NDArray[Any]:
        """The array's memory as NumPy sees it, dtypes of ``ml_dtypes`` included; ``Refused`` where it has none."""
        raise NotImplementedError

    def make(self, values: Sequence[npt.NDArray[Any]], likes: Sequence[Any]) -> list[Any]:
        """Arrays of the framework with these values, which nobody else holds, each where its like is."""
        raise NotImplementedError

    def memory(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """New memory, not initialised, for values that ``make`` is given."""
        return np.empty(shape, dtype)

    def dock(self, x: Any) -> Docked:
        """See ``Door.dock``."""
        view = self.view(x)
        return self.seen(x, view, view.dtype.name)

    def seen(self, x: Any, view: npt.NDArray[Any], dtype: str) -> Docked:
        """An array through a view of its memory; ``dtype``: the name of what it holds."""
        entry = SUPPORTED.get(dtype)
        if entry is None:
            raise refuse_dtype(dtype)
        storage, is_complex = entry
        return Docked(
            x,
            self,
            view.__array_interface__["data"][0] if view.size else 0,
            view.shape,
            view.strides,
            storage,
            is_complex,
            read_only=self.refusal(x),
            owner=view,
            contiguous=bool(view.flags.c_contiguous),
        )

    def refusal(self, x: Any) -> str:
        """Why the array may not be written."""
        return f"a {self.name} array is immutable"

    def symbol(self, x: Any, shape: Sequence[Any], dtype: str, place: str = "") -> Docked:
        """An array without memory that can be read: a traced one, or one on a device of its framework's own."""
        if any(not isinstance(n, int) or n < 0 for n in shape):
            raise Refused(
                UnsupportedArrayError,
                f"its shape {tuple(shape)} is not known yet",
                "Fix its shape first, such as by reshape; or clip where the values are there",
            )
        if dtype not in SUPPORTED:
            raise refuse_dtype(dtype)
        storage, is_complex = SUPPORTED[dtype]
        device = place or f"symbolic:{self.name}"
        return Docked(
            x, self, 0, tuple(shape), (), storage, is_complex, device=device, read_only=self.refusal(x), memory=False
        )

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """NumPy's memory, in C order."""
        stored = docked.dtype if dtype is None else dtype
        new = self.memory(docked.shape, numpy_dtype(stored, docked.is_complex))
        pointer = new.__array_interface__["data"][0] if new.size else 0
        made = Docked(new, self, pointer, new.shape, new.strides, stored, docked.is_complex, contiguous=True)
        made.holder = None if docked.holder is None else docked.holder.renewed()
        return made

    def finish(self, new: Docked, like: Docked) -> Any:
        """The values as an array of the framework; what its own operations made, it is already."""
        made = self.make([new.array], [like.array])[0] if new.memory and new is not like else new.array
        return made if new.holder is None else new.holder.around(made)

    def after_write(self, written: Sequence[Any]) -> None:
        """Nothing of theirs is ever written."""
