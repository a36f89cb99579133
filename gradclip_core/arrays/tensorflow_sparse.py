"""TensorFlow's ``IndexedSlices``, as lookups in an embedding make gradients: what they store is docked.

The gradient is the one in which no index occurs twice: values of one index are summed, as every optimizer does. Results
are ``IndexedSlices`` of that kind, with the same ``dense_shape``. (``tf.clip_by_global_norm`` takes the norm of the
values as they stand, which is another number where an index repeats.)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.immutable_door import ImmutableDoor
from gradclip_core.errors import UnsupportedArrayError

tensorflow: Any = sys.modules["tensorflow"]

_SUMMED = ("bfloat16", "complex128", "complex64", "float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Slices:
    """See ``Holder``. ``values`` are what is docked; those behind the indices' number are zeros."""

    original: Any
    """The user's, where it has each index once; None otherwise."""
    values: Any
    indices: Any
    """Each once, in the order of their first appearance."""
    dense_shape: Any
    shape: tuple[int, ...]
    key: tuple[object, ...] = ()
    lies: None = None
    kind: str = "sparse"
    shared: None = None

    def refusal(self) -> Refused:
        """See ``Holder.refusal``."""
        return Refused(UnsupportedArrayError, "it is a tf.IndexedSlices", "Pass it dense: tf.convert_to_tensor(x)")

    def renewed(self) -> Slices:
        """See ``Holder.renewed``. Nothing of the user's is ever written."""
        return self

    def around(self, values: Any) -> Any:
        """See ``Holder.around``."""
        if values is self.values and self.original is not None:
            return self.original
        if not tensorflow.executing_eagerly():
            values = values[: tensorflow.shape(self.indices)[0]]
        return tensorflow.IndexedSlices(values, self.indices, self.dense_shape)

    def after_write(self, values: Any) -> None:
        """See ``Holder.after_write``."""


def dock_slices(door: ImmutableDoor, x: Any) -> Docked:
    """The summed values of an ``IndexedSlices``, as ``door`` docks a tensor of them."""
    values, indices = x.values, x.indices
    if values.dtype.name not in _SUMMED:
        door.dock(values)  # refuses what is no gradient's dtype at all
        seen = f"it is a tf.IndexedSlices of {values.dtype.name}, which TensorFlow cannot add up"
        raise Refused(UnsupportedArrayError, seen, "Pass tf.cast(x.values, tf.float32), or it dense")
    if values.shape.rank is None or any(n is None for n in values.shape[1:]):
        seen = f"the shape of its values, {values.shape}, is not known yet"
        raise Refused(UnsupportedArrayError, seen, "Fix their shape first, such as by tf.ensure_shape")
    eager = tensorflow.executing_eagerly()
    unique, places = tensorflow.unique(indices)
    if eager and x.dense_shape is not None and unique.shape[0]:
        rows = int(x.dense_shape[0])
        least, most = int(tensorflow.reduce_min(unique)), int(tensorflow.reduce_max(unique))
        if least < 0 or most >= rows:
            seen = f"it has an index {least if least < 0 else most}, and its dense shape has {rows} rows"
            raise Refused(UnsupportedArrayError, seen, "Look where its indices come from")
    original = None
    if eager and unique.shape[0] == indices.shape[0]:
        summed, original = values, x
    else:
        # As many rows as there were indices: how many are left, no compiler knows, and zeros add nothing to a norm.
        rows = unique.shape[0] if eager else tensorflow.shape(indices)[0]
        summed = tensorflow.math.unsorted_segment_sum(values, places, rows)
        summed = summed if eager else tensorflow.ensure_shape(summed, [indices.shape[0], *values.shape[1:]])
    docked = door.dock(summed) if eager else _symbol(door, summed)
    docked.holder = Slices(original, summed, unique, x.dense_shape, _whole(x), (id(x),))
    docked.read_only = "a tf.IndexedSlices is immutable"
    return docked


def _symbol(door: ImmutableDoor, summed: Any) -> Docked:
    """A traced array whose number of rows need not be known: -1 stands for it."""
    rows, *rest = summed.shape
    docked = door.symbol(summed, [1 if rows is None else rows, *rest], summed.dtype.name)
    docked.shape = (-1 if rows is None else rows, *rest)
    return docked


def _whole(x: Any) -> tuple[int, ...]:
    """The dense shape, where it is known; -1 rows otherwise."""
    known = None if x.dense_shape is None else tensorflow.get_static_value(x.dense_shape)
    return (-1, *x.values.shape[1:]) if known is None else tuple(int(n) for n in known)
