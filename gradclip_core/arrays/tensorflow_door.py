"""The door for TensorFlow's arrays. Imported only when one arrives, and TensorFlow with it already.

Eager tensors in host memory are read where they are. Inside ``tf.function``, and on other devices, TensorFlow's own
operations do the work; there derivatives flow through a clip, and in memory no ``tf.GradientTape`` sees one. No tensor
is made by DLPack: TensorFlow ends the process where its memory is not aligned. (On a GPU this was not tried.)
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.express import LARGE
from gradclip_core.arrays.immutable_door import ImmutableDoor
from gradclip_core.errors import InvalidArgumentError, UnsupportedArrayError
from gradclip_core.protocol import host_view

tensorflow: Any = sys.modules["tensorflow"]

with tensorflow.init_scope():  # eager, whatever is traced around the first array
    _EAGER: Any = type(tensorflow.zeros(()))
_look: Callable[[Any], Any] = getattr(_EAGER, "_numpy", _EAGER.__array__)
"""An eager tensor's memory, which ``numpy()`` copies; of a 0-d one a scalar. ``__array__``, the public way, takes three
times as long.
"""
_tapes: Any = sys.modules.get("tensorflow.python.pywrap_tfe")
_placed = operator.attrgetter("backing_device")
_NO_NUMBERS = ("resource", "string", "variant")


class TensorFlowDoor(ImmutableDoor):
    """See ``Door``."""

    name = "tensorflow"

    def dock(self, x: Any) -> Docked:
        """A tensor, a variable's value, or what an ``IndexedSlices`` stores, summed."""
        if isinstance(x, tensorflow.Variable):
            docked = self.dock(x.value())
            docked.read_only = (
                "it is a tf.Variable, which its own assign alone writes: "
                "for v, x in zip(variables, clipped): v.assign(x)"
            )
            return docked
        if isinstance(x, tensorflow.IndexedSlices):
            from gradclip_core.arrays.tensorflow_sparse import dock_slices

            return dock_slices(self, x)
        if not isinstance(x, tensorflow.Tensor):
            raise _refuse_composite(x)
        if x.dtype.name in _NO_NUMBERS:
            seen = f"it is a tensor of dtype {x.dtype.name}, which holds no numbers"
            raise Refused(UnsupportedArrayError, seen, "Leave it out of the gradients")
        if not isinstance(x, _EAGER):
            return self.symbol(x, (None,) if x.shape.rank is None else x.shape, x.dtype.name)
        kind, index = _device(x)
        if kind != "cpu":
            return self.symbol(x, x.shape, x.dtype.name, f"{kind}:{index}:{self.name}")
        return super().dock(x)

    def traced(self, x: Any) -> bool:
        """Whether it is a graph's own, or a variable while one is made."""
        return not isinstance(x, _EAGER) and not tensorflow.executing_eagerly()

    def constant(self, x: Any) -> Docked:
        """A concrete array beside traced ones: a constant of their program."""
        x = tensorflow.convert_to_tensor(x)
        if tensorflow.executing_eagerly():  # the others are on another device: whoever chooses a backend says so
            return self.dock(x)
        return self.symbol(x, x.shape, x.dtype.name)

    def refusal(self, x: Any) -> str:
        """See ``ImmutableDoor.refusal``."""
        return "a TensorFlow tensor is immutable"

    def refuse_recorded(self, x: Any) -> None:
        """Raise ``Refused`` for a tensor in memory that a tape watches: it would take the clip for a constant."""
        if _tape_is_empty() or not isinstance(x, _EAGER) or not tensorflow.executing_eagerly():
            return
        if _tapes.TFE_Py_TapeSetPossibleGradientTypes([x]):
            raise Refused(
                InvalidArgumentError,
                "a tf.GradientTape is recording it, and would take the clipped values for constants",
                "Clip outside the tape's block, or under tape.stop_recording(), or pass tf.stop_gradient(x); inside "
                "tf.function derivatives go through a clip",
            )

    def view(self, x: Any) -> npt.NDArray[Any]:
        """See ``ImmutableDoor.view``."""
        return np.asarray(_look(x))

    def views(self, leaves: Sequence[Any]) -> list[npt.NDArray[Any]] | None:
        """See ``DoorWithViews``."""
        if type(leaves[0]) is not _EAGER or not _tape_is_empty():
            return None
        if not all(":CPU:" in place for place in set(map(_placed, leaves))):
            return None
        try:
            return list(map(np.asarray, map(_look, leaves)))
        except tensorflow.errors.OpError:  # resources and variants
            return None

    def memory(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """See ``ImmutableDoor.memory``: that of a new tensor, which nobody but ``make`` is going to see."""
        kind = np.dtype(dtype)
        small = math.prod(shape) * kind.itemsize < LARGE
        if small or kind.itemsize == 1 or not tensorflow.executing_eagerly():  # of float8 TensorFlow makes none
            return np.empty(shape, kind)
        with tensorflow.device("CPU:0"):
            tensor = tensorflow.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
        look = _look(tensor)
        pointer = look.__array_interface__["data"][0]
        memory: npt.NDArray[Any] = host_view(pointer, (look.nbytes,), np.dtype(np.uint8), tensor).view(kind)
        return memory.reshape(shape)

    def make(self, values: Sequence[npt.NDArray[Any]], likes: Sequence[Any]) -> list[Any]:
        """See ``ImmutableDoor.make``: by the constructor, ``tf.constant`` being four times as slow.

        Memory that happens to be aligned is taken over and not copied, so nobody else may hold on to the values.
        """
        made = []
        for value, place in zip(values, map(_placed, likes), strict=True):
            tensor = _tensor_of(value)
            made.append(tensor if tensor is not None and _placed(tensor) == place else _made(value, place))
        return made

    def finish(self, new: Docked, like: Docked) -> Any:
        """See ``Door.finish``; what was worked out on a device stays there."""
        if new.memory or like.symbolic:
            return super().finish(new, like)
        with tensorflow.device(_placed(like.array)):
            new.array = tensorflow.identity(new.array)
        return super().finish(new, like)


def _tensor_of(value: npt.NDArray[Any]) -> Any:
    """The tensor whose memory this is, where it is one's."""
    tensor = getattr(getattr(value.base, "base", None), "owner", None)
    return tensor if type(tensor) is _EAGER else None


def _made(value: npt.NDArray[Any], place: str) -> Any:
    try:
        return _EAGER(value, place, None)
    except (TypeError, ValueError):  # it is no public constructor
        with tensorflow.init_scope(), tensorflow.device(place):
            return tensorflow.constant(value)


def _device(x: Any) -> tuple[str, int]:
    """Kind and number of the device that an eager tensor's memory is on."""
    kind, _, index = _placed(x).rpartition("device:")[2].partition(":")
    return kind.lower(), int(index or 0)


def _tape_is_empty() -> bool:
    """Whether no ``tf.GradientTape`` records, and no forward accumulator: for which there is no public question."""
    return _tapes is None or bool(_tapes.TFE_Py_TapeSetIsEmpty())


def _refuse_composite(x: Any) -> Refused:
    kind = type(x).__name__
    cures = {
        "SparseTensor": "Pass tf.sparse.to_dense(x), or x.values where all else is zero",
        "RaggedTensor": "Pass x.flat_values, which are dense",
    }
    cure = cures.get(kind, "Pass tensors, tf.Variable or tf.IndexedSlices")
    return Refused(UnsupportedArrayError, f"it is a tf.{kind}, and no gradient of TensorFlow's is one", cure)


DOOR = TensorFlowDoor()
