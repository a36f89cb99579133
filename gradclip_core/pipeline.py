"""measure → decide → apply: the one way that every public function goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import Flat, flatten_memory
from gradclip_core.errors import GradClipError, UnsupportedArrayError
from gradclip_core.info import ClipInfo
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import Axes, choose, measure, measure_carries, write_in_place, write_new
from gradclip_core.plan import (
    Decision,
    Scopes,
    Segments,
    decide_norms,
    decide_nothing,
    decide_value,
    decide_zero,
    needs_carries,
    stored_limits,
)
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.precision.nonfinite import refuse
from gradclip_core.protocol import Actions, Backend, FloatArray, IntArray
from gradclip_core.rules import NormRule, Rule, Site, Value
from gradclip_core.validate import How

Target = Literal["nothing", "memory", "new"]


@dataclass(frozen=True, slots=True)
class Step:
    """One decided stage: enough to write it again, elsewhere, without measuring."""

    axes: Axes
    actions: Actions


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves behind. ``arrays`` is where the result is."""

    cargo: Cargo
    arrays: Sequence[Docked]
    steps: list[Step]
    info: ClipInfo
    one_factor: float | None
    skipped: bool


@dataclass(frozen=True, slots=True)
class _Stage:
    """A rule's view of the arrays, before any value was read."""

    rule: Rule
    axes: list[tuple[int, ...] | None]
    scopes: Scopes | None
    inverse: float
    nonfinite: str


@dataclass(frozen=True, slots=True)
class _Decided:
    stage: _Stage
    measured: Measured
    decision: Decision
    rows: IntArray
    skipped: bool


@ieee_arithmetic
def run(grads: Any, rule: Rule, how: How, asked: str, target: Target) -> Outcome:
    """Measure, decide, and write to ``target``: nowhere, over the gradients, or into new arrays."""
    cargo = unload(grads, asked, in_place=target == "memory")
    refuse_complex(cargo, asked, rule)
    backend, passed = choose(how.backend, cargo.arrays)
    stages = _prepare(cargo, rule, how)

    current: Sequence[Docked] = cargo.arrays
    steps: list[Step] = []
    decided: list[_Decided] = []
    for number, stage in enumerate(stages):
        flats = [flatten_memory(docked, axes) for docked, axes in zip(current, stage.axes, strict=True)]
        here = _decide(backend, cargo, stage, flats, asked)
        decided.append(here)
        steps.append(Step(stage.axes, here.decision.actions))
        # Later stages, and the norm after a by-value clip, can only be known from what was
        # written; a plan writes that into scratch memory of its own.
        last = number == len(stages) - 1 or here.skipped
        needs_result = not last or (here.decision.clipped_norm is None and not here.skipped)
        if target == "memory" or number > 0:
            write_in_place(backend, current, flats, here.decision.actions)
        elif target == "new" or needs_result:
            targets = [docked.door.new_like(docked) for docked in current]
            write_new(backend, current, targets, flats, stage.axes, here.decision.actions)
            current = targets
        if last:
            break
    after = decided[-1].decision.clipped_norm
    if after is None and not decided[-1].skipped:
        after = _norm(backend, current, rule.order)
    info = _report(cargo, decided, after, backend.name, passed)
    factors = [here.decision.one_factor for here in decided]
    one_factor = None if None in factors else float(np.prod([f for f in factors if f is not None]))
    return Outcome(cargo, current, steps, info, one_factor, decided[-1].skipped)


@dataclass(frozen=True, slots=True)
class Structure:
    """What gradients look like, without holding on to them: a plan fits gradients that look the same."""

    leaves: list[tuple[str, tuple[int, ...], str]]
    index: list[int]

    @classmethod
    def of(cls, cargo: Cargo) -> Structure:
        """Path, shape and dtype of every leaf, and which leaves are one array."""
        arrays = (cargo.arrays[i] for i in cargo.index)
        leaves = [(p, a.shape, a.dtype.name) for a, p in zip(arrays, cargo.tree.paths, strict=True)]
        return cls(leaves, cargo.index)


