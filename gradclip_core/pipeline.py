"""measure → decide → apply: the one way that every public function goes.

``device_run.py`` goes it where the gradients are on a device that can decide for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradclip_core import projected
from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.express import Fleet, new_alike
from gradclip_core.arrays.symbols import of_one_program
from gradclip_core.casting import Cast, cast_to, write_cast
from gradclip_core.device import Answer, DeviceBackend
from gradclip_core.errors import GradClipError, InvalidArgumentError
from gradclip_core.guarded import guard
from gradclip_core.info import ClipInfo
from gradclip_core.norms import scope_norms
from gradclip_core.one_pass import clamp_in_one_pass
from gradclip_core.passes import Axes, Flats, choose, flatten_all, measure, measure_carries, write_in_place, write_new
from gradclip_core.plan import Segments, needs_carries
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.precision.nonfinite import refuse
from gradclip_core.project import Move, Project
from gradclip_core.protocol import LEAVE, Actions, Backend, DType, FloatArray, Scopes
from gradclip_core.report import Decided, Story, array_ids, conclude, report
from gradclip_core.rules import Rule, Value
from gradclip_core.stages import Stage, prepare, refuse_complex, traced_number
from gradclip_core.traced_info import tell_frameworks
from gradclip_core.tracing import in_graph
from gradclip_core.unitwise import measured_limits
from gradclip_core.validate import Common, How

Target = Literal["nothing", "memory", "new"]


@dataclass(frozen=True, slots=True)
class Step:
    """One decided stage: enough to write it again, elsewhere, without measuring."""

    axes: Axes
    actions: Actions | Answer
    moves: Sequence[Move] = ()
    """Of a projection: what becomes of the scopes that ``actions`` leaves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves behind. ``arrays`` is where the result is."""

    cargo: Cargo
    arrays: Sequence[Docked]
    steps: list[Step]
    info: ClipInfo
    story: Callable[[], Story]


@ieee_arithmetic
def run(
    grads: Any, rule: Rule, how: How, asked: str, target: Target, out: Any = None, dtype: DType | None = None
) -> Outcome:
    """Measure, decide, and write to ``target``: nowhere, over the gradients, or into new arrays.

    New arrays may be the caller's ``out``, or of another ``dtype``.
    """
    cargo = unload(grads, asked, in_place=target == "memory", parts=True)
    if cargo.in_memory and (symbol := traced_number(rule, how)) is not None:
        if target == "memory":
            seen, cure = "its max_norm or loss_scale is traced, and the gradients are not", "Use the function without _"
            raise InvalidArgumentError(asked, seen, cure)
        cargo = of_one_program(cargo, asked, symbol)
    refuse_complex(cargo, asked, rule)
    backend, passed = choose(how.backend, cargo.arrays)
    if cargo.holds:
        from gradclip_core import held

        backend = held.fitting(cargo, backend, asked, rule, out)
    for part in rule.stages:
        if isinstance(part, Project):
            part.refuse_unfit(cargo, backend, asked)
    cast = cast_to(out, dtype, cargo, backend, asked)
    if not cargo.in_memory:
        from gradclip_core.operations_run import run_by_operations

        return run_by_operations(cargo, prepare(cargo, rule, how), how, backend, passed, asked, target)
    if not cargo.arrays:
        tell_frameworks()  # a function that is traced may return what is said of nothing
    how.refuse_mesh_axes(asked)
    if cargo.device != "cpu" and isinstance(backend, DeviceBackend):
        if how.underflow != "ignore":
            raise InvalidArgumentError(
                f"{asked}, underflow={how.underflow!r}",
                f"{backend.name} decides on {cargo.device}, where what a factor makes zero is not counted",
                "Pass underflow='ignore', or arrays in host memory",
            )
        from gradclip_core.device_run import run_on_device

        return run_on_device(cargo, prepare(cargo, rule, how), backend, passed, asked, target)
    how = how.known_on_host()
    stages = [_with_limits(stage) for stage in prepare(cargo, rule, how)]
    if cargo.holds:
        held.compare(cargo, backend, asked, stages, target, how.underflow, dtype)
    if how.underflow == "raise" and len(stages) > 1 and target == "memory":
        # What a later rule makes zero is known only after an earlier one has written: into scratch memory first.
        _run_on_host(cargo, stages, backend, passed, asked, "nothing", how.underflow, None)
    return _run_on_host(cargo, stages, backend, passed, asked, target, how.underflow, cast)


def _with_limits(stage: Stage) -> Stage:
    """Scopes whose limits come of weights, with those limits."""
    if stage.weights is None:
        return stage
    scopes = Scopes(np.arange(int(stage.rows.sum())), measured_limits(stage.weights))
    return replace(stage, scopes=scopes)


def _run_on_host(
    cargo: Cargo,
    stages: Sequence[Stage],
    backend: Backend,
    passed: dict[str, list[str]],
    asked: str,
    target: Target,
    underflow: str,
    cast: Cast | None,
) -> Outcome:
    current: Sequence[Docked] = cargo.arrays
    targets: Sequence[Docked]
    steps: list[Step] = []
    decided: list[Decided] = []
    for number, stage in enumerate(stages):
        flats = flatten_all(backend, current, stage.axes)
        if target == "memory" and (clamped := clamp_in_one_pass(backend, current, stages, flats, underflow)):
            info = report(cargo.names(), lambda: clamped, backend.name, passed, known=True)
            return Outcome(cargo, current, steps, info, lambda: clamped)
        here, moves = _decide(backend, cargo, stage, current, flats, asked)
        into = cast.dtypes(current) if cast is not None and number == len(stages) - 1 else None
        here = guard(backend, cargo, flats.buffers, here, moves, into, underflow, asked)
        moves = () if here.skipped else moves
        actions = here.decision.actions
        steps.append(Step(stage.axes, actions, [replace(move, view=None) for move in moves]))
        # Later stages, and the norm after a by-value clip, can only be known from what was
        # written; a plan writes that into scratch memory of its own.
        last = number == len(stages) - 1 or here.skipped
        needs_result = not last or (here.decision.clipped_norm is None and not here.skipped)
        found: list[FloatArray] = []
        if cast is not None and last:
            if cast.fresh or not (here.skipped and stage.nonfinite == "skip"):
                targets = cast.targets(current)
                found = write_cast(backend, current, targets, flats, stage.axes, actions, moves, stage.shifts)
                current = targets
        elif target == "memory" or number > 0:
            found = _write(backend, current, current, flats, stage.axes, actions, moves)
        elif target == "new" or needs_result:
            # Arrays that nobody may write are as good as copies of themselves.
            targets = current if _stay(current, actions, moves) else new_alike(current)
            found = _write(backend, current, targets, flats, stage.axes, actions, moves)
            current = targets
        elif moves:
            found = projected.foresee(backend, moves, flats)
        here = projected.conclude(here, moves, found)
        if moves and current is cargo.arrays and target == "nothing" and here.decision.clipped_norm is None:
            targets = new_alike(current)
            _write(backend, current, targets, flats, stage.axes, actions, moves)
            current = targets
        decided.append(here)
        if last:
            break
    after = decided[-1].decision.clipped_norm
    # A chain reports both norms in its first rule's order.
    if not decided[-1].skipped and (after is None or stages[-1].rule.order != stages[0].rule.order):
        after = _norm(backend, current, stages[0].rule.order)
    story = Story(decided, after)
    info = report(cargo.names(), lambda: story, backend.name, passed, known=True)
    return Outcome(cargo, current, steps, info, lambda: story)


def _stay(arrays: Sequence[Docked], actions: Actions, moves: Sequence[Move]) -> bool:
    if moves or (actions.op != LEAVE).any():
        return False
    return arrays.read_only if isinstance(arrays, Fleet) else all(docked.immutable for docked in arrays)


def _write(
    backend: Backend,
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Flats,
    axes: Axes,
    actions: Actions,
    moves: Sequence[Move],
) -> list[FloatArray]:
    """Carry out a decision, in place where ``targets`` is ``arrays``. Returns the moments of the moves."""
    if moves:
        return projected.write_moves(backend, moves, arrays, targets, flats, axes, actions)
    if targets is arrays:
        write_in_place(backend, arrays, flats, actions)
    else:
        write_new(backend, arrays, targets, flats, axes, actions)
    return []


@dataclass(frozen=True, slots=True)
class Structure:
    """What gradients look like, without holding on to them: a plan fits gradients that look the same."""

    leaves: list[tuple[str, tuple[int, ...], str]]
    index: list[int]

    @classmethod
    def of(cls, cargo: Cargo) -> Structure:
        """Path, shape and dtype of every leaf, and which leaves are one array."""
        looks = cargo.looks
        leaves = [(path, *looks[i]) for i, path in zip(cargo.index, cargo.tree.paths, strict=True)]
        return cls(leaves, list(cargo.index))


@ieee_arithmetic
def replay(backend_name: str, grads: Any, steps: Sequence[Step], like: Structure, asked: str, target: Target) -> Any:
    """Write decided steps to gradients of the same structure. Returns the new container, if any."""
    cargo = unload(grads, asked, in_place=target == "memory", parts=True)
    check_alike(Structure.of(cargo), like, asked)
    backend, _ = choose(backend_name, cargo.arrays)
    current: Sequence[Docked] = cargo.arrays
    for number, step in enumerate(steps):
        targets = current if target == "memory" or number > 0 else new_alike(current)
        if isinstance(step.actions, Actions):
            flats = flatten_all(backend, current, step.axes)
            _write(backend, current, targets, flats, step.axes, step.actions, step.moves)
        else:
            from gradclip_core.device_run import write

            assert isinstance(backend, DeviceBackend)
            write(backend, current, targets, step.axes, step.actions)
        current = targets
    return finish(cargo, current) if target == "new" else None


def finish(cargo: Cargo, arrays: Sequence[Docked]) -> Any:
    """The user's container around new arrays; a leaf that was there twice is one array again."""
    if isinstance(arrays, Fleet):
        made = arrays.finished(cargo.arrays)
    else:
        pairs = zip(arrays, cargo.arrays, strict=True)
        made = [old.array if new is old and old.holder is None else new.door.finish(new, old) for new, old in pairs]
    return cargo.tree.rebuild([made[i] for i in cargo.index])


