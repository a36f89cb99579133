"""What a backend does for projections besides: four passes that a set's decision is made of.

A *form* says what becomes of one element, ``y = form(u)``, where ``u = x · inverse`` in float64 is
the unscaled gradient. A backend runs it over flat memory, in one pass, and brings back *moments*
of what it made: sums in ``tree_sum``'s order, and extremes. Which form, with which parameters, is
decided in ``gradclip_core.sets``; a backend never decides anything.

``FORMS`` and ``MOMENTS`` are the specification; ``reference_forms.py`` is the same in NumPy.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import Buffer, FloatArray, IntArray

FORMS = {
    "same": "y = u",
    "soft": "y = ± max((|u| - a) - b, 0) · c, minus where u < 0",
    "shift": "y = max((u - a) - b, 0)",
    "scale": "y = u · a",
    "clamp": "y = min(max(u, -a), a)",
    "fit": "y = min(max(u · a, b), c), NaN staying NaN",
    "secular": "y = u / (1 + a·w)",
    "power": "y = ± z, where z >= 0 solves z + a·z^(b-1) = |u|, minus where u < 0",
    "along": "y = u - a·w",
    "given": "y is an array of values, whatever u is",
}
"""Name -> formula. ``a``, ``b``, ``c`` are numbers of the segment, ``w`` is the companion's element."""

MOMENTS = {
    "y2": "Σ y²",
    "dy": "Σ (u - y)·y",
    "d2": "Σ (u - y)²",
    "abs": "Σ |y|",
    "sum": "Σ y",
    "count": "how many y are not 0",
    "max_y": "max |y|",
    "low_y": "min y",
    "max_d": "max |u - y|",
    "top_d": "max (u - y)",
    "max_e": "max |u - e·y|",
    "wy": "Σ w·y",
    "w2": "Σ w²",
    "wy2": "Σ w·y²",
    "slope": "Σ (w·y)²/(1 + a·w)",
    "d2_w": "Σ (u - y)²/w",
    "pow_y": "Σ |y|^e",
    "pow_d": "Σ |u - y|^(e/(e-1))",
    "steep": "Σ |y|^(2b-2) / (1 + a·(b-1)·|y|^(b-2)) over the y that are not 0",
    "abs_wy": "Σ |w·y|",
    "rest2": "Σ ((u - y) - a·w)²",
    "abs_d": "Σ |u - y|",
}
"""Name -> formula. ``e`` is the form's number of that name. No element: 0, and ±inf for ``low`` and ``top``."""

EXTREMES = {"max_y": 0.0, "max_d": 0.0, "max_e": 0.0, "top_d": -np.inf, "low_y": np.inf}
"""The moments that are no sums, and what they are of no element."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How stored elements become the numbers that a set is about: ``u = x · inverse · 2^-exponent``.

    ``exponent`` keeps squares inside float64's range; what is written is ``y · 2^exponent``.
    ``sanitize``: NaN as 0 and ±inf as ± the largest finite value, before anything else.
    """

    inverse: float = 1.0
    exponent: int = 0
    sanitize: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """One pass: ``kind`` is a name of ``FORMS``; the numbers hold an entry for each segment."""

    kind: str
    a: FloatArray
    b: FloatArray
    c: FloatArray
    e: float = 1.0
    companions: Sequence[Buffer] = ()
    """For each buffer one of the same segments, for the forms and moments with ``w``."""
    values: Sequence[FloatArray] = field(default=())
    """For ``given``: for each buffer its values, (rows, length), already in units of 2^exponent."""

    @classmethod
    def of(
        cls,
        kind: str,
        segments: int,
        a: float | FloatArray = 0.0,
        b: float | FloatArray = 0.0,
        c: float | FloatArray = 1.0,
        *,
        e: float = 1.0,
        companions: Sequence[Buffer] = (),
        values: Sequence[FloatArray] = (),
    ) -> Form:
        """A form whose numbers may be the same for all segments."""
        spread = (np.full(segments, v, np.float64) for v in (a, b, c))
        return cls(kind, next(spread), next(spread), next(spread), e, companions, values)


BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Tally:
    """A histogram of ``BINS`` bins over the keys of a range, with the exact sum of each bin.

    All elements of a bin have one sign and one exponent; their significands, integers of 53 bits,
    add up to ``high · 2^26 + low``. Integers add in any order: no thread changes them.
    """

    counts: IntArray
    high: IntArray
    low: IntArray


@dataclass(frozen=True, slots=True)
class Gathered:
    """The elements of a range, and what lies above it."""

    values: FloatArray
    above: int
    sums: FloatArray
    """What is above, added up in any parts of at most 4096 elements: exact where no such sum is rounded."""


class Passes(Protocol):
    """The passes of one backend. Host memory."""

    def map(
        self,
        buffers: Sequence[Buffer],
        out: Sequence[Buffer] | None,
        reading: Reading,
        form: Form,
        moments: Sequence[str],
        *,
        rounded: bool = True,
    ) -> FloatArray:
        """Make y, write it to ``out`` if there is one, and return ``(moments, segments)``.

        ``out[i]`` may be of another storage type than ``buffers[i]``; it then is other memory, of as
        many rows and elements. ``rounded``: y is rounded to the storage type of ``out[i]`` (of
        ``buffers[i]`` without ``out``), once, to nearest, ties to even, before its moments are
        taken, as it has to be where it is written.
        """
        ...

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        """The histogram of all elements whose key begins with the ``used`` bits of ``prefix``.

        The key of u (of |u| where not ``signed``) is the integer of 64 bits that orders as u does,
        see ``keys``; a bin is its next 16 bits.
        """
        ...

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        """The u (|u| where not ``signed``) with ``low <= key <= high``, in any order, and those with ``key > high``."""
        ...


def passes_of(backend: Any) -> Passes:
    """The passes of a backend that has ``projections``: the object, or what its address names."""
    where = backend.projections
    if not isinstance(where, str):
        return cast(Passes, where)
    module, _, attribute = where.partition(":")
    return cast(Passes, getattr(importlib.import_module(module), attribute))


def keys(u: FloatArray) -> npt.NDArray[np.uint64]:
    """Unsigned integers that order as the float64 numbers do; -0 and +0 are one key."""
    bits = (u + 0.0).view(np.uint64)
    negative = bits >> np.uint64(63) != 0
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))


def from_keys(key: npt.NDArray[np.uint64]) -> FloatArray:
    """The numbers of keys; NaN for keys beyond the infinities."""
    positive = key >> np.uint64(63) != 0
    bits: npt.NDArray[np.uint64] = np.where(positive, key & np.uint64((1 << 63) - 1), ~key)
    return bits.view(np.float64)
