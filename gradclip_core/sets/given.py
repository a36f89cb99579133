"""Sets whose result is computed as a whole, and not element by element in a pass: the form ``given``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import FloatArray
from gradclip_core.reference_forms import load, store
from gradclip_core.sets.base import Certificate, Moments, View


@dataclass(frozen=True, slots=True)
class Given(Form):
    """Values to be written, and what makes the certificate of them.

    When the certificate is made, u may have been written over: ``evidence`` holds what it needs.
    """

    evidence: Callable[[Moments], Certificate] | None = None

    def certificate(self, found: Moments) -> Certificate:
        """The certificate, from the moments of what was written."""
        assert self.evidence is not None
        return self.evidence(found)


def given(view: View, values: Sequence[FloatArray], evidence: Callable[[Moments], Certificate] | None = None) -> Given:
    """The form that writes these values, for each buffer ``(rows, length)``, in the units of u."""
    zeros = np.zeros(view.segments)
    return Given("given", zeros, zeros, zeros, values=values, evidence=evidence)


def as_written(view: View, array: int, values: FloatArray) -> FloatArray:
    """The values of one array after they were rounded to its storage type, as the write pass does it."""
    dtype, reading = view.buffers[array].dtype, view.reading
    return load(store(values, dtype, reading), dtype, Reading(exponent=reading.exponent))
