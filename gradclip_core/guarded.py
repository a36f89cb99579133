"""A decision, looked at once more: would its factor make finite elements infinite, or others zero?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.casting import cast_factor
from gradclip_core.errors import GradientUnderflowError, InvalidArgumentError, NonFiniteGradientError
from gradclip_core.forms import passes_of
from gradclip_core.plan import Segments, decide_nothing, decide_zero
from gradclip_core.precision import guards
from gradclip_core.project import Move
from gradclip_core.protocol import Backend, Buffer, DType
from gradclip_core.report import Decided, array_ids


def guard(
    backend: Backend,
    cargo: Cargo,
    buffers: Sequence[Buffer],
    here: Decided,
    moves: Sequence[Move],
    into: Sequence[DType] | None,
    underflow: str,
    asked: str,
) -> Decided:
    """The decision as the policies leave it, with the counts. Nothing has been written yet.

    ``into``: for each array another type that is written; overflows are saturated there.
    """
    if here.skipped:
        return replace(here, underflow=None if underflow == "ignore" else 0)
    stage, actions = here.stage, here.decision.actions
    if stage.nonfinite != "propagate":
        for move in moves:
            targets = [buffer.dtype for buffer in buffers] if into is None else into
            _refuse_too_large(backend, buffers, move, targets, asked)
    if into is None:
        here = _against_overflow(backend, cargo, buffers, here, asked)
    if underflow == "ignore":
        return here
    if here.skipped:
        count = 0
    elif into is None:
        count = guards.underflows(backend, buffers, actions)
    else:
        factor = cast_factor(actions, stage.shifts)
        count = guards.underflows_into(backend, buffers, actions, factor, into)
    if count and underflow == "raise":
        raise GradientUnderflowError(
            asked,
            f"{count} elements that are not zero would become zero in the dtype of {'out' if into else 'their array'}",
            "No gradient was touched. Clip into a wider dtype with out=, or pass underflow='count' or 'ignore'",
        )
    return replace(here, underflow=count)


def _refuse_too_large(
    backend: Backend, buffers: Sequence[Buffer], move: Move, targets: Sequence[DType], asked: str
) -> None:
    """A projection is not saturated: that would leave the set. One read pass, where it could be too large."""
    assert move.view is not None
    tops = [targets[i].largest for i in move.members for _ in range(buffers[i].rows)]
    if max(move.view.original(move.view.largest), move.view.onto.extent) <= min(tops, default=np.inf):
        return
    picked = [buffers[i] for i in move.members]
    ((*largest,),) = passes_of(backend).map(picked, None, move.reading, move.form, ["max_y"], rounded=False)
    for value, top in zip(largest, tops, strict=True):
        size = np.ldexp(value, move.reading.exponent)
        if size > top:
            raise InvalidArgumentError(
                asked,
                f"the projection has an element of {size:.4g}, and its dtype ends at {top:g}",
                "Pass a smaller set, or write into a wider dtype, with out=",
            )


def _against_overflow(backend: Backend, cargo: Cargo, buffers: Sequence[Buffer], here: Decided, asked: str) -> Decided:
    actions, stage = here.decision.actions, here.stage
    if stage.inverse <= 1 or stage.nonfinite == "propagate":
        return here
    picked = guards.overflowing(buffers, actions, np.ldexp(here.measured.found.largest, stage.shifts))
    if not picked.any():
        return here
    count = guards.overflows(backend, buffers, actions, picked)
    if not count and stage.nonfinite != "sanitize":
        return here  # only by-value limits on one side: they clamp whatever would overflow
    if stage.nonfinite == "sanitize":
        return replace(
            here, decision=replace(here.decision, actions=guards.saturated(buffers, actions, picked)), overflow=count
        )
    if stage.nonfinite == "raise":
        paths = cargo.first_paths()
        culprits = [paths[i] for i in np.unique(array_ids(stage.rows)[picked])]
        shown = ", ".join(f"'{path}'" for path in culprits[:8])
        raise NonFiniteGradientError(
            asked,
            f"{count} finite elements of {shown} would be infinite after unscaling by {1 / stage.inverse:g}",
            "No gradient was touched. Clip into a wider dtype with out=, or pass another nonfinite=",
        )
    segments = Segments.of(buffers)
    decision = decide_nothing(segments) if stage.nonfinite == "skip" else decide_zero(segments)
    return Decided(stage, here.measured, decision, True, overflow=count)
