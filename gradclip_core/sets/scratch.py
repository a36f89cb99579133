"""A set's projection of float64 arrays of the library's own: what ``Intersection`` calls again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gradclip_core.forms import Form, Reading
from gradclip_core.members import Members
from gradclip_core.protocol import FLOAT64, Buffer, FloatArray
from gradclip_core.sets.base import INSIDE, Certificate, Set, View, exponent_for


@dataclass(slots=True)
class Scratch:
    """One set over vectors that hold the elements of a scope, array after array, in the order of the scope's view.

    A set whose segments are rows of an array takes its elements in an order of its own: where that
    is another, they are copied back and forth.
    """

    onto: Set
    scope: View
    arrays: Members = field(init=False)
    source: FloatArray = field(init=False)
    """Where the point to be projected is put, in units of the gradient."""
    target: FloatArray = field(init=False)
    inputs: list[Buffer] = field(init=False)
    outputs: list[Buffer] = field(init=False)
    turns: list[tuple[int, ...]] | None = field(init=False)
    """For each array the axes of its place in the scope's vectors in the set's order; None where all are the same."""
    seen: tuple[View, Form, dict[str, FloatArray]] | None = field(init=False, default=None)
    """What came of the last projection, where the point was outside."""

    def __post_init__(self) -> None:
        ours = self.scope.arrays
        axes = self.onto.unit_axes(ours.site) or [None] * len(ours.axes)
        self.arrays = replace(ours, axes=axes)
        orders = list(zip(ours.orders, self.arrays.orders, strict=True))
        turns = [tuple(scope.index(axis) for axis in own) for scope, own in orders]
        self.turns = None if all(turn == tuple(range(len(turn))) for turn in turns) else turns
        self.source, self.target = np.zeros(self.scope.size), np.zeros(self.scope.size)
        self.inputs, self.outputs = (self._buffers(memory) for memory in (self.source, self.target))

    def _buffers(self, memory: FloatArray) -> list[Buffer]:
        buffers, start = [], 0
        for i, shape in zip(self.arrays.members, self.arrays.shapes, strict=True):
            units, size = self.arrays.axes[i], math.prod(shape)
            kept = 0 if units is None or len(units) == len(shape) else len(shape) - len(units)
            rows, length = math.prod(shape[:kept]), math.prod(shape[kept:])
            buffers.append(Buffer(memory.ctypes.data + 8 * start, length, FLOAT64, rows, owner=memory))
            start += size
        return buffers

    def project(self, point: FloatArray) -> FloatArray:
        """The nearest point of the set, in units of the scope's view."""
        exponent = self.scope.reading.exponent
        self.source[:] = self._turned(np.ldexp(point, exponent) if exponent else point, back=False)
        view = self._view()
        form = self.onto.decide(view)
        self.seen = None
        if form is None:
            return point
        names = list(self.onto.moments)
        found = view.passes.map(view.buffers, self.outputs, view.reading, form, names)
        self.seen = view, form, dict(zip(names, found, strict=True))
        after = self._turned(self.target, back=True)
        return np.ldexp(after, -exponent) if exponent else after.copy()

    def certificate(self) -> Certificate:
        """That of the last projection."""
        return self.onto.certify(*self.seen) if self.seen else INSIDE

    def _turned(self, vector: FloatArray, *, back: bool) -> FloatArray:
        """The elements in the set's order, or back in the scope's."""
        if self.turns is None:
            return vector
        parts, start = [], 0
        for shape, turn in zip(self.scope.shapes, self.turns, strict=True):
            part = vector[start : start + math.prod(shape)]
            start += part.size
            if back:
                parts.append(part.reshape([shape[axis] for axis in turn]).transpose(np.argsort(turn)).ravel())
            else:
                parts.append(part.reshape(shape).transpose(turn).ravel())
        return np.concatenate(parts)

    def _view(self) -> View:
        largest = float(np.max(np.abs(self.source), initial=0.0))
        reading = Reading(exponent=exponent_for(self.onto, largest))
        view = View(self.onto, self.scope.passes, self.inputs, reading, self.arrays, 0.0, 0.0)
        order, name = self.onto.order, self.onto.order_moment
        unit = math.ldexp(largest, -reading.exponent)
        moment = view.probe(view.form("same", e=order), name)[name]
        norm = _root(moment, order)
        return self.onto.prepared(replace(view, norm=norm, largest=unit))


def _root(moments: Sequence[float] | FloatArray, order: float) -> float:
    """The norm, of its moments."""
    if order == math.inf:
        return float(np.max(moments, initial=0.0))
    return float(math.fsum(moments) ** (1.0 / order)) if order != 2 else math.sqrt(math.fsum(moments))
