"""What a backend for a device does besides: it decides where the gradients are.

The host then waits for nothing, and an unclipped step costs one read pass. What a decision means
stands in ``plan.py`` alone; a device evaluates the same, to the bit, and the conformance suite says
whether it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gradclip_core.protocol import Actions, Backend, Buffer, DType, FloatArray, IntArray, Measurements, Scopes


@dataclass(frozen=True, slots=True)
class Weights:
    """Limits that come of weights (AGC): ``clipping · max(‖w_u‖, eps)`` for each unit u.

    ``buffers`` have the segments of the gradients' buffers, in the same order.
    """

    buffers: Sequence[Buffer]
    clipping: float
    eps: float


@dataclass(frozen=True, slots=True)
class Case:
    """All that a decision depends on besides what was measured, for a backend that decides on its device.

    One of three is given: ``scopes``, ``weights`` (a scope for each segment), or ``bounds`` (by
    value: the limits as each storage type holds them, by its name).
    """

    ord: float
    nonfinite: str
    inverse: float
    """1 / loss scale; what it is where ``loss_scale`` is given does not matter."""
    loss_scale: Buffer | None = None
    """One element on the device: the loss scale, where the host does not know it."""
    scopes: Scopes | None = None
    weights: Weights | None = None
    bounds: Mapping[str, tuple[float, float]] | None = None
    symmetric: bool = True
    """By value: whether the limits are -v and v."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, brought to the host: what was measured and what was decided on the device."""

    found: Measurements
    exponents: IntArray
    """``sums`` are those of x·2^-e."""
    units: FloatArray
    carried: bool
    inverse: float
    actions: Actions
    skipped: bool
    weights: Reading | None
    """What was measured of the weights that give the limits."""
    fault: str
    """``"loss_scale"`` or ``"weights"``: what the device alone could see to be no valid argument."""


class Answer(Protocol):
    """A decision that was made on the device, and stays there until somebody reads it."""

    def poisoned(self) -> bool:
        """Whether anything but clipping is to happen: non-finite values, or a fault. Waits for the device."""
        ...

    def read(self) -> Reading:
        """All of it. Waits for the device, the first time."""
        ...


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend that also decides where the gradients are, so that the host need not wait."""

    def prepare(self, device: str, dtypes: Sequence[DType], rules: Sequence[tuple[float, bool]]) -> None:
        """Compile what rules of these orders (True: by value) need: none must fail behind another's write."""
        ...

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> Answer:
        """The read pass and the decision, to the bit what ``plan.py`` decides.

        ``after`` is the answer of the rule before this one: if that gave up, so does this.
        """
        ...

    def act(self, buffers: Sequence[Buffer], out: Sequence[Buffer], answer: Answer) -> None:
        """The write pass of a decision. The buffers have the segments that it was made for."""
        ...

    def measure_clipped(self, buffers: Sequence[Buffer], ord: float, answer: Answer) -> Answer:
        """One more read pass, of what a by-value decision has written; skipped where it clipped nothing."""
        ...

    def pack(self, strided: Strided) -> Buffer:
        """A dense copy of strided memory, in C order of its axes."""
        ...

    def unpack(self, packed: Buffer, strided: Strided, answer: Answer | None, first: int) -> None:
        """A dense copy back into strided memory, unless the answer left all its segments, from ``first`` on."""
        ...


@dataclass(frozen=True, slots=True)
class Strided:
    """Memory on a device that is not dense: ``shape`` items of ``itemsize`` bytes, ``strides`` in bytes."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    like: Buffer
    """What the dense copy is as a buffer, but for its pointer and owner."""
