"""measure → decide → apply by a framework's own operations, for arrays that have no memory to read.

Traced and lazy arrays have no values yet: whatever depends on one stays an array. On a device of a framework's own
(PyTorch's mps, xpu) the values are there, and are asked for where ``nonfinite="raise"`` or a write in place needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.errors import BackendError, GradClipError, InvalidArgumentError, NonFiniteGradientError
from gradclip_core.info import ClipInfo, Details, Facts
from gradclip_core.operations import Answer, Operations, Task, UnitLimits
from gradclip_core.plan import stored_values
from gradclip_core.precision.nonfinite import refuse
from gradclip_core.protocol import Backend
from gradclip_core.rules import Value
from gradclip_core.stages import Stage
from gradclip_core.traced_info import TracedInfo, tell_frameworks
from gradclip_core.validate import How

if TYPE_CHECKING:
    from gradclip_core.pipeline import Outcome, Target


def run_by_operations(
    cargo: Cargo, stages: Sequence[Stage], how: How, backend: Backend, passed: dict[str, list[str]], asked: str,
    target: Target,
) -> Outcome:  # fmt: skip
    """See ``pipeline.run``."""
    from gradclip_core.pipeline import Outcome

    operations, traced = operations_of(backend, cargo), symbolic(cargo)
    _refuse_unfit(how, traced, asked, target)
    arrays: Sequence[Any] = [docked.array for docked in cargo.arrays]
    answers: list[Answer] = []
    for stage in stages:
        task = task_of(cargo, stage, how, after=answers[-1].skipped if answers else None)
        answers.append(operations.clip(arrays, task))
        if stage.nonfinite == "raise" and bool(answers[-1].skipped):
            raise _refusal(answers[-1], cargo, asked)
        arrays = answers[-1].arrays
    first, last = answers[0], answers[-1]
    after = last.clipped_norm
    if stages[-1].rule.order != stages[0].rule.order:
        kinds = [(docked.dtype, docked.is_complex) for docked in cargo.arrays]
        after = operations.norm(arrays, kinds, stages[0].rule.order, how.mesh_axes)
    made = [replace(docked, array=x) for docked, x in zip(cargo.arrays, arrays, strict=True)]
    if target == "memory" and any(bool(answer.written) for answer in answers):
        for docked, x in zip(cargo.arrays, arrays, strict=True):
            cast(Any, docked.door).assign(docked.array, x)
        made = list(cargo.arrays)
    scale, clipped, scales = first.scale, first.clipped, first.scales
    for answer in answers[1:]:
        scale, clipped, scales = scale * answer.scale, clipped | answer.clipped, scales * answer.scales
    whole = replace(first, clipped_norm=after, scale=scale, clipped=clipped, skipped=last.skipped, scales=scales)
    info: Any = _traced_info(cargo, whole, backend.name) if traced else _info(cargo, whole, backend, passed)
    return Outcome(cargo, made, [], info, _no_story)


def norm_by_operations(backend: Backend, cargo: Cargo, ord: float, mesh_axes: tuple[str, ...] = ()) -> Any:
    """The norm of all arrays together: an array where they are traced, a float where the values are there."""
    operations = operations_of(backend, cargo)
    kinds = [(docked.dtype, docked.is_complex) for docked in cargo.arrays]
    norm = operations.norm([docked.array for docked in cargo.arrays], kinds, ord, mesh_axes)
    return norm if symbolic(cargo) else float(norm)


def symbolic(cargo: Cargo) -> bool:
    """Whether there are no values yet."""
    return bool(cargo.arrays) and cargo.arrays[0].symbolic


def operations_of(backend: Backend, cargo: Cargo) -> Operations:
    """A backend's ``Operations``, which it has said that it has."""
    found = getattr(backend, "operations", None)
    if found is None:
        raise BackendError(
            f"arrays on {cargo.device}",
            f"{backend.name} works on memory, and these have none that it could read",
            "Leave backend=None to have one chosen",
        )
    return cast(Operations, found)


