"""What a set is: its decision for one scope, and the certificate of what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from gradclip_core.forms import Form, Passes, Reading
from gradclip_core.norms import LEAST, MOST
from gradclip_core.protocol import FLOAT64, Buffer, DType, FloatArray
from gradclip_core.reference_forms import load

if TYPE_CHECKING:
    from gradclip_core.members import Members
    from gradclip_core.rules import Rule, Site

_FAR = 300
"""A difference of exponents: sums of squares of both ends fit float64, and a direction in it is one to the last bit."""

Moments = Mapping[str, FloatArray]
"""Name of a moment -> its value for each segment."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Evidence that y is the projection of g, computed from the y that was written.

    A y in the set C is the projection exactly if ``<g - y, z - y> <= 0`` for all z in C (the
    variational inequality; Hiriart-Urruty and Lemaréchal, *Fundamentals of Convex Analysis*,
    theorem A.3.1.1). Both residuals are relative, and some units of roundoff where all is well.
    """

    feasibility: float
    """How far y is outside: ``gauge(y)/radius - 1``, or its like; 0 inside."""
    optimality: float
    """``sup_z <g - y, z - y>`` over ``sup_z <g - y, z>``; 0 where nothing was moved."""
    moved: float | None
    """``‖g - y‖``, the 2-norm of what was taken away; None where elements were clamped, which does not measure it."""

    @classmethod
    def of(cls, excess: float, support: float, product: float, moved: float) -> Certificate:
        """From ``support = sup_z <g - y, z>`` and ``product = <g - y, y>``."""
        size = max(abs(support), abs(product))
        gap = max(0.0, support - product)
        return cls(max(0.0, excess), gap / size if size else 0.0, moved)

    def joined(self, other: Certificate) -> Certificate:
        """That of two scopes: the larger residuals."""
        return Certificate(
            max(self.feasibility, other.feasibility),
            max(self.optimality, other.optimality),
            None if self.moved is None or other.moved is None else math.hypot(self.moved, other.moved),
        )


INSIDE = Certificate(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class View:
    """One scope, as a set sees it: the unscaled gradient u, in units of 2^``reading.exponent``.

    ``norm`` is that of the set's ``order``, as it was measured.
    """

    onto: Set
    passes: Passes
    buffers: Sequence[Buffer]
    reading: Reading
    arrays: Members
    norm: float
    largest: float
    afar: int = 0
    """u is a 2^-afar of the gradient, see ``near``."""
    known: object = None
    """What ``Set.prepared`` has found out, for ``Set.decide``."""

    @property
    def size(self) -> int:
        """Elements."""
        return sum(buffer.rows * buffer.length for buffer in self.buffers)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array, its axes in the order in which its elements lie in the buffer."""
        return self.arrays.shapes

    def beside(self, container: Any, asked: str) -> list[Buffer]:
        """For each buffer the array of the same path and shape in another container, its elements in the same order."""
        return self.arrays.beside(container, asked)

    def values(self, array: int) -> FloatArray:
        """The u of one array, (rows, length), as a float64 copy: for sets whose decision needs all of it at once."""
        buffer = self.buffers[array]
        found = [load(row, buffer.dtype, self.reading) for row in buffer.as_numpy()]
        return np.array(found).reshape(buffer.rows, buffer.length)

    @property
    def segments(self) -> int:
        """Segments."""
        return sum(buffer.rows for buffer in self.buffers)

    @property
    def dtypes(self) -> set[DType]:
        """Storage types of arrays that have elements."""
        return {buffer.dtype for buffer in self.buffers if buffer.rows * buffer.length}

    @property
    def narrow(self) -> bool:
        """Whether anything but float64 takes part."""
        return bool(self.dtypes - {FLOAT64})

    def scaled(self, length: float) -> float:
        """A length of the gradient's, such as a radius, in the units of u; infinite beyond float64's range."""
        try:
            return math.ldexp(length, -self.reading.exponent)
        except OverflowError:
            return math.copysign(math.inf, length)

    def exactly(self, length: float) -> Fraction:
        """``scaled``, without rounding."""
        return Fraction(length) / Fraction(2) ** self.reading.exponent

    def original(self, length: float) -> float:
        """A length in the units of u, in those of the gradient."""
        try:
            return math.ldexp(length, self.reading.exponent)
        except OverflowError:
            return math.inf

    def taken(self, length: float) -> float:
        """A length of what was taken away, in the units of the gradient."""
        try:
            return math.ldexp(length, self.reading.exponent + self.afar)
        except OverflowError:
            return math.inf

    def aim(self, radius: float, roundings: int | None = None) -> Fraction:
        """A little less than ``radius``, so that rounding every element to nearest cannot lead out of a ball
        whose gauge is a sum of magnitudes: half an ulp of float32 (of float64, and as much for the arithmetic
        before), and half the smallest subnormal for each element, or for as many ``roundings`` as the gauge feels.
        """
        count = self.size if roundings is None else roundings
        shave = Fraction(1, 1 << 24) + Fraction(1, 1 << 40) if self.narrow else Fraction(1, 1 << 51)
        subnormal = Fraction(1, 1 << 150) if self.narrow else Fraction(1, 1 << 1075)
        return self.exactly(radius) * (1 - shave) - count * subnormal / Fraction(2) ** self.reading.exponent

    def in_units(self, exponent: int) -> View:
        """The same scope in units of 2^exponent."""
        shift = self.reading.exponent - exponent
        norm, largest = (math.ldexp(value, shift) for value in (self.norm, self.largest))
        return replace(self, reading=replace(self.reading, exponent=exponent), norm=norm, largest=largest)

    def near(self, reach: int) -> View:
        """The scope in units that hold the squares of u and of results of up to 2^reach, however far apart they are.

        For sets of which a point that is 2^300 times as long as any of the set lands where the same point lands that
        is a power of two nearer: from so far away the direction alone counts. (The unscaling factor holds that power;
        at loss scales beyond 2^700 it may not hold all of it.)
        """
        if not self.largest:
            return self
        far = math.frexp(self.largest)[1] + self.reading.exponent
        shift = min(far - reach - _FAR, math.frexp(self.reading.inverse)[1] + 1020)
        if shift <= 0 and abs(far) <= _FAR // 3:
            return self
        view = self if shift <= 0 else self._nearer(shift)
        far -= max(shift, 0)
        return view.in_units(far - max(0, min(far - reach, _FAR)) // 2)

    def _nearer(self, shift: int) -> View:
        reading = replace(self.reading, inverse=math.ldexp(self.reading.inverse, -shift))
        norm, largest = (math.ldexp(value, -shift) for value in (self.norm, self.largest))
        return replace(self, reading=reading, norm=norm, largest=largest, afar=self.afar + shift)

    def probe(self, form: Form, *moments: str) -> dict[str, FloatArray]:
        """One read pass: moments of the form, not rounded to the storage type."""
        found = self.passes.map(self.buffers, None, self.reading, form, moments, rounded=False)
        return dict(zip(moments, found, strict=True))

    def form(self, kind: str, *numbers: float | FloatArray, **more: object) -> Form:
        """A form over all segments of the scope."""
        return Form.of(kind, self.segments, *numbers, **more)  # type: ignore[arg-type]  # checked by Form.of


def exponent_for(onto: Set, largest: float) -> int:
    """The units of u, 2^exponent, for elements of this magnitude: no power of them leaves float64's range."""
    exponent, top = 0, max(largest, onto.extent)
    if top and (onto.normalised or not LEAST <= top <= MOST):
        exponent = math.frexp(top)[1]
    if math.isfinite(onto.finest):
        # At a radius of 2^-900 its parts keep their bits, and at elements of 2^400 their squares are finite.
        least, most = math.frexp(onto.finest)[1] + 900, math.frexp(top)[1] - 400
        exponent = min(exponent, max(least, most))
    return exponent


class Set:
    """Base of all sets. They are frozen values, checked when they are made."""

    __slots__ = ()

    order: float = 2.0
    """The ``ord`` of the norms that ``info`` reports."""
    normalised: bool = False
    """Whether u is always brought to at most 1, for sets whose powers overflow early."""
    moments: tuple[str, ...] = ()
    """What the write pass has to bring back for the certificate."""
    alone: bool = False
    """Whether the set is one of arrays on their own, so that each is a scope, whatever scope is asked for."""

    @property
    def order_moment(self) -> str:
        """The moment that the norm of that ``order`` is made of."""
        return {1.0: "abs", 2.0: "y2", math.inf: "max_y"}.get(self.order, "pow_y")

    @property
    def extent(self) -> float:
        """How large an element of the result can become beside those of the gradient, for the choice of units."""
        return 0.0

    @property
    def finest(self) -> float:
        """A length of the set's that must not vanish in the units of u, however large the gradient is."""
        return math.inf

    def as_rule(self, scope: str, groups: object) -> Rule | None:
        """The rule that is the projection on this set, where there is one already."""
        return None

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Rule.unit_axes``."""
        return None

    def prepared(self, view: View) -> View:
        """The view in other units, where only the set can tell which ones hold the result."""
        return view

    def decide(self, view: View) -> Form | None:
        """What becomes of each element; None where the scope is in the set."""
        raise NotImplementedError

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """The certificate, from the moments of what was written."""
        raise NotImplementedError

    def refuse(self, shape: tuple[int, ...], path: str) -> str:
        """Why an array of this shape has no projection on the set; empty where it has."""
        return ""
