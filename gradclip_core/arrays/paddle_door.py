"""The door for Paddle's tensors. Imported only when one arrives, and Paddle with it already.

A gradient, ``p.grad``, is a leaf that wants a gradient itself (``stop_gradient`` is False), has none, and is a new
Python object each time it is asked for; its memory, and the version that autograd compares, are the tensor's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, refuse_dtype
from gradclip_core.errors import UnsafeMemoryError, UnsupportedArrayError
from gradclip_core.protocol import DType

paddle: Any = sys.modules["paddle"]

# By object: NumPy's uint16 becomes bfloat16 in Paddle, and there is a uint16 beside it.
_DTYPES: dict[Any, tuple[DType, bool]] = {
    getattr(paddle, name): entry for name, entry in SUPPORTED.items() if hasattr(paddle, name)
}


class PaddleDoor:
    """See ``Door``."""

    plain_first = True
    """Of arrays that are not plain, Paddle's own reader may die: of SelectedRows it does."""

    def dock(self, x: Any) -> Docked:
        """A dense tensor in host memory, or the rows that a sparse gradient stores."""
        if not isinstance(x, paddle.Tensor):
            raise Refused(
                UnsupportedArrayError,
                f"it is a {type(x).__name__} of a static graph, which has a shape and no values",
                "Clip outside paddle.jit.to_static, on the gradients that backward leaves; or pass "
                "grad_clip=paddle.nn.ClipGradByGlobalNorm(max_norm) to the optimizer, which is in the graph",
            )
        if x.is_dist():
            raise Refused(
                UnsupportedArrayError,
                "it is a distributed tensor, of which other processes may hold parts",
                "Pass paddle.distributed.unshard_dtensor(x), or give ClipGradByGlobalNorm to the optimizer",
            )
        entry = _DTYPES.get(x.dtype)
        if entry is None:
            raise refuse_dtype(x.dtype.name.lower())  # its str() calls uint16 bfloat16
        if x.is_selected_rows():
            from gradclip_core.arrays.paddle_rows import dock_rows

            return dock_rows(self, x)
        if not x.is_dense() and not (x.is_sparse_coo() or x.is_sparse_csr()):
            _pointer(x, (1,))  # says that it was cleared
        if not x.is_dense():
            layout = "sparse_csr" if x.is_sparse_csr() else "sparse_coo"
            raise Refused(
                UnsupportedArrayError,
                f"its layout is {layout}, and of Paddle's sparse gradients those of Embedding(sparse=True) are served",
                "Pass x.coalesce().values() or x.to_dense(), and put a tensor of what comes of it in its place",
            )
        storage, is_complex = entry
        itemsize, shape = x.element_size(), tuple(x.shape)
        return Docked(
            x,
            self,
            _pointer(x, shape),
            shape,
            tuple(stride * itemsize for stride in x.strides),
            storage,
            is_complex,
            contiguous=x.is_contiguous(),
        )

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """A tensor with its axes in the same order in memory; autograd does not know it."""
        x = docked.array
        made = self.dock(_empty(x, x.dtype if dtype is None else getattr(paddle, dtype.name)))
        if docked.holder is not None:
            made.holder = docked.holder.renewed()
        return made

    def finish(self, new: Docked, like: Docked) -> Any:
        """The tensor itself, or the one that it is a part of."""
        return new.array if new.holder is None else new.holder.around(new.array)

    def after_write(self, written: Sequence[Any]) -> None:
        """Bump the versions, so that a backward that had saved a tensor says so."""
        for x in written:
            x._bump_inplace_version()

    def plain(self, leaves: Sequence[Any]) -> bool:
        """Dense tensors, no parameters and no part of a graph. Asked first: Paddle's reader dies of others."""
        if type(leaves[0]) is not paddle.Tensor or not all(map(paddle.Tensor.is_dense, leaves)):
            return False
        if any(map(paddle.Tensor.is_dist, leaves)):
            return False
        return all(x.stop_gradient or (x.grad is None and x.is_leaf) for x in leaves)

    def empty_like(self, x: Any) -> Any:
        """An empty tensor, by the shortest way that Paddle has: its own ``empty_like`` takes four times as long."""
        return paddle._C_ops.empty_like(x, x.dtype, _CPU) if x.is_contiguous() else _empty(x, x.dtype)


_CPU = paddle.CPUPlace()


def _empty(x: Any, dtype: Any) -> Any:
    if x.is_contiguous():
        return paddle.empty_like(x, dtype=dtype)
    # From the axis with the largest stride to the one with the smallest; and back.
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    made = paddle.empty([x.shape[axis] for axis in order], dtype=dtype)
    return made.transpose(sorted(range(x.ndim), key=order.__getitem__))


def _pointer(x: Any, shape: tuple[int, ...]) -> int:
    pointer = x.data_ptr() or 0  # None where there never was any
    if pointer == 0:
        if math.prod(shape):
            raise Refused(
                UnsafeMemoryError,
                "it has no memory: it was cleared, or never filled",
                "Leave it out, or give it its values first",
            )
        return 0
    if not x.place.is_cpu_place():
        raise Refused(
            UnsupportedArrayError,
            f"it is on {x.place}, and Paddle's tensors are served in host memory",
            "Pass x.cpu() and copy what comes of it back, or give ClipGradByGlobalNorm to the optimizer",
        )
    return int(pointer)


DOOR = PaddleDoor()