def run_new(
    grads: Any, rule: Rule, how: Common, asked: str, out: Any = None, dtype: DType | None = None
) -> tuple[Any, ClipInfo]:
    """What every function that returns new arrays does; ``out``'s, or arrays of ``dtype``, for those that can."""
    if in_graph():
        from gradclip_core.arrays.torch_compile import clip_new

        return clip_new(grads, rule, how, asked, out, dtype, run_new_eagerly)  # type: ignore[no-any-return]
    return run_new_eagerly(grads, rule, how, asked, out, dtype)


def run_new_eagerly(
    grads: Any, rule: Rule, how: Common, asked: str, out: Any = None, dtype: DType | None = None
) -> tuple[Any, ClipInfo]:
    """``run_new`` for who needs the values at once: ``torch.compile`` breaks its graph here."""
    outcome = run(grads, rule, How.of(how), asked, "new", out, dtype)
    return finish(outcome.cargo, outcome.arrays) if out is None else out, outcome.info


def run_in_place(grads: Any, rule: Rule, how: Common, asked: str) -> ClipInfo:
    """What every function that works in place does."""
    if in_graph():
        from gradclip_core.arrays.torch_compile import clip_in_place

        return clip_in_place(grads, rule, how, asked, run_in_place_eagerly)  # type: ignore[no-any-return]
    return run_in_place_eagerly(grads, rule, how, asked)


