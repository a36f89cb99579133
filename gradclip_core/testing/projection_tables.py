"""What the checks of projections compare: arrays with what a form needs beside them, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.forms import Form
from gradclip_core.protocol import Buffer, DType, FloatArray
from gradclip_core.testing import cases
from gradclip_core.testing.memory import Memory, Stored

TOLERANCE = 1e-12
"""Relative, where a power is taken."""


class ProjectionError(AssertionError):
    """Passes differ from the reference. The message says in what."""


@dataclass(frozen=True, slots=True)
class Table:
    """Arrays of rows, and what a form needs beside them: an array for each, and a number for each row."""

    arrays: Sequence[tuple[Stored, DType]]
    weights: Sequence[tuple[Stored, DType]]
    values: Sequence[FloatArray]

    @classmethod
    def of(cls, arrays: Sequence[tuple[Stored, DType]], w_dtype: DType | None = None) -> Table:
        """With positive weights in ``w_dtype`` (None: each array's own)."""
        weights, values = [], []
        for number, (x, dtype) in enumerate(arrays):
            rng = cases.generator(dtype, 40 + number)
            own = w_dtype or dtype
            weights.append((cases.stored(rng.uniform(0.5, 2.0, x.shape), own), own))
            values.append(rng.standard_normal(x.shape))
        return cls(arrays, weights, values)

    def put(self, memory: Memory, shift: int = 0) -> list[Buffer]:
        """The arrays in memory of their own."""
        return [memory.put(x, dtype, shift=shift) for x, dtype in self.arrays]

    def form(self, kind: str, memory: Memory, lp: bool = False) -> Form:
        """A form whose numbers are others for every row. ``lp``: b is the p of an Lp norm, as "power" wants it."""
        count = sum(x.shape[0] for x, _ in self.arrays)
        step = np.arange(count) / 64
        b = 3.5 + step if lp or kind == "power" else 2.0**-30 + step * 2.0**-20
        companions = [memory.put(w, dtype) for w, dtype in self.weights]
        values = self.values if kind == "given" else ()
        if kind == "fit":
            b = -0.25 - step / 4  # below c
        return Form(kind, 0.4 + step, b, 0.75 - step / 2, 3.0, companions, values)


def same(what: str, found: Any, expected: Any, near: bool = False, extreme: bool = False) -> None:
    """Refuse numbers that differ from the reference's, all NaNs being one; ``near`` allows ``TOLERANCE``."""
    got, wanted = np.asarray(found), np.asarray(expected)
    if got.shape != wanted.shape:
        raise ProjectionError(f"{what} have shape {got.shape}, not {wanted.shape}")
    equal = (got == wanted) | ((got != got) & (wanted != wanted))
    if near:
        with np.errstate(all="ignore"):
            equal |= np.abs(got - wanted) <= TOLERANCE * np.abs(wanted)
            if extreme:  # of differences, whose roundoff is that of what was subtracted
                equal |= np.abs(got - wanted) <= 16 * 2.0**-52
    if not equal.all():
        i = np.flatnonzero(~equal)[0]
        raise ProjectionError(
            f"{what} entry {i} is {got.reshape(-1)[i]!r}, and the reference says {wanted.reshape(-1)[i]!r}"
        )
