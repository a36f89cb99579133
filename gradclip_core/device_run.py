"""measure → decide → apply on a device that decides for itself: the host launches, and waits for nothing.

Only ``nonfinite="raise"`` waits, before anything is written, and whoever reads the info.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import dense_buffer, strided
from gradclip_core.device import Answer, Case, DeviceBackend, Reading, Strided, Weights
from gradclip_core.errors import InvalidArgumentError, UnsafeMemoryError, show
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import Axes, report_writes
from gradclip_core.plan import Segments, stored_values
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.precision.nonfinite import refuse
from gradclip_core.protocol import DTYPES, Buffer, Scopes
from gradclip_core.report import Decided, Story, array_ids, conclude, report
from gradclip_core.rules import Value
from gradclip_core.stages import Stage
from gradclip_core.unitwise import limits_of, measured_limits, refuse_nonfinite_weights

if TYPE_CHECKING:
    from gradclip_core.pipeline import Outcome, Target


@dataclass(slots=True)
class _Flat:
    """An array as the device reads it: its own memory, or a dense copy of it."""

    buffer: Buffer
    source: Strided | None = None


@dataclass(slots=True)
class _Asked:
    """A stage whose answer is on the device, and what its reading has to be put beside."""

    stage: Stage
    answer: Answer
    segments: Segments


def run_on_device(
    cargo: Cargo,
    stages: Sequence[Stage],
    backend: DeviceBackend,
    passed: dict[str, list[str]],
    asked: str,
    target: Target,
) -> Outcome:
    """See ``pipeline.run``."""
    from gradclip_core.pipeline import Outcome, Step

    current: Sequence[Docked] = cargo.arrays
    done: list[_Asked] = []
    steps: list[Step] = []
    after: Answer | None = None
    stages = [_with_limits_from_elsewhere(stage, cargo.device) for stage in stages]
    if len(stages) > 1:
        # A later rule's kernels must not fail to compile once the first has written.
        dtypes = [docked.dtype for docked in cargo.arrays]
        backend.prepare(
            cargo.device,
            dtypes,
            [*((stage.rule.order, isinstance(stage.rule, Value)) for stage in stages), (stages[0].rule.order, False)],
        )
    for number, stage in enumerate(stages):
        flats = _flats(backend, current, stage.axes)
        buffers = [flat.buffer for flat in flats]
        case = _case(backend, stage, cargo.device)
        answer = backend.decide(buffers, case, done[-1].answer if done else None)
        here = _Asked(stage, answer, Segments.of(buffers))
        if stage.nonfinite == "raise" and answer.poisoned():
            raise _refusal(here, cargo, asked)
        done.append(here)
        steps.append(Step(stage.axes, answer))
        needs_result = number < len(stages) - 1 or isinstance(stage.rule, Value)
        if target == "memory" or number > 0:
            _write(backend, current, current, flats, stage.axes, answer)
        elif target == "new" or needs_result:
            targets = [docked.door.new_like(docked) for docked in current]
            _write(backend, current, targets, flats, stage.axes, answer)
            current = targets
    if stages[-1].rule.order != stages[0].rule.order:
        # A chain reports both norms in its first rule's order.
        buffers = [flat.buffer for flat in _flats(backend, current, [None] * len(current))]
        endless = Scopes(np.zeros(len(buffers), np.int64), np.array([np.inf]))
        after = backend.decide(buffers, Case(stages[0].rule.order, "propagate", 1.0, scopes=endless), done[-1].answer)
    elif isinstance(stages[-1].rule, Value):
        # What the clipped elements add up to can only be known from what was written.
        buffers = [flat.buffer for flat in _flats(backend, current, [None] * len(current))]
        after = backend.measure_clipped(buffers, stages[-1].rule.order, done[-1].answer)
    known: list[Story] = []

    @ieee_arithmetic
    def story() -> Story:
        if not known:
            known.append(_story(done, after, asked))
        return known[0]

    return Outcome(cargo, current, steps, report(cargo.names(), story, backend.name, passed), story)


def write(
    backend: DeviceBackend, arrays: Sequence[Docked], targets: Sequence[Docked], axes: Axes, answer: Answer
) -> None:
    """The write pass of a plan, to gradients of the same structure. In place where both are the same."""
    _write(backend, arrays, targets, _flats(backend, arrays, axes), axes, answer)


# ---- what the device is asked ---------------------------------------------------------------------


def _flats(backend: DeviceBackend, arrays: Sequence[Docked], axes: Axes) -> list[_Flat]:
    """Each array's memory, or a dense copy where its own is not."""
    flats = []
    for docked, reduced in zip(arrays, axes, strict=True):
        buffer = dense_buffer(docked, reduced)
        if buffer is not None:
            flats.append(_Flat(buffer))
        else:
            source = strided(docked, reduced)
            flats.append(_Flat(backend.pack(source), source))
    return flats


def _with_limits_from_elsewhere(stage: Stage, device: str) -> Stage:
    """Weights on another device are measured there, now: who reads the info later may find them stepped on."""
    if stage.weights is None or {docked.device for docked in stage.weights.arrays} <= {device}:
        return stage
    limits = measured_limits(stage.weights)
    return replace(stage, weights=None, scopes=Scopes(np.arange(limits.size), limits))


