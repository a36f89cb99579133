"""From a plan to the factors that an optimizer multiplies its gradients with as it reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.errors import GradClipError, InvalidArgumentError, show
from gradclip_core.passes import Axes
from gradclip_core.pipeline import Structure, check_alike
from gradclip_core.plan import actions_of
from gradclip_core.planned import Plan
from gradclip_core.protocol import LEAVE, Actions, IntArray

_CURE = "Call plan.apply_(grads), and then step(grads) without the plan"


def as_they_are(arrays: int) -> Actions:
    """Of gradients that are not clipped."""
    return actions_of(np.full(arrays, LEAVE, np.uint8), np.ones(arrays))


def deferred(plan: Any, cargo: Cargo, asked: str) -> Actions | None:
    """An entry for each of the gradients' arrays. None: the plan says that this step is to be skipped."""
    if plan is None:
        return as_they_are(len(cargo.arrays))
    if not isinstance(plan, Plan):
        seen = f"a {type(plan).__name__} is no plan"
        raise InvalidArgumentError(f"{asked}, plan={show(plan)}", seen, "Pass what gradclip_core.plan returned")
    if plan._applied:
        seen = "it has been applied in place already, and would scale the gradients a second time"
        raise GradClipError(f"{asked}, plan", seen, "Call step(grads) without the plan, or plan anew")
    check_alike(Structure.of(cargo), plan._structure, asked)
    if plan.info.skipped:
        return None
    asked = f"{asked}, plan"
    if not all(isinstance(step.actions, Actions) for step in plan._steps):
        raise GradClipError(asked, "it was made for gradients on a device", "Plan gradients that are in host memory")
    if any(here.stage.shifts.any() for here in plan._story().decided):
        cure = "Clip into float32 first, with clip(..., out=), and call step(out) without a plan"
        raise GradClipError(asked, "its array_scales would stay in the gradients", cure)
    # A stage that changes nothing is no pass: of a chain, one that does can be deferred.
    steps = [step for step in plan._steps if step.moves or not _changes_nothing(step.actions)]
    if len(steps) > 1:
        raise GradClipError(asked, "several rules of its chain change the gradients, one after the other", _CURE)
    if not steps:
        return as_they_are(len(cargo.arrays))
    (step,) = steps
    actions = step.actions
    assert isinstance(actions, Actions)
    if step.moves:
        raise GradClipError(asked, "it is a projection, and so another decision for each element", _CURE)
    one_factor = plan._story().one_factor is not None
    if not one_factor and (np.isfinite(actions.low).any() or np.isfinite(actions.high).any()):
        raise GradClipError(asked, "it clamps elements, and so is no factor", _CURE)
    if actions.sanitize and plan.info.nonfinite:
        raise GradClipError(asked, "it replaces elements that are not finite, and so is no factor", _CURE)
    return _of_arrays(actions, _rows(cargo, step.axes), asked)


def _changes_nothing(actions: Any) -> bool:
    return isinstance(actions, Actions) and not (actions.op != LEAVE).any()


def _rows(cargo: Cargo, axes: Axes) -> IntArray:
    """Segments of each array."""
    found = [
        1 if reduced is None else math.prod(n for axis, n in enumerate(docked.shape) if axis not in reduced)
        for docked, reduced in zip(cargo.arrays, axes, strict=True)
    ]
    return np.array(found, np.int64)


def _of_arrays(actions: Actions, rows: IntArray, asked: str) -> Actions:
    """From an entry for each segment to one for each array, where its units have one."""
    starts = np.cumsum(rows) - rows
    first = np.repeat(np.minimum(starts, max(0, actions.op.size - 1)), rows)
    alike = (actions.op == actions.op[first]) & (actions.factor == actions.factor[first])
    if not (alike | np.isnan(actions.factor) & np.isnan(actions.factor[first])).all():
        raise GradClipError(asked, "units of an array have different factors", _CURE)
    factor, op = np.ones(rows.size), np.full(rows.size, LEAVE, np.uint8)
    some = rows > 0
    factor[some], op[some] = actions.factor[starts[some]], actions.op[starts[some]]
    return actions_of(op, factor)
