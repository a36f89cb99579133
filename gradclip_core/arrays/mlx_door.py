"""The door for MLX arrays. Imported only when one arrives, and MLX with it already.

They are computed (MLX is lazy) and read where they are, by Python's buffer protocol. Inside ``mx.compile`` and
``mx.vmap`` there is nothing to read. Inside ``mx.grad`` there is, but derivatives are taken of MLX's own operations
alone: by them such arrays are clipped, too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.dtypes import SUPPORTED, numpy_dtype, refuse_dtype
from gradclip_core.arrays.immutable_door import ImmutableDoor
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.protocol import BFLOAT16, DType

mx: Any = sys.modules["mlx.core"]


class MlxDoor(ImmutableDoor):
    """See ``Door``. bfloat16, of which the buffer protocol knows nothing, is passed on as its bits: uint16."""

    name = "mlx"

    def dock(self, x: Any) -> Docked:
        """An array where it is, or one that MLX alone can work on."""
        dtype = str(x.dtype).rpartition(".")[2]
        if _inside_transform([x]):
            return self.symbol(x, x.shape, dtype)
        if dtype not in SUPPORTED:
            raise refuse_dtype(dtype)
        return self.seen(x, self.view(x), dtype)

    def traced(self, x: Any) -> bool:
        """Whether it is inside a transform."""
        return _inside_transform([x])

    def constant(self, x: Any) -> Docked:
        """A concrete array beside traced ones: a constant of their program."""
        x = x if isinstance(x, mx.array) else mx.array(x, dtype=_of_numpy(x))
        return self.symbol(x, x.shape, str(x.dtype).rpartition(".")[2])

    def refusal(self, x: Any) -> str:
        """Why the array may not be written."""
        return "an MLX array's memory may be another one's too (a reshaped one's), so nobody but MLX may write it"

    def view(self, x: Any) -> npt.NDArray[Any]:
        """The array's memory; of bfloat16, its bits."""
        return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)

    def views(self, leaves: Sequence[Any]) -> list[npt.NDArray[Any]] | None:
        """See ``DoorWithViews``."""
        if _inside_transform(leaves):
            return None
        if mx.bfloat16 not in {x.dtype for x in leaves}:
            return [np.array(x, copy=False) for x in leaves]
        ml_dtypes = sys.modules.get("ml_dtypes")
        if ml_dtypes is None:
            return None
        return [self.view(x).view(ml_dtypes.bfloat16) if x.dtype == mx.bfloat16 else self.view(x) for x in leaves]

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """NumPy's memory, in C order."""
        stored = docked.dtype if dtype is None else dtype
        if stored is not BFLOAT16 and stored.coded:
            seen = f"MLX has no {stored}"
            raise UnsupportedArrayError(f"a new MLX array of {stored}", seen, "Pass 'bfloat16' or 'float16'")
        new = np.empty(docked.shape, np.uint16 if stored is BFLOAT16 else numpy_dtype(stored, docked.is_complex))
        pointer = new.__array_interface__["data"][0] if new.size else 0
        return Docked(new, self, pointer, new.shape, new.strides, stored, docked.is_complex, contiguous=True)

    def make(self, values: Sequence[npt.NDArray[Any]], likes: Sequence[Any]) -> list[Any]:
        """See ``ImmutableDoor.make``. MLX copies."""
        return [_made(value) for value in values]


def _made(value: npt.NDArray[Any]) -> Any:
    if value.dtype == np.float64:
        return mx.array(value, dtype=mx.float64)  # or it would be float32
    if value.dtype == np.uint16 or value.dtype.name == "bfloat16":
        return mx.array(value.view(np.uint16)).view(mx.bfloat16)
    return mx.array(value)


def _of_numpy(x: Any) -> Any:
    return getattr(mx, x.dtype.name, None)


def _inside_transform(leaves: Sequence[Any]) -> bool:
    """Whether there are no values (ValueError), or MLX keeps track of how an array that has them came about.

    MLX forgets that of every other array once it is computed, and tells nobody of the difference. It shows in a
    drawing of what an array is computed from.
    """
    try:
        mx.eval(leaves)
    except ValueError:
        return True
    drawing = io.StringIO()
    mx.export_to_dot(drawing, *leaves)
    return "->" in drawing.getvalue()


DOOR = MlxDoor()
