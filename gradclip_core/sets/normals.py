"""Vectors beside the gradients: normals of half-spaces, reference gradients, and dots with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import extent, size
from gradclip_core.errors import ContainerError, InvalidArgumentError
from gradclip_core.forms import Form, Passes, Reading
from gradclip_core.protocol import FLOAT64, Buffer, FloatArray, segments
from gradclip_core.reference import tree_sum, widen
from gradclip_core.sets.base import View
from gradclip_core.tree import flatten

# Squares between these are far from overflow, and what underflows beside them does not count.
_LEAST, _MOST = 2.0**-600, 2.0**600


@dataclass(frozen=True, slots=True)
class Normal:
    """A vector of the gradients' structure, in units of its own: ``a = w · 2^exponent``."""

    companions: list[Buffer]
    exponent: int
    square: float
    """Σ w², within 2^±600; 0 where the vector is 0."""

    @property
    def length(self) -> float:
        """``‖w‖``."""
        return math.sqrt(self.square)

    def scaled(self, bound: float, view: View) -> float:
        """The b of ``<a, y> <= b`` in the units of ``<w, u>``; infinite beyond float64's range."""
        try:
            return math.ldexp(bound, -view.reading.exponent - self.exponent)
        except OverflowError:
            return math.copysign(math.inf, bound)


@dataclass(frozen=True, slots=True)
class Dots:
    """``Σ w·y``, and ``Σ |w·y|``, by which its error and that of rounding y is measured."""

    value: float
    magnitude: float


def dot_error(view: View) -> float:
    """What two dots over a scope can be off together, relative to the sum of magnitudes."""
    longest = max((buffer.length for buffer in view.buffers), default=0)
    return 2.0 * (1 + _additions(longest) + _additions(view.segments)) * 2.0**-53


def _additions(count: int) -> int:
    """How often ``tree_sum`` rounds on the way from an element to the sum."""
    found = 0
    while count > 1:
        found += min(15, (count - 1) // 256) + min(8, (count - 1).bit_length())
        count = -(-count // 4096)
    return found


def look(view: View, container: Any, asked: str) -> tuple[Normal, Dots]:
    """The vector beside a scope, and its dots with u: one pass over both.

    Refuses infinities and NaNs. float64 vectors whose squares leave float64's range are copied,
    scaled by a power of two.
    """
    companions = apart(view.arrays.arrays, view.beside(container, asked))
    normal, seen = _look(view, companions, 0)
    if not _LEAST <= normal.square <= _MOST:
        exponent = _exponent(view, companions, asked)
        if exponent is None:
            return Normal(companions, 0, 0.0), Dots(0.0, 0.0)
        normal, seen = _look(view, [_scaled(buffer, exponent) for buffer in companions], exponent)
    return normal, seen


def _look(view: View, companions: list[Buffer], exponent: int) -> tuple[Normal, Dots]:
    seen = view.probe(view.form("same", companions=companions), "wy", "abs_wy", "w2")
    return Normal(companions, exponent, tree_sum(seen["w2"])), Dots(tree_sum(seen["wy"]), tree_sum(seen["abs_wy"]))


def _exponent(view: View, companions: Sequence[Buffer], asked: str) -> int | None:
    """That of the largest element; None where all are 0."""
    form = Form.of("same", segments(companions))
    largest = view.passes.map(companions, None, Reading(), form, ["max_y"], rounded=False)[0]
    if not np.isfinite(largest).all():
        path = view.arrays.paths[int(np.flatnonzero(~np.isfinite(largest))[0])]
        raise InvalidArgumentError(
            f"{asked}, array '{path}'", "it holds infinities or NaNs, so it has no direction", "Pass finite arrays"
        )
    top = float(np.max(largest, initial=0.0))
    return math.frexp(top)[1] if top else None


def _scaled(buffer: Buffer, exponent: int) -> Buffer:
    return owned(np.ldexp(widened(buffer), -exponent))


def widened(buffer: Buffer) -> FloatArray:
    """The elements of a buffer as float64, (rows, length)."""
    return widen(buffer.as_numpy(), buffer.dtype).astype(np.float64)


def owned(values: FloatArray) -> Buffer:
    """A buffer over float64 numbers of our own, (rows, length)."""
    values = np.ascontiguousarray(values)
    rows, length = values.shape
    return Buffer(values.ctypes.data, length, FLOAT64, rows, "cpu", values)


def dots(passes: Passes, values: Sequence[Buffer], companions: Sequence[Buffer]) -> Dots:
    """The dot of two vectors that are in memory, in ``tree_sum``'s order."""
    form = Form.of("same", segments(values), companions=companions)
    found = passes.map(values, None, Reading(), form, ["wy", "abs_wy"], rounded=False)
    return Dots(tree_sum(found[0]), tree_sum(found[1]))


def refuse_beyond(view: View, largest: FloatArray, asked: str) -> None:
    """Raise where the nearest point has elements that its storage type cannot hold. ``largest``: of each segment."""
    dtypes = [buffer.dtype for buffer in view.buffers for _ in range(buffer.rows)]
    for segment, (dtype, value) in enumerate(zip(dtypes, largest.tolist(), strict=True)):
        # What rounds to the largest value is no infinity.
        if view.original(value) > dtype.largest * (1 + dtype.roundoff / 2):
            path = view.arrays.paths[segment]
            seen = f"the nearest point has an element that {dtype}, the gradient's type, cannot hold"
            raise InvalidArgumentError(
                f"{asked}, gradient '{path}'", seen, "Pass gradients of a wider type, or a set that is nearer"
            )


def outline(container: Any) -> str:
    """What a container holds, for a repr: the shapes of its arrays, and no value."""
    try:
        leaves, tree = flatten(container)
    except ContainerError:
        return f"<{type(container).__name__}>"
    shapes = [str(tuple(getattr(leaf, "shape", ()))) for leaf in leaves]
    if tree.root is not None and not tree.root.names and len(shapes) == 1:
        return f"<array of shape {shapes[0]}>"
    parts = [f"{path}: {shape}" for path, shape in zip(tree.paths, shapes, strict=True)]
    return f"<{', '.join(parts[:4])}{f', and {len(parts) - 4} more' if len(parts) > 4 else ''}>"


def apart(arrays: Sequence[Docked], companions: Sequence[Buffer]) -> list[Buffer]:
    """The companions, those copied that share memory with a gradient: it may be written before they are read."""
    spans = [extent(docked) for docked in arrays if docked.device == "cpu" and size(docked.shape)]
    lows, highs = (np.array(ends, np.uint64) for ends in zip(*spans, strict=True)) if spans else (np.zeros(0),) * 2
    return [_apart(buffer, lows, highs) for buffer in companions]


def _apart(buffer: Buffer, lows: npt.NDArray[Any], highs: npt.NDArray[Any]) -> Buffer:
    start = buffer.pointer
    stop = start + buffer.rows * buffer.length * buffer.dtype.itemsize
    if start == stop or not ((lows < stop) & (highs > start)).any():
        return buffer
    copy = buffer.as_numpy().copy()
    return Buffer(copy.ctypes.data, buffer.length, buffer.dtype, buffer.rows, "cpu", copy)
