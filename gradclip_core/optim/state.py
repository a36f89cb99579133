"""An optimizer's state: where it is kept, what is shown of it, what resumes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.layout import size
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.optim.parameters import Parameters
from gradclip_core.protocol import Buffer
from gradclip_core.updates import compute_type

Array = npt.NDArray[Any]

# Of elements, so that no two arrays share a cache line, on which two threads would wait for each other.
_APART = 16
_CURE = "Pass what state_dict() of an optimizer that was made alike returned"


class State:
    """For each parameter and each name of the update's state an array of zeros, and how many steps it has made.

    All of a name and a type lie in one stretch of memory: few pages, which NumPy asks to be large ones.
    """

    def __init__(self, names: Sequence[str], parameters: Parameters) -> None:
        self.names = names
        self.parameters = parameters
        self.counts = np.zeros(len(parameters.arrays), np.int64)
        self.flat: dict[str, list[Array]] = {name: self._zeros() for name in names}

    def _zeros(self) -> list[Array]:
        """A flat array for each parameter, as long and as precise as it has to be."""
        arrays = self.parameters.arrays
        made: list[Any] = [None] * len(arrays)
        for dtype in {compute_type(docked.dtype).name: compute_type(docked.dtype) for docked in arrays}.values():
            members = [i for i, docked in enumerate(arrays) if compute_type(docked.dtype) is dtype]
            sizes = [size(arrays[i].shape) for i in members]
            starts = np.cumsum([0, *(-(-count // _APART) * _APART for count in sizes)]).tolist()
            whole = np.zeros(starts[-1], dtype.view)
            for i, count, start in zip(members, sizes, starts, strict=False):
                made[i] = whole[start : start + count]
        return made

    def buffers(self) -> list[list[Buffer]]:
        """Of each name a buffer for each parameter."""
        types = [compute_type(docked.dtype) for docked in self.parameters.arrays]
        return [
            [Buffer(x.ctypes.data, x.size, dtype, owner=x) for x, dtype in zip(self.flat[name], types, strict=True)]
            for name in self.names
        ]

    def shaped(self, name: str, array: int) -> Array:
        """A view of one parameter's, of its shape."""
        shape, order = self.parameters.arrays[array].shape, self.parameters.orders[array]
        lying = self.flat[name][array].reshape([shape[axis] for axis in order])
        return lying.transpose(np.argsort(order)) if order else lying

    def by_path(self, *, copies: bool) -> dict[str, dict[str, Any]]:
        """Path -> ``"step"`` and an array for each name: copies, or views that may not be written."""
        found: dict[str, dict[str, Any]] = {}
        for i, path in enumerate(self.parameters.paths):
            found[path] = {"step": int(self.counts[i])}
            for name in self.names:
                view = self.shaped(name, i)
                found[path][name] = view.copy(order="C") if copies else _read_only(view)
        return found

    def load(self, saved: Mapping[str, Any], asked: str) -> None:
        """From ``by_path``. Nothing changes at an error."""
        paths = self.parameters.paths
        refuse_other("parameters", saved, paths, asked)
        arrays: list[tuple[Array, Array]] = []
        counts = []
        for i, path in enumerate(paths):
            entry = saved[path]
            where = f"{asked}, '{path}'"
            refuse_other("entries", entry, ["step", *self.names], where)
            count = entry["step"]
            if isinstance(count, bool) or int(count) != count or count < 0:
                raise InvalidArgumentError(f"{where}, step={show(count)}", "it counts no steps", _CURE)
            counts.append(int(count))
            for name in self.names:
                there, here = np.asarray(entry[name]), self.shaped(name, i)
                # float32 into float64 is exact: the parameters have been widened since.
                widened = there.dtype == np.float32 and here.dtype == np.float64
                if there.shape != here.shape or not (there.dtype == here.dtype or widened):
                    seen = f"it is {there.dtype} of shape {there.shape}, and here {here.dtype} of {here.shape}"
                    rounds = there.shape == here.shape and there.dtype == np.float64 and here.dtype == np.float32
                    cure = "Convert it, x.astype(np.float32), if it may be rounded" if rounds else _CURE
                    raise InvalidArgumentError(f"{where}, '{name}'", seen, cure)
                arrays.append((here, there))
        for here, there in arrays:
            here[...] = there
        self.counts[:] = counts


def _read_only(view: Array) -> Array:
    view = view.view()
    view.flags.writeable = False
    return view


def refuse_other(what: str, saved: Any, expected: Sequence[str], asked: str) -> None:
    """Raise unless ``saved`` is a mapping with these keys."""
    if not isinstance(saved, Mapping):
        raise InvalidArgumentError(f"{asked}={show(saved)}", "it is no mapping", _CURE)
    if set(saved) != set(expected):
        missing, unknown = sorted(set(expected) - set(saved)), sorted(map(str, set(saved) - set(expected)))
        seen = f"its {what} are others: missing {show(missing)}, unknown {show(unknown)}"
        raise InvalidArgumentError(asked, seen, _CURE)
