"""Backends that are wrong in one thing each. The suite has to see every one of them.

``LIARS`` pairs each with the topics that should tell on it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from gradclip_core.protocol import LEAVE, Actions, Buffer, Measurements, Request, What
from gradclip_core.reference import BLOCK, rows_of, widen
from gradclip_core.testing import Loopback


class LastElementForgotten(Loopback):
    """One element: the tail of a block is dropped where it is a single element."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        short = [b if b.length % BLOCK != 1 else dataclasses.replace(b, length=b.length - 1) for b in buffers]
        if any(b.rows > 1 for b in buffers):
            short = list(buffers)
        return super().measure(short, what)


class OneElementNotScaled(Loopback):
    """One element: a loop that ends one too early."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        kept = [b.as_numpy()[:, -1:].copy() for b in buffers]
        super().apply(buffers, out, actions)
        for buffer, last in zip(out, kept, strict=True):
            buffer.as_numpy()[:, -1:] = last


class Bfloat16Truncated(Loopback):
    """One dtype: bfloat16 results cut off, not rounded."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        sources = [row.copy() for row, _ in rows_of(buffers)]
        super().apply(buffers, out, actions)
        for i, (x, (y, dtype)) in enumerate(zip(sources, rows_of(out), strict=True)):
            if dtype.name == "bfloat16" and actions.op[i] == 1 and not actions.sanitize:
                with np.errstate(all="ignore"):
                    product = widen(x, dtype) * actions.coarse[i] * actions.fine[i]
                    product = np.where(product < actions.low[i], np.float32(actions.low[i]), product)
                    product = np.where(product > actions.high[i], np.float32(actions.high[i]), product)
                y[:] = np.where(np.isnan(product), y, (product.view(np.uint32) >> 16).astype(np.uint16))


class OneNanMissed(Loopback):
    """One NaN: in the last place it is not counted."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        for i, (row, dtype) in enumerate(rows_of(buffers)):
            if row.size and np.isnan(widen(row[-1:], dtype)[0]):
                found.nans[i] -= 1
        return found


class SumReordered(Loopback):
    """One reordered sum: NumPy's own, as accurate as ours."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        if what.power == 2 and what.exponents is None and not what.sanitize:
            for i, (row, dtype) in enumerate(rows_of(buffers)):
                with np.errstate(all="ignore"):
                    found.sums[i] = np.sum(np.float64(widen(row, dtype)) ** 2)
        return found


class SumsInFloat32(Loopback):
    """Squares and sums in the dtype that everybody uses."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        with np.errstate(all="ignore"):
            found.sums[:] = found.sums.astype(np.float32)
        return found


class Epsilon(Loopback):
    """One epsilon: the factor is smaller by a millionth."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        smaller = np.float32(1 - 1e-6)
        super().apply(
            buffers,
            out,
            dataclasses.replace(actions, coarse=actions.coarse * smaller, factor=actions.factor * (1 - 1e-6)),
        )


class RewritesUnclipped(Loopback):
    """One write on the unclipped path: the same bytes, but a write."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        super().apply(buffers, out, actions)
        for i, (y, _) in enumerate(rows_of(out)):
            if actions.op[i] == LEAVE:
                y[:] = y.copy()


class CopiesWhenMeasuring(Loopback):
    """Measures in place, and puts the values back afterwards."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        for row, _ in rows_of(buffers):
            row[:] = row.copy()
        return super().measure(buffers, what)


class NanBecomesBound(Loopback):
    """Clamps NaN to the limit, as some GPU clamps do."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        super().apply(buffers, out, actions)
        for i, (y, dtype) in enumerate(rows_of(out)):
            if np.isfinite(actions.high[i]) and actions.op[i] == 1:
                y[np.isnan(widen(y, dtype))] = 0


class ZeroByMultiplying(Loopback):
    """Zeroes by a factor of 0, which leaves NaNs."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        multiply = dataclasses.replace(
            actions,
            op=np.where(actions.op == 2, 1, actions.op).astype(np.uint8),
            factor=np.where(actions.op == 2, 0.0, actions.factor),
            coarse=np.where(actions.op == 2, np.float32(0), actions.coarse),
        )
        super().apply(buffers, out, multiply)


class FlushesSubnormals(Loopback):
    """-ftz=true."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        tiny = np.array([float(np.finfo(np.float32).tiny) if dtype.itemsize < 8 else 2.3e-308
                         for _, dtype in rows_of(buffers)])  # fmt: skip
        flushed = (found.largest > 0) & (found.largest < tiny)
        found.sums[flushed] = found.largest[flushed] = 0
        return found


class OneMultiplier(Loopback):
    """The two multipliers joined into one float32."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        joined = (actions.coarse * actions.fine).astype(np.float32)
        super().apply(buffers, out, dataclasses.replace(actions, coarse=joined, fine=np.ones_like(actions.fine)))