def _case(backend: DeviceBackend, stage: Stage, device: str) -> Case:
    scale = None if stage.device_scale is None else _scale_buffer(stage.device_scale, device)
    case = Case(stage.rule.order, stage.nonfinite, stage.inverse, scale)
    if isinstance(stage.rule, Value):
        low, high = stage.limit
        bounds = {name: stored_values((low, high), dtype) for name, dtype in DTYPES.items()}
        pairs = {name: (values[0], values[1]) for name, values in bounds.items()}
        return replace(case, bounds=pairs, symmetric=low == -high)
    weights = stage.weights
    if weights is None:
        return replace(case, scopes=stage.scopes)
    flats = _flats(backend, weights.arrays, weights.axes)
    return replace(case, weights=Weights([flat.buffer for flat in flats], weights.clipping, weights.eps))


def _scale_buffer(scale: object, device: str) -> Buffer:
    """A loss scale that stays on the device: one number, of a floating dtype."""
    cargo = unload(scale, f"loss_scale={show(type(scale).__name__)}", clips=False)
    docked = cargo.arrays[0] if len(cargo.arrays) == 1 else None
    cure = "Pass a 0-d array of a floating dtype on the gradients' device, or a Python float"
    if docked is None or docked.shape != () or docked.is_complex:
        kind = "it is no single array"
        if docked is not None:
            kind = "it is complex" if docked.is_complex else f"it is an array of shape {docked.shape}"
        raise InvalidArgumentError("loss_scale", kind, cure)
    if docked.device != device:
        seen = f"it is on {docked.device}, and the gradients are on {device}"
        raise InvalidArgumentError("loss_scale", seen, cure)
    buffer = dense_buffer(docked, None)
    if buffer is None:
        raise UnsafeMemoryError("loss_scale", "its memory is not aligned to its dtype", cure)
    return buffer


def _write(
    backend: DeviceBackend,
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Sequence[_Flat],
    axes: Axes,
    answer: Answer,
) -> None:
    in_place = targets is arrays
    sinks = [flat.buffer for flat in flats]
    if not in_place:
        # A copy takes the result where the new array is laid out in another way than the old one.
        for i, (docked, target, reduced) in enumerate(zip(arrays, targets, axes, strict=True)):
            alike = docked.strides == target.strides or (docked.contiguous and target.contiguous)
            dense = dense_buffer(target, reduced) if flats[i].source is None and alike else None
            if dense is not None:
                sinks[i] = dense
            elif flats[i].source is None:
                flats[i].buffer = sinks[i] = backend.pack(strided(docked, reduced))
    backend.act([flat.buffer for flat in flats], sinks, answer)
    first = 0
    for flat, sink, target, reduced in zip(flats, sinks, targets, axes, strict=True):
        if sink is flat.buffer and not (in_place and flat.source is None):
            backend.unpack(sink, strided(target, reduced), answer if in_place else None, first)
        first += flat.buffer.rows
    if in_place:
        # Whether there was anything to write, the device alone knows: the framework is told of it.
        report_writes(list(arrays))


# ---- what it answered -----------------------------------------------------------------------------


def _story(done: Sequence[_Asked], after: Answer | None, asked: str) -> Story:
    decided: list[Decided] = []
    for here in done:
        decided.append(_decided(here, asked))
        if decided[-1].skipped:
            return Story(decided, decided[-1].decision.clipped_norm)
    norm = decided[-1].decision.clipped_norm
    mixed = done[-1].stage.rule.order != done[0].stage.rule.order
    if after is not None and (norm is None or mixed):
        measured = _measured(done[0].stage, after.read())
        norm = float(scope_norms(measured, np.zeros(measured.found.sums.size, np.int64), 1).value()[0])
    return Story(decided, norm)


def _measured(stage: Stage, reading: Reading) -> Measured:
    order = stage.rule.order
    ones = np.ones(reading.found.sums.size)
    units = reading.units if order not in (1, 2, np.inf) else ones
    return Measured(reading.found, order, reading.exponents, units, stage.sanitize, reading.carried)


def _decided(here: _Asked, asked: str) -> Decided:
    """The same decision, made again from what the device measured: for its norms, which nobody needed there."""
    reading = here.answer.read()
    _refuse_fault(here.stage, reading, asked)
    stage = replace(here.stage, inverse=reading.inverse)
    if stage.weights is not None:
        weights = reading.weights
        limits = np.zeros(0)  # without a segment there are no weights either
        if weights is not None:
            limits = limits_of(_measured_weights(weights), stage.weights.clipping, stage.weights.eps)
        stage = replace(stage, scopes=Scopes(np.arange(limits.size), limits))
    return conclude(stage, _measured(stage, reading), here.segments)


def _measured_weights(reading: Reading) -> Measured:
    return Measured(reading.found, 2.0, reading.exponents, np.ones(reading.found.sums.size))


def _refuse_fault(stage: Stage, reading: Reading, asked: str) -> None:
    """What only the device could see to be no valid argument. It has left the gradients alone."""
    if reading.fault == "loss_scale":
        raise InvalidArgumentError(
            f"{asked}, loss_scale",
            f"the number on the device is {1.0 / reading.inverse if reading.inverse else np.inf!r}, "
            "which is no finite number > 0 with a normal reciprocal",
            "Pass the scale that the loss was multiplied with. No gradient was touched",
        )
    if reading.fault == "weights" and stage.weights is not None and reading.weights is not None:
        refuse_nonfinite_weights(stage.weights, _measured_weights(reading.weights).nonfinite, stage.rows)


def _refusal(here: _Asked, cargo: Cargo, asked: str) -> Exception:
    reading = here.answer.read()
    _refuse_fault(here.stage, reading, asked)
    ids = array_ids(here.stage.rows)
    count = here.stage.rows.size
    infs, nans = (np.bincount(ids, n, count).astype(np.int64) for n in (reading.found.infs, reading.found.nans))
    return refuse(asked, cargo.first_paths(), infs, nans)
