"""Passes for projections that are wrong in one thing each, with the topics that should tell on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gradclip_core.forms import Form, Gathered, Reading, Tally
from gradclip_core.protocol import BFLOAT16, Buffer, FloatArray
from gradclip_core.reference import rows_of
from gradclip_core.reference_forms import NumpyPasses, load

from .conversion_liars import ByWayOfTheSourceType, ConvertsByWayOfFloat32, NanBecomesBound
from .search_liars import (
    OneBinOff,
    RangeCountedToo,
    SignForgotten,
    SumsInFloat32,
    SumsOneUnitOff,
    TwoZeros,
    UpperEdgeForgotten,
)


class LastElementForgotten(NumpyPasses):
    """A loop that ends one too early: the last element of a row is not written."""

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
        kept = [b.as_numpy()[:, -1:].copy() for b in out or ()]
        found = super().map(buffers, out, reading, form, moments, rounded=rounded)
        for buffer, last in zip(out or (), kept, strict=True):
            buffer.as_numpy()[:, -1:] = last
        return found


class SumReordered(NumpyPasses):
    """One moment: Σ |y| in NumPy's own order."""

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
        if "abs" in moments and form.kind == "same" and not rounded:
            sums = [np.sum(np.abs(load(x, dtype, reading))) for x, dtype in rows_of(buffers)]
            found[list(moments).index("abs")] = sums
        return found


class OneMomentOfU(NumpyPasses):
    """One moment: max |y| before the form, not after it."""

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
        if out is None and "max_y" in moments:
            before = Form.of("same", form.a.size)
            found[list(moments).index("max_y")] = super().map(buffers, None, reading, before, ("max_y",))[0]
        return found


class NeverRounded(NumpyPasses):
    """Moments of what was computed, where those of what will be stored were asked for."""

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
        return super().map(buffers, out, reading, form, moments, rounded=rounded and out is not None)


class RoundedTwice(NumpyPasses):
    """One rounding: bfloat16 by way of float32, each to nearest."""

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
        sources = [x.copy() for x, _ in rows_of(buffers)]
        found = super().map(buffers, out, reading, form, moments, rounded=rounded)
        if form.kind == "soft" and reading == Reading():
            for i, (x, (y, dtype)) in enumerate(zip(sources, rows_of(out or ()), strict=bool(out))):
                if dtype is BFLOAT16:
                    u = load(x, dtype, reading)
                    exact = np.sign(u) * np.maximum(np.abs(u) - form.a[i] - form.b[i], 0) * form.c[i]
                    bits = exact.astype(np.float32).view(np.uint32)
                    y[:] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return found


class WritesTheSource(NumpyPasses):
    """Out of place, but makes y where u was first."""

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
        found = super().map(buffers, buffers if out else None, reading, form, moments, rounded=rounded)
        for (x, _), (y, _) in zip(rows_of(buffers), rows_of(out or ()), strict=bool(out)):
            y[:] = x
        return found


class WritesNextDoor(NumpyPasses):
    """One element past the end."""

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
        for buffer in out or ():
            dataclasses.replace(buffer, length=buffer.length * buffer.rows + 1, rows=1).as_numpy()[0, -1] = 1
        return found


class WritesWhatItReads(NumpyPasses):
    """Puts every element back where it was: the same bytes, but a write."""

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
        _rewrite(buffers)
        return super().map(buffers, out, reading, form, moments, rounded=rounded)

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        _rewrite(buffers)
        return super().tally(buffers, reading, signed=signed, prefix=prefix, used=used)

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        _rewrite(buffers)
        return super().gather(buffers, reading, signed=signed, low=low, high=high)


class ReadsWithout(NumpyPasses):
    """Ignores a field of ``Reading``."""

    field = "exponent"

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
        return super().map(buffers, out, self.without(reading), form, moments, rounded=rounded)

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        with np.errstate(all="ignore"):
            return super().tally(buffers, self.without(reading), signed=signed, prefix=prefix, used=used)

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        return super().gather(buffers, self.without(reading), signed=signed, low=low, high=high)

    def without(self, reading: Reading) -> Reading:
        return dataclasses.replace(reading, **{self.field: getattr(Reading(), self.field)})


class InverseIgnored(ReadsWithout):
    """As if there were no loss scale."""

    field = "inverse"


class SanitizeIgnored(ReadsWithout):
    """Lets NaNs through."""

    field = "sanitize"


class FirstRowsNumbers(NumpyPasses):
    """Takes the first segment's numbers for all of them."""

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
        first = dataclasses.replace(form, a=np.full_like(form.a, form.a[0] if form.a.size else 0.0))
        return super().map(buffers, out, reading, first, moments, rounded=rounded)


class CompanionsShifted(NumpyPasses):
    """Reads each weight from its neighbour's place."""

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
        rolled = []
        for buffer in form.companions:
            moved = np.roll(buffer.as_numpy(), 1, axis=1)
            rolled.append(dataclasses.replace(buffer, pointer=moved.ctypes.data, owner=moved))
        return super().map(
            buffers, out, reading, dataclasses.replace(form, companions=rolled), moments, rounded=rounded
        )


class PowersOff(NumpyPasses):
    """Powers to 1e-9, where 1e-12 is asked."""

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
        for i, name in enumerate(moments):
            found[i] *= 1 + 1e-9 * (name in ("pow_y", "pow_d", "steep"))
        return found


def _rewrite(buffers: Sequence[Buffer]) -> None:
    for x, _ in rows_of(buffers):
        x[:] = x.copy()


PASSES_LIARS: dict[type[NumpyPasses], set[str]] = {
    LastElementForgotten: {"form"},
    SumReordered: {"moment"},
    OneMomentOfU: {"moment"},
    NeverRounded: {"moment"},
    RoundedTwice: {"form"},
    ByWayOfTheSourceType: {"form"},
    ConvertsByWayOfFloat32: {"form"},
    NanBecomesBound: {"form"},
    WritesTheSource: {"form"},
    WritesNextDoor: {"form"},
    WritesWhatItReads: {"form", "tally", "gather"},
    ReadsWithout: {"form", "moment", "tally", "gather"},
    InverseIgnored: {"form", "moment", "tally", "gather"},
    SanitizeIgnored: {"form", "moment", "tally", "gather"},
    FirstRowsNumbers: {"form", "moment"},
    CompanionsShifted: {"form", "moment"},
    PowersOff: {"moment"},
    OneBinOff: {"tally"},
    SumsOneUnitOff: {"tally"},
    UpperEdgeForgotten: {"gather"},
    RangeCountedToo: {"gather"},
    SumsInFloat32: {"gather"},
    SignForgotten: {"tally", "gather"},
    TwoZeros: {"tally"},
}
