"""Passes whose histograms and ranges are wrong in one thing each: see ``passes_liars.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gradclip_core.forms import Gathered, Reading, Tally, keys
from gradclip_core.protocol import Buffer
from gradclip_core.reference import rows_of
from gradclip_core.reference_forms import NumpyPasses, load


class OneBinOff(NumpyPasses):
    """One element in its neighbour's bin."""

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        found = super().tally(buffers, reading, signed=signed, prefix=prefix, used=used)
        top = int(np.flatnonzero(found.counts)[-1]) if found.counts.any() else 0
        if top > 0:
            found.counts[top] -= 1
            found.counts[top - 1] += 1
        return found


class SumsOneUnitOff(NumpyPasses):
    """One unit in the last place of one bin's sum."""

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        found = super().tally(buffers, reading, signed=signed, prefix=prefix, used=used)
        found.low[found.counts.argmax()] += 1
        return found


class UpperEdgeForgotten(NumpyPasses):
    """``low <= key < high``."""

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        return super().gather(buffers, reading, signed=signed, low=low, high=max(0, high - 1))


class RangeCountedToo(NumpyPasses):
    """The elements of the range among those above it."""

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        found = super().gather(buffers, reading, signed=signed, low=low, high=high)
        return dataclasses.replace(found, above=found.above + found.values.size)


class SumsInFloat32(NumpyPasses):
    """What is above the range, added up in float32."""

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        found = super().gather(buffers, reading, signed=signed, low=low, high=high)
        with np.errstate(over="ignore"):
            return dataclasses.replace(found, sums=np.nan_to_num(found.sums.astype(np.float32).astype(np.float64)))


class SignForgotten(NumpyPasses):
    """Everything by magnitude."""

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        return super().tally(buffers, reading, signed=False, prefix=prefix, used=used)

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        return super().gather(buffers, reading, signed=False, low=low, high=high)


class TwoZeros(NumpyPasses):
    """-0 below +0: two keys where there is to be one."""

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        found = super().tally(buffers, reading, signed=signed, prefix=prefix, used=used)
        if signed and not used:
            for x, dtype in rows_of(buffers):
                with np.errstate(all="ignore"):
                    u = load(x, dtype, reading)
                minus = int((np.signbit(u) & (u == 0)).sum())
                zero = int(keys(np.zeros(1))[0] >> np.uint64(48))
                found.counts[zero] -= minus
                found.counts[zero - 1] += minus
        return found