@ieee_arithmetic
def replay(backend_name: str, grads: Any, steps: Sequence[Step], like: Structure, asked: str, target: Target) -> Any:
    """Write decided steps to gradients of the same structure. Returns the new container, if any."""
    cargo = unload(grads, asked, in_place=target == "memory")
    _check_alike(Structure.of(cargo), like, asked)
    backend, _ = choose(backend_name, cargo.arrays)
    current: Sequence[Docked] = cargo.arrays
    for number, step in enumerate(steps):
        flats = [flatten_memory(docked, axes) for docked, axes in zip(current, step.axes, strict=True)]
        if target == "memory" or number > 0:
            write_in_place(backend, current, flats, step.actions)
        else:
            targets = [docked.door.new_like(docked) for docked in current]
            write_new(backend, current, targets, flats, step.axes, step.actions)
            current = targets
    return finish(cargo, current) if target == "new" else None


def finish(cargo: Cargo, arrays: Sequence[Docked]) -> Any:
    """The user's container around new arrays; a leaf that was there twice is one array again."""
    made = [new.door.finish(new, old) for new, old in zip(arrays, cargo.arrays, strict=True)]
    return cargo.tree.rebuild([made[i] for i in cargo.index])


def refuse_complex(cargo: Cargo, asked: str, rule: Rule) -> None:
    """Complex numbers have a 2-norm, that of their parts, and no order: no other rule means anything."""
    if all(isinstance(stage, NormRule) and stage.order == 2 for stage in rule.stages):
        return
    for i, docked in enumerate(cargo.arrays):
        if docked.is_complex:
            raise UnsupportedArrayError(
                f"{asked}, array '{cargo.first_path(i)}'",
                "it is complex, and complex numbers have no order and no norm but that with ord=2",
                "Clip by a norm with ord=2, or pass its real and imaginary parts",
            )


def _prepare(cargo: Cargo, rule: Rule, how: How) -> list[_Stage]:
    """Everything that can be refused, refused before the first write of the first stage."""
    site = Site(cargo)
    stages = []
    for number, part in enumerate(rule.stages):
        axes = part.unit_axes(site)
        if axes is None:
            axes, rows = [None] * len(cargo.arrays), np.ones(len(cargo.arrays), np.int64)
        else:
            rows = np.array([_rows(shape, a) for shape, a in zip(site.shapes, axes, strict=True)], np.int64)
        scopes = part.scopes(site, rows) if isinstance(part, NormRule) else None
        first = number == 0
        stages.append(
            _Stage(part, axes, scopes, how.inverse_scale if first else 1.0, how.nonfinite if first else "propagate")
        )
    return stages