def run_in_place_eagerly(grads: Any, rule: Rule, how: Common, asked: str) -> ClipInfo:
    """``run_in_place``, in the same way."""
    return run(grads, rule, How.of(how), asked, "memory").info


def _decide(
    backend: Backend, cargo: Cargo, stage: Stage, current: Sequence[Docked], flats: Flats, asked: str
) -> tuple[Decided, Sequence[Move]]:
    buffers = flats.buffers
    segments = Segments.of(buffers)
    bounds = stage.bounds(segments)
    measured = measure(backend, buffers, stage.rule.order, sanitize=stage.sanitize, bounds=bounds)
    measured = measured.shifted(stage.shifts)
    if stage.nonfinite == "raise" and measured.nonfinite.any():
        ids = array_ids(stage.rows)
        infs, nans = (
            np.bincount(ids, n, stage.rows.size).astype(np.int64) for n in (measured.found.infs, measured.found.nans)
        )
        raise refuse(asked, cargo.first_paths(), infs, nans)
    goes_on = not (measured.nonfinite.any() and stage.nonfinite in ("skip", "zero"))
    if goes_on and isinstance(stage.rule, Project):
        return projected.decide(backend, cargo, stage, current, flats, measured)
    if goes_on and not isinstance(stage.rule, Value):
        assert stage.scopes is not None
        if needs_carries(measured, stage.scopes, segments, stage.inverse):
            measured = measure_carries(backend, buffers, measured, sanitize=stage.sanitize)
    return conclude(stage, measured, segments), ()


def _norm(backend: Backend, arrays: Sequence[Docked], ord: float) -> float:
    measured = measure(backend, flatten_all(backend, arrays, [None] * len(arrays)).buffers, ord)
    return float(scope_norms(measured, np.zeros(measured.found.sums.size, np.int64), 1).value()[0])


def check_alike(ours: Structure, theirs: Structure, asked: str) -> None:
    """Refuse gradients of another structure than a plan was made for."""
    if ours == theirs:
        return
    different = next((pair for pair in zip(ours.leaves, theirs.leaves, strict=False) if pair[0] != pair[1]), None)
    if different:
        (path, shape, dtype), (planned, planned_shape, planned_dtype) = different
        seen = (
            f"array '{path}' is {dtype} of shape {shape}; planned was '{planned}', {planned_dtype} of {planned_shape}"
        )
    elif len(ours.leaves) != len(theirs.leaves):
        seen = f"the number of arrays is {len(ours.leaves)}, and the plan is for {len(theirs.leaves)}"
    else:
        seen = "arrays that were one when it was planned are two now, or two are one"
    raise GradClipError(asked, seen, "Apply a plan to gradients of the structure that it was made for")
