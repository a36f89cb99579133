"""Liars that decide on their device: each is the loopback with one thing wrong in its decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gradclip_core.device import Answer, Case, Reading, Strided
from gradclip_core.plan import actions_of
from gradclip_core.protocol import LEAVE, SCALE, Actions, Buffer
from gradclip_core.testing import DeviceLoopback
from gradclip_core.testing.loopback import HostAnswer


class _Liar(DeviceLoopback):
    """Answers something else than was decided."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        raise NotImplementedError

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        return HostAnswer(self.lie(super().decide(buffers, case, after).read(), case))


def _changed(reading: Reading, change: Callable[[Actions], Actions]) -> Reading:
    return dataclasses.replace(reading, actions=change(reading.actions))


class FactorRoundedToNearest(_Liar):
    """A factor of 24 bits, but the nearest one."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        narrow = reading.actions.factor == reading.actions.factor.astype(np.float32)
        up = np.where(
            narrow & (reading.actions.op == SCALE),
            np.nextafter(np.float32(reading.actions.factor), np.float32(9)),
            reading.actions.factor,
        )
        return _changed(reading, lambda a: actions_of(a.op, up.astype(np.float64), a.low, a.high, a.sanitize))


class NoShave(_Liar):
    """The plain quotient: a result may exceed its bound by an ulp."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        factor = np.where(reading.actions.op == SCALE, reading.actions.factor * (1 + 2.0**-24), reading.actions.factor)
        return _changed(reading, lambda a: actions_of(a.op, factor, a.low, a.high, a.sanitize))


class SkipsNothing(_Liar):
    """Clips in spite of non-finite values."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        return dataclasses.replace(reading, skipped=False)


class WritesWhatIsLeft(_Liar):
    """Multiplies by one instead of leaving alone."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        op = np.where(reading.actions.op == LEAVE, SCALE, reading.actions.op).astype(np.uint8)
        return _changed(reading, lambda a: dataclasses.replace(a, op=op))


class ForgetsTheLoss(_Liar):
    """Takes a loss scale on the device for 1."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        honest = dataclasses.replace(case, loss_scale=None, inverse=1.0) if case.loss_scale else case
        return DeviceLoopback.decide(self, buffers, honest, after)


class GroupsTakenTogether(_Liar):
    """One scope, whatever was asked for."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        if case.scopes is not None:
            together = dataclasses.replace(case.scopes, ids=np.zeros_like(case.scopes.ids))
            case = dataclasses.replace(case, scopes=together)
        return DeviceLoopback.decide(self, buffers, case, after)


class WeightsIgnored(_Liar):
    """Every unit's limit is that of the smallest weights."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        if case.weights is not None:
            case = dataclasses.replace(case, weights=dataclasses.replace(case.weights, clipping=1e-9))
        return DeviceLoopback.decide(self, buffers, case, after)


class BoundsNotStored(_Liar):
    """Clamps to the wrong side of a limit."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        return _changed(reading, lambda a: dataclasses.replace(a, high=np.nextafter(a.high, -np.inf)))


class CarriesNotAsked(_Liar):
    """float64 without its carries: the factor is off by what rounding took from the norm."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        if not reading.carried:
            return reading
        factor = reading.actions.factor * (1 + 2.0**-51)
        return _changed(reading, lambda a: actions_of(a.op, factor, a.low, a.high, a.sanitize))


class ExponentsForgotten(_Liar):
    """float64 beyond the range of its squares comes out as if its norm were infinite."""

    def lie(self, reading: Reading, case: Case) -> Reading:
        if not reading.exponents.any():
            return reading
        return _changed(reading, lambda a: dataclasses.replace(a, factor=np.zeros_like(a.factor)))


class WritesAnother(DeviceLoopback):
    """Decides right, and writes what another decision would."""

    def act(self, buffers: Sequence[Buffer], out: Sequence[Buffer], answer: Answer) -> None:
        actions = answer.read().actions
        self.apply(buffers, out, dataclasses.replace(actions, coarse=actions.coarse * 0.5, factor=actions.factor * 0.5))


class ForgetsWhatWasBefore(DeviceLoopback):
    """Goes on behind a rule that gave up."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        return super().decide(buffers, case)


class TakesAnyScale(DeviceLoopback):
    """Multiplies by the reciprocal of whatever the loss scale is."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        return HostAnswer(dataclasses.replace(super().decide(buffers, case, after).read(), fault=""))


class NeverPoisoned(DeviceLoopback):
    """Says that all is well."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        class Well(HostAnswer):
            def poisoned(self) -> bool:
                return False

        return Well(super().decide(buffers, case, after).read())


class RewritesWhatIsLeft(DeviceLoopback):
    """Writes the bytes that are there."""

    def act(self, buffers: Sequence[Buffer], out: Sequence[Buffer], answer: Answer) -> None:
        super().act(buffers, out, answer)
        for buffer in out:
            buffer.as_numpy()[:] = buffer.as_numpy().copy()


class PacksInMemoryOrder(DeviceLoopback):
    """Takes a strided array for a dense one."""

    def pack(self, strided: Strided) -> Buffer:
        ascending = tuple(sorted(strided.strides, key=abs))
        return super().pack(dataclasses.replace(strided, strides=ascending))


class NeverPutsBack(DeviceLoopback):
    """Leaves a strided array as it was."""

    def unpack(self, packed: Buffer, strided: Strided, answer: Answer | None, first: int) -> None:
        if answer is None:
            super().unpack(packed, strided, answer, first)


class MeasuresNothingAfter(DeviceLoopback):
    """The norm after a by-value clip is that of the gradients before."""

    def measure_clipped(self, buffers: Sequence[Buffer], ord: float, answer: Answer) -> HostAnswer:
        return HostAnswer(answer.read())


DEVICE_LIARS: dict[type[DeviceLoopback], set[str]] = {
    FactorRoundedToNearest: {"decide-norms", "decide-weights"},
    NoShave: {"decide-norms"},
    SkipsNothing: {"decide-policies"},
    WritesWhatIsLeft: {"decide-norms"},
    ForgetsTheLoss: {"decide-scale"},
    GroupsTakenTogether: {"decide-norms", "decide-table"},
    WeightsIgnored: {"decide-weights"},
    BoundsNotStored: {"decide-value"},
    CarriesNotAsked: {"decide-carried"},
    ExponentsForgotten: {"decide-rescaled"},
    WritesAnother: {"decide-norms", "decide-value"},
    ForgetsWhatWasBefore: {"device-after"},
    TakesAnyScale: {"device-faults"},
    NeverPoisoned: {"device-faults"},
    RewritesWhatIsLeft: {"device-act-writes-nothing"},
    PacksInMemoryOrder: {"device-strides"},
    NeverPutsBack: {"device-strides"},
    MeasuresNothingAfter: {"device-clipped"},
}