class InfinityLosesSign(Loopback):
    """Sanitizes -inf to + the largest value."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        negative = [np.isneginf(widen(x, dtype)) for x, dtype in rows_of(buffers)]
        super().apply(buffers, out, actions)
        for (y, dtype), wrong in zip(rows_of(out), negative, strict=True):
            if actions.sanitize and wrong.any():
                signless = np.array(np.iinfo(f"i{dtype.itemsize}").max, f"u{dtype.itemsize}")
                y.view(f"u{dtype.itemsize}")[wrong] &= signless


class WritesNextDoor(Loopback):
    """One element past the end."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        super().apply(buffers, out, actions)
        for i, buffer in enumerate(out):
            if actions.op[min(i, actions.op.size - 1)] == 1:
                dataclasses.replace(buffer, length=buffer.length + 1, rows=1).as_numpy()[0, -1] = 1


class WritesTheSource(Loopback):
    """Out of place, but scales the source first."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        super().apply(buffers, buffers, actions)
        for (x, _), (y, _) in zip(rows_of(buffers), rows_of(out), strict=True):
            if x.ctypes.data != y.ctypes.data:
                y[:] = x


class LeavesWithoutCopying(Loopback):
    """Out of place, LEAVE leaves the target as it was."""

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        if not (actions.op == LEAVE).all():
            super().apply(buffers, out, actions)


class RowsTakenTogether(Loopback):
    """Ignores that a buffer can have rows."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        if any(b.rows > 1 for b in buffers):
            found.sums[:] = found.sums.mean() if found.sums.size else 0
        return found


class CountsTheBound(Loopback):
    """Takes an element on the bound for one outside."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        if what.bounds is not None:
            low, high = what.bounds
            what = dataclasses.replace(what, bounds=(np.nextafter(low, np.inf), np.nextafter(high, -np.inf)))
        return super().measure(buffers, what)


class ExponentsIgnored(Loopback):
    """float64 beyond the range of its squares is not scaled."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        return super().measure(buffers, dataclasses.replace(what, exponents=None))


class CarriesOff(Loopback):
    """One ulp off in what rounding took from a sum."""

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        found.carries[:] = found.carries * (1 + 2.0**-52)
        return found


class NotRepeatable(Loopback):
    """Every fifth large sum is another's."""

    def __init__(self) -> None:
        self.calls = itertools.count()

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        found = super().measure(buffers, what)
        if any(b.length > 200_000 for b in buffers) and next(self.calls) % 5 == 4:
            found.sums[:] = np.nextafter(found.sums, 0)
        return found


class SaysYesToAll(Loopback):
    """Claims to serve every device and dtype."""

    def not_supported_reasons(self, request: Request) -> list[str]:
        return []


LIARS: dict[type[Loopback], set[str]] = {
    LastElementForgotten: {"measure-squares", "measure-magnitudes", "measure-nonfinite"},
    OneElementNotScaled: {"apply-scale", "apply-zero"},
    Bfloat16Truncated: {"apply-scale"},
    OneNanMissed: {"measure-nonfinite", "measure-sanitize"},
    SumReordered: {"measure-squares", "measure-table", "shifted"},
    SumsInFloat32: {"measure-squares", "measure-magnitudes", "measure-powers"},
    Epsilon: {"apply-scale", "apply-table"},
    RewritesUnclipped: {"leave-writes-nothing"},
    CopiesWhenMeasuring: {"measure-writes-nothing"},
    NanBecomesBound: {"apply-clamp"},
    ZeroByMultiplying: {"apply-zero"},
    FlushesSubnormals: {"measure-squares", "measure-magnitudes"},
    OneMultiplier: {"apply-scale"},
    InfinityLosesSign: {"apply-scale-sanitize"},
    WritesNextDoor: {"apply-scale", "apply-clamp"},
    WritesTheSource: {"apply-scale", "apply-zero"},
    LeavesWithoutCopying: {"apply-leave"},
    RowsTakenTogether: {"measure-table"},
    CountsTheBound: {"measure-bounds"},
    ExponentsIgnored: {"measure-exponents"},
    CarriesOff: {"measure-carries"},
    NotRepeatable: {"repeatable"},
    SaysYesToAll: {"supports"},
}
