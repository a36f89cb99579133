"""Passes that are wrong where they convert to another storage type, or fit values between bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import Buffer, FloatArray
from gradclip_core.reference import narrow, rows_of
from gradclip_core.reference_forms import NumpyPasses, load, store
from gradclip_core.testing.memory import Stored


class ByWayOfTheSourceType(NumpyPasses):
    """What goes to another type is rounded to the source's first."""

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
        if all(a.dtype is b.dtype for a, b in zip(buffers, out or buffers, strict=True)):
            return super().map(buffers, out, reading, form, moments, rounded=rounded)
        between = [dataclasses.replace(b, pointer=x.ctypes.data, owner=x) for b, x in _copies(buffers)]
        super().map(buffers, between, reading, form, ())
        again = Reading(exponent=reading.exponent)
        return super().map(between, out, again, Form.of("same", form.a.size), moments)


class ConvertsByWayOfFloat32(NumpyPasses):
    """To float8 as ml_dtypes converts float64: by way of float32, each to nearest."""

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
        found = super().map(buffers, out, reading, form, moments, rounded=rounded)
        for a, b in zip(buffers, out or (), strict=bool(out)):
            if form.kind == "scale" and b.dtype.itemsize == 1 and a.dtype is not b.dtype:
                for x, y, factor in zip(a.as_numpy(), b.as_numpy(), form.a, strict=True):
                    with np.errstate(all="ignore"):
                        y[:] = narrow((load(x, a.dtype, reading) * factor).astype(np.float32), b.dtype)
        return found


class NanBecomesBound(NumpyPasses):
    """The form "fit" by minimum and maximum of a kind that forgets NaN."""

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
        sources = [load(x, dtype, reading) for x, dtype in rows_of(buffers)]
        found = super().map(buffers, out, reading, form, moments, rounded=rounded)
        if form.kind == "fit":
            for i, (u, (y, dtype)) in enumerate(zip(sources, rows_of(out or ()), strict=bool(out))):
                y[np.isnan(u)] = store(form.b[i : i + 1], dtype, Reading())
        return found


def _copies(buffers: Sequence[Buffer]) -> list[tuple[Buffer, Stored]]:
    return [(buffer, buffer.as_numpy().copy()) for buffer in buffers]