def _refuse_unfit(how: How, traced: bool, asked: str, target: str) -> None:
    if target == "nothing":
        raise InvalidArgumentError(
            asked,
            "a plan is for arrays in memory, and these are worked on by their framework's operations",
            "Call clip, and multiply by info.scale: of its results, a compiler computes what is used",
        )
    if how.nonfinite == "raise" and traced:
        raise InvalidArgumentError(
            f"{asked}, nonfinite='raise'",
            "it is called while a function is traced (or for lazy arrays), where no value is there to raise on",
            "Pass nonfinite='skip', 'zero', 'sanitize' or 'propagate', and look at info.nonfinite where the values are",
        )
    if how.underflow != "ignore":
        raise InvalidArgumentError(
            f"{asked}, underflow={how.underflow!r}",
            "what a factor makes zero is counted in memory, and these arrays have none",
            "Pass underflow='ignore', or arrays in host memory",
        )


def task_of(cargo: Cargo, stage: Stage, how: How, after: Any) -> Task:
    """A stage as a backend's operations are asked it; ``after``: whether the rule before gave up."""
    task = Task(
        [(docked.dtype, docked.is_complex) for docked in cargo.arrays],
        stage.axes,
        stage.rows,
        stage.rule.order,
        stage.nonfinite,
        stage.inverse,
        stage.device_scale,
        mesh_axes=how.mesh_axes,
        after=after,
    )
    if isinstance(stage.rule, Value):
        kinds = {docked.dtype.name: docked.dtype for docked in cargo.arrays}
        bounds = {name: stored_values(stage.limit, dtype) for name, dtype in kinds.items()}
        return replace(task, bounds={name: (low, high) for name, (low, high) in bounds.items()})
    weights = stage.weights
    if weights is None:
        return replace(task, scopes=stage.scopes, bound=getattr(stage.rule, "traced_bound", None))
    if how.mesh_axes:
        raise InvalidArgumentError(
            f"adaptive_clip, mesh_axes={how.mesh_axes!r}",
            "a unit may be whole on one shard, or cut, and only its own shards are to be added up",
            "Leave mesh_axes out where units are whole; or clip outside shard_map, under jit",
        )
    kinds_of_weights = [(w.dtype, w.is_complex) for w in weights.arrays]
    arrays = [w.array for w in weights.arrays]
    return replace(task, units=UnitLimits(arrays, kinds_of_weights, weights.clipping, weights.eps))


def _refusal(answer: Answer, cargo: Cargo, asked: str) -> GradClipError:
    infs, nans = (np.array(list(map(int, counts)), np.int64) for counts in (answer.array_infs, answer.array_nans))
    if infs.any() or nans.any():
        return refuse(asked, cargo.first_paths(), infs, nans)
    return NonFiniteGradientError(
        asked,
        f"{int(answer.overflow)} finite elements would be infinite after unscaling",
        "No gradient was touched. Pass another nonfinite=",
    )


def _traced_info(cargo: Cargo, answer: Answer, backend: str) -> TracedInfo:
    tell_frameworks()
    numbers = (
        answer.norm, answer.clipped_norm, answer.scale, answer.clipped, answer.skipped,
        answer.infs, answer.nans, answer.overflow,
        answer.norms, answer.scales, answer.array_infs, answer.array_nans,
    )  # fmt: skip
    return TracedInfo(*numbers, tuple(cargo.tree.paths), tuple(cargo.index), backend)


def _info(cargo: Cargo, answer: Answer, backend: Backend, passed: dict[str, list[str]]) -> ClipInfo:
    names = cargo.names()

    def facts() -> Facts:
        return Facts(
            float(answer.norm),
            float(answer.clipped_norm),
            float(answer.scale),
            bool(answer.clipped),
            bool(answer.skipped),
            int(answer.infs),
            int(answer.nans),
            overflow=int(answer.overflow),
        )

    def details() -> Details:
        leaves = list(zip(names.index, names.tree.paths, strict=True))
        counts = [(int(infs), int(nans)) for infs, nans in zip(answer.array_infs, answer.array_nans, strict=True)]
        return (
            {path: float(answer.norms[i]) for i, path in leaves},
            {path: float(answer.scales[i]) for i, path in leaves},
            {path: counts[i] for i, path in leaves if any(counts[i])},
        )

    return ClipInfo(facts, details, backend.name, passed)


def _no_story() -> Any:
    raise AssertionError("a plan of arrays without memory was refused")
