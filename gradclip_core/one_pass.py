"""Clipping by value in place under ``nonfinite="propagate"``, in one pass.

Elsewhere a call is measured, decided, written, and measured again for the norm that came of it. By value an
element's fate is its own, and under "propagate" nothing is refused: a backend that has ``clamp`` measures a
block, writes it if anything in it is beyond the limits, and measures what it wrote, while it is in the cache.
The same bits, and the same info.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from gradclip_core.arrays.docked import Docked
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import Flats, report_written, write_in_place
from gradclip_core.plan import Segments, actions_of, stored_limits
from gradclip_core.precision.factors import round_down_float32, split
from gradclip_core.protocol import FLOAT64, LEAVE, Backend, Buffer, FloatArray, Measurements
from gradclip_core.report import Decided, Story, conclude
from gradclip_core.rules import Value
from gradclip_core.stages import Stage


class Clamps(Protocol):
    """A backend that clamps in one pass."""

    def clamp(
        self, buffers: Sequence[Buffer], low: FloatArray, high: FloatArray, coarse: np.float32, fine: np.float32
    ) -> tuple[Measurements, FloatArray]:
        """Multiply by both factors and clamp, in place; ``low`` and ``high`` have an entry for each segment.

        Returns what ``measure`` would have found before, and each segment's sum of squares after. No float64.
        """
        ...


def clamp_in_one_pass(
    backend: Backend, arrays: Sequence[Docked], stages: Sequence[Stage], flats: Flats, underflow: str
) -> Story | None:
    """What became of the call; None where it cannot be done in one pass, and nothing has been done."""
    stage = stages[0]
    if len(stages) > 1 or not isinstance(stage.rule, Value) or stage.nonfinite != "propagate" or underflow != "ignore":
        return None
    low, high = stage.limit
    unlike = low != -high and stage.inverse != 1
    if not hasattr(backend, "clamp") or unlike or not _fit(flats):
        return None
    segments = Segments.of(flats.buffers)
    factor = round_down_float32(np.array([stage.inverse]))
    coarse, fine = split(factor)
    lows, highs = stored_limits(stage.limit, segments)
    found, after = cast(Clamps, backend).clamp(flats.buffers, lows, highs, coarse[0], fine[0])
    count = after.size
    whole = np.zeros(count, np.int64)
    measured = Measured(found, 2.0, whole, np.ones(count))
    here: Decided = conclude(stage, measured, segments)
    op = here.decision.actions.op
    # A NaN that signals is quiet once it was multiplied, in whatever block of a segment that is written.
    noisy = (op != LEAVE) & (found.nans > 0)
    if noisy.any():
        again = actions_of(np.where(noisy, op, LEAVE).astype(np.uint8), np.ones(count), lows, highs)
        write_in_place(backend, arrays, flats, again)
    report_written(arrays, flats, op)
    norm = here.decision.clipped_norm
    if norm is None:
        sums = Measurements(after, found.largest, found.infs, found.nans, found.outside, found.carries)
        norm = float(scope_norms(Measured(sums, 2.0, whole, np.ones(count)), whole, 1).value()[0])
    return Story([here], norm)


def _fit(flats: Flats) -> bool:
    """Whether all memory is the arrays' own, and none of it float64, which may have to be measured again."""
    if flats.manifest is not None:
        return FLOAT64 not in flats.manifest.distinct
    return all(flat.packed is None and flat.buffer.dtype is not FLOAT64 for flat in flats)