def _rows(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> int:
    if axes is None or len(axes) == len(shape):
        return 1
    return int(np.prod([n for axis, n in enumerate(shape) if axis not in axes], dtype=np.int64))


def _decide(backend: Backend, cargo: Cargo, stage: _Stage, flats: Sequence[Flat], asked: str) -> _Decided:
    buffers = [flat.buffer for flat in flats]
    segments = Segments.of(buffers)
    rows = np.array([buffer.rows for buffer in buffers], np.int64)
    sanitize = stage.nonfinite == "sanitize"
    measured = measure(backend, buffers, stage.rule.order, sanitize=sanitize, bounds=_bounds(stage, segments))
    if measured.nonfinite.any():
        if stage.nonfinite == "raise":
            infs, nans = (
                np.bincount(_array_ids(rows), n, rows.size).astype(np.int64)
                for n in (measured.found.infs, measured.found.nans)
            )
            raise refuse(asked, cargo.first_paths(), infs, nans)
        if stage.nonfinite == "skip":
            return _Decided(stage, measured, decide_nothing(segments), rows, True)
        if stage.nonfinite == "zero":
            return _Decided(stage, measured, decide_zero(segments), rows, True)
    if isinstance(stage.rule, Value):
        limit = stage.rule.limit
        assert isinstance(limit, tuple)
        decision = decide_value(measured, limit, segments, stage.inverse, sanitize)
    else:
        assert stage.scopes is not None
        if needs_carries(measured, stage.scopes, segments, stage.inverse):
            measured = measure_carries(backend, buffers, measured, sanitize=sanitize)
        decision = decide_norms(measured, stage.scopes, segments, stage.inverse, sanitize)
    return _Decided(stage, measured, decision, rows, False)


def _bounds(stage: _Stage, segments: Segments) -> tuple[FloatArray, FloatArray] | None:
    """For (low, high) that are not symmetric, the largest magnitude does not tell who is outside."""
    if not isinstance(stage.rule, Value):
        return None
    limit = stage.rule.limit
    assert isinstance(limit, tuple)
    if limit[0] == -limit[1]:
        return None
    low, high = stored_limits(limit, segments.dtypes)
    return low / stage.inverse, high / stage.inverse


def _norm(backend: Backend, arrays: Sequence[Docked], ord: float) -> float:
    buffers = [flatten_memory(docked).buffer for docked in arrays]
    measured = measure(backend, buffers, ord)
    return float(scope_norms(measured, np.zeros(measured.found.sums.size, np.int64), 1).value()[0])


def _array_ids(rows: IntArray) -> IntArray:
    return np.repeat(np.arange(rows.size), rows)


def _report(
    cargo: Cargo, decided: Sequence[_Decided], after: float | None, backend: str, passed: dict[str, list[str]]
) -> ClipInfo:
    first, last = decided[0], decided[-1]
    inverse = first.stage.inverse
    ids = _array_ids(first.rows)
    norm = float(scope_norms(first.measured, np.zeros_like(ids), 1).value(inverse)[0])

    @ieee_arithmetic
    def factors() -> FloatArray:
        product = np.ones(len(cargo.arrays))
        for here in decided:
            smallest = np.full(len(cargo.arrays), np.inf)
            np.minimum.at(smallest, _array_ids(here.rows), here.decision.actions.factor)
            product *= np.where(np.isposinf(smallest), 1.0, smallest)  # an array without elements
        return product

    @ieee_arithmetic
    def details() -> tuple[dict[str, float], dict[str, float], list[str]]:
        norms = scope_norms(first.measured, ids, first.rows.size).value(inverse).tolist()
        scales = factors().tolist()
        counts = np.bincount(ids, first.measured.nonfinite, first.rows.size)
        leaves = list(zip(cargo.index, cargo.tree.paths, strict=True))
        return (
            {path: norms[i] for i, path in leaves},
            {path: scales[i] for i, path in leaves},
            [path for i, path in leaves if counts[i]],
        )

    smallest = float(np.min(factors())) if cargo.arrays else inverse
    return ClipInfo(
        norm=norm,
        clipped_norm=norm if after is None else after,
        scale=smallest,
        clipped=any(here.decision.clipped for here in decided),
        skipped=last.skipped,
        nonfinite=int(first.measured.nonfinite.sum()),
        backend=backend,
        passed_over=passed,
        _details=details,
    )


def _check_alike(ours: Structure, theirs: Structure, asked: str) -> None:
    if ours == theirs:
        return
    different = next((pair for pair in zip(ours.leaves, theirs.leaves, strict=False) if pair[0] != pair[1]), None)
    if different:
        (path, shape, dtype), (planned, planned_shape, planned_dtype) = different
        seen = (
            f"array '{path}' is {dtype} of shape {shape}; planned was '{planned}', {planned_dtype} of {planned_shape}"
        )
    elif len(ours.leaves) != len(theirs.leaves):
        seen = f"there are {len(ours.leaves)} arrays, and the plan is for {len(theirs.leaves)}"
    else:
        seen = "arrays that were one when it was planned are two now, or two are one"
    raise GradClipError(asked, seen, "Apply a plan to gradients of the structure that it was made for")
