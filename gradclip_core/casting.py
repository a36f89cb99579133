"""The write pass into another storage type: unscale, clip and convert at once.

``y = fit(x · factor)``, a form of ``forms.py``, computed in float64 and rounded once to the target's
type, after ± its largest finite value was put where it would overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.dtypes import SUPPORTED
from gradclip_core.arrays.layout import Flat, flatten_in, lying, overlapping_pair
from gradclip_core.errors import BackendError, InvalidArgumentError, UnsafeMemoryError, UnsupportedArrayError, show
from gradclip_core.forms import Form, Reading, passes_of
from gradclip_core.passes import Axes, report_writes
from gradclip_core.project import Move
from gradclip_core.projected import sources_of, wanted
from gradclip_core.protocol import LEAVE, ZERO, Actions, Backend, DType, FloatArray, IntArray


class Cast(Protocol):
    """Where the result goes."""

    def targets(self, arrays: Sequence[Docked]) -> list[Docked]:
        """For each array one of the same shape."""
        ...

    def dtypes(self, arrays: Sequence[Docked]) -> list[DType]:
        """Their storage types."""
        ...

    @property
    def fresh(self) -> bool:
        """Whether they are new, so that something has to be written even if the step is skipped."""
        ...


@dataclass(frozen=True, slots=True)
class NewDtype:
    """New arrays of the same frameworks, of another dtype."""

    dtype: DType
    fresh: bool = True

    def targets(self, arrays: Sequence[Docked]) -> list[Docked]:
        """See ``Cast``."""
        return [docked.door.new_like(docked, self.dtype) for docked in arrays]

    def dtypes(self, arrays: Sequence[Docked]) -> list[DType]:
        """See ``Cast``."""
        return [self.dtype] * len(arrays)


@dataclass(frozen=True, slots=True)
class Into:
    """The caller's own arrays, one for each, in the gradients' order."""

    arrays: list[Docked]
    fresh: bool = False

    def targets(self, arrays: Sequence[Docked]) -> list[Docked]:
        """See ``Cast``."""
        return self.arrays

    def dtypes(self, arrays: Sequence[Docked]) -> list[DType]:
        """See ``Cast``."""
        return [docked.dtype for docked in self.arrays]


def cast_to(out: Any, dtype: DType | None, cargo: Cargo, backend: Backend, asked: str) -> Cast | None:
    """Where the result goes, if not into arrays like the gradients; all that is wrong with it is said here."""
    if out is None and dtype is None:
        return None
    _refuse_unfit(cargo, backend, asked)
    return NewDtype(dtype) if dtype is not None else _into(out, cargo, asked)


def _into(out: Any, cargo: Cargo, asked: str) -> Into:
    """The arrays of ``out``, matched by path and shape."""
    there = unload(out, f"{asked}, out", in_place=True, clips=False)
    by_path = dict(zip(there.tree.paths, there.index, strict=True))
    found: list[Docked] = []
    for i, path in enumerate(cargo.first_paths()):
        docked = cargo.arrays[i]
        where = f"{asked}, out, array '{path}'"
        cure = "Pass a container of the same structure, with an array for each gradient"
        if path not in by_path:
            raise InvalidArgumentError(where, "there is none of that path", cure)
        target = there.arrays[by_path[path]]
        if target.shape != docked.shape:
            raise InvalidArgumentError(where, f"its shape is {target.shape}, the gradient's {docked.shape}", cure)
        if target.device != docked.device:
            raise InvalidArgumentError(where, f"it is on {target.device}, the gradient on {docked.device}", cure)
        if getattr(target.array, "requires_grad", False):
            seen = "it is a parameter, or part of a graph: its values would be overwritten with gradients"
            raise InvalidArgumentError(where, seen, "Pass arrays for the gradients, such as torch.empty_like(p)")
        if target.is_complex:
            raise UnsupportedArrayError(where, "it is complex, and the gradient is not", "Pass real numbers")
        found.append(target)
    for i, path in zip(cargo.index, cargo.tree.paths, strict=True):
        if path in by_path and there.arrays[by_path[path]] is not found[i]:
            raise InvalidArgumentError(
                f"{asked}, out, array '{path}'",
                f"it is another than '{cargo.first_path(i)}', and their gradient is one array",
                "Pass one array for both, or leave it out",
            )
    if len({id(target) for target in found}) < len(found):
        raise UnsafeMemoryError(f"{asked}, out", "one array is there for two gradients", "Pass an array for each")
    if (pair := overlapping_pair([*cargo.arrays, *found])) is not None:
        first = cargo.first_path(pair[0]) if pair[0] < len(cargo.arrays) else "of out"
        raise UnsafeMemoryError(
            f"{asked}, out",
            f"it shares memory with array '{first}'",
            "Pass other arrays, or clip in place, with clip_",
        )
    return Into(found)


def _refuse_unfit(cargo: Cargo, backend: Backend, asked: str) -> None:
    """Conversion is the host's, of real numbers, by backends that have the passes."""
    if cargo.device != "cpu":
        raise BackendError(
            asked, f"converting dtypes is done in host memory, and these are on {cargo.device}", "Clip, then convert"
        )
    if not hasattr(backend, "projections"):
        raise BackendError(asked, f"{backend.name} does not convert dtypes", "Leave backend=None")
    for i, docked in enumerate(cargo.arrays):
        if docked.is_complex:
            raise UnsupportedArrayError(
                f"{asked}, array '{cargo.first_path(i)}'", "it is complex", "Pass its real and imaginary parts"
            )


