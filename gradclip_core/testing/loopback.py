"""The reference behind the protocols, for testing the suite itself: it must pass every check.

A liar is a loopback with one thing wrong; the suite must tell. To write a backend's own liars,
derive from ``Loopback`` and override a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.device import Answer, Case, Reading, Strided
from gradclip_core.plan import actions_of
from gradclip_core.protocol import DTYPES, LEAVE, Actions, Buffer, DType, Measurements, Request, What, host_view
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing.decisions import Situation, answered


class Loopback:
    """The reference under another name: passes every check."""

    name = "loopback"
    projections: object = "gradclip_core.reference_forms:PASSES"

    def not_supported_reasons(self, request: Request) -> list[str]:
        """The reference's."""
        return REFERENCE.not_supported_reasons(request)

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """The reference's."""
        return REFERENCE.measure(buffers, what)

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """The reference's."""
        REFERENCE.apply(buffers, out, actions)


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """An answer that was never anywhere else."""

    reading: Reading

    def poisoned(self) -> bool:
        """See ``Answer.poisoned``."""
        found = self.reading.found
        return bool((found.infs + found.nans).any() or self.reading.fault)

    def read(self) -> Reading:
        """See ``Answer.read``."""
        return self.reading


class DeviceLoopback(Loopback):
    """The reference and ``plan.py`` behind the protocol for devices: its device is the host."""

    name = "device_loopback"

    def prepare(self, device: str, dtypes: Sequence[DType], rules: Sequence[tuple[float, bool]]) -> None:
        """Nothing has to be compiled."""

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> HostAnswer:
        """The host's decision."""
        arrays = [(buffer.as_numpy(), buffer.dtype) for buffer in buffers]
        weights = None
        if case.weights is not None:
            weights = [(buffer.as_numpy(), buffer.dtype) for buffer in case.weights.buffers]
        scale = None if case.loss_scale is None else float(case.loss_scale.as_numpy()[0, 0])
        invalid = scale is not None and not 2.0**-1022 <= scale <= 2.0**1022
        reading = answered(Situation(arrays, case, 1.0 if invalid else scale, weights))
        if invalid or (after is not None and after.read().skipped):
            count = reading.actions.op.size
            nothing = actions_of(np.full(count, LEAVE, np.uint8), np.ones(count))
            reading = replace(reading, actions=nothing, skipped=True, fault="loss_scale" if invalid else "")
        return HostAnswer(reading)

    def act(self, buffers: Sequence[Buffer], out: Sequence[Buffer], answer: Answer) -> None:
        """The reference's."""
        self.apply(buffers, out, answer.read().actions)

    def measure_clipped(self, buffers: Sequence[Buffer], ord: float, answer: Answer) -> HostAnswer:
        """The reference's measurement, where an element was beyond its limits."""
        reading = answer.read()
        if not (reading.found.largest * reading.inverse > reading.actions.high).any():
            return HostAnswer(replace(reading, found=Measurements.empty(reading.found.sums.size)))
        return self.decide(buffers, Case(ord, "propagate", 1.0, bounds=dict.fromkeys(DTYPES, (-np.inf, np.inf))))

    def pack(self, strided: Strided) -> Buffer:
        """NumPy's copy."""
        packed = _strided_view(strided).copy()
        return replace(strided.like, pointer=packed.ctypes.data, owner=packed)

    def unpack(self, packed: Buffer, strided: Strided, answer: Answer | None, first: int) -> None:
        """NumPy's assignment."""
        if answer is None or (answer.read().actions.op[first : first + packed.rows] != LEAVE).any():
            view = _strided_view(strided)
            view[...] = packed.as_numpy().reshape(view.shape)


def _strided_view(strided: Strided) -> npt.NDArray[Any]:
    return host_view(strided.pointer, strided.shape, strided.like.dtype.view, strided.like.owner, strided.strides)