def dtype_named(asked: str, dtype: Any, allowed: Sequence[str]) -> DType:
    """A storage type from its name, or from any framework's object for it."""
    said = (dtype, getattr(dtype, "name", ""), getattr(dtype, "__name__", ""))  # "mlx.core.float16", and the like
    name = next((name for name in (str(one).rpartition(".")[2] for one in said) if name in allowed), "")
    if not name:
        raise InvalidArgumentError(f"{asked}, dtype={show(dtype)}", "it is none of them", f"Pass {', '.join(allowed)}")
    return SUPPORTED[name][0]


def cast_factor(actions: Actions, shifts: IntArray) -> FloatArray:
    """What each segment is multiplied with on the way, its array's scale 2^``shifts`` taken off."""
    factor: FloatArray = np.ldexp(np.where(actions.op == LEAVE, 1.0, actions.factor), -shifts)
    return factor


def write_cast(
    backend: Backend,
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Sequence[Flat],
    axes: Axes,
    actions: Actions,
    moves: Sequence[Move],
    shifts: IntArray,
) -> list[FloatArray]:
    """Carry out a decision into arrays of other types. Returns the moments of the moves.

    Segments hold 2^``shifts`` times the gradient, which is taken off here.
    """
    passes = passes_of(backend)
    orders = [lying(docked, reduced) for docked, reduced in zip(arrays, axes, strict=True)]
    moved = {i for move in moves for i in move.members}
    rest = [i for i in range(len(arrays)) if i not in moved]
    sinks = {i: flatten_in(targets[i], axes[i], orders[i]) for i in rest}
    ids = np.repeat(np.arange(len(flats)), [flat.buffer.rows for flat in flats])
    picked = np.flatnonzero(np.isin(ids, rest))
    tops = np.array([targets[i].dtype.largest for i in ids[picked]])
    form = Form(
        "fit",
        cast_factor(actions, shifts)[picked],
        np.maximum(actions.low[picked], -tops),
        np.minimum(actions.high[picked], tops),
    )
    reading = Reading(sanitize=actions.sanitize)
    if rest:
        passes.map([flats[i].buffer for i in rest], [sinks[i].buffer for i in rest], reading, form, [])
    for i in rest:
        rows = sinks[i].buffer.as_numpy()
        rows[actions.op[ids == i] == ZERO] = 0  # by assignment: 0 · NaN is NaN
    found = []
    for move in moves:
        sources = [flat.buffer for flat in sources_of(move, arrays, flats, axes)]
        sinks |= {i: flatten_in(targets[i], axes[i], order) for i, order in zip(move.members, move.orders, strict=True)}
        out = [sinks[i].buffer for i in move.members]
        found.append(passes.map(sources, out, move.reading, move.form, wanted(move)))
    for i, sink in sinks.items():
        sink.unpack(targets[i])
    report_writes(targets)
    return found
