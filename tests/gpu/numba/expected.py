"""What a decision should be: the reference's measurements, and ``plan.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradclip_core import passes
from gradclip_core.device import Case
from gradclip_core.norms import Measured
from gradclip_core.plan import Segments, decide_norms, decide_nothing, decide_value, decide_zero, needs_carries
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.protocol import Actions, Buffer, Scopes, segments
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.unitwise import limits_of

FIELDS = ("op", "factor", "coarse", "fine", "low", "high")


@ieee_arithmetic
def expected(buffers: Sequence[Buffer], case: Case) -> Actions:
    """Of arrays in host memory, whatever device they claim to be on."""
    known = Segments.of(buffers)
    sanitize = case.nonfinite == "sanitize"
    order = case.ord
    bounds = None
    if case.bounds is not None and not case.symmetric:
        ends = np.array([case.bounds[dtype.name] for dtype in known.dtypes]).reshape(-1, 2)
        low, high = ends[known.kinds, 0], ends[known.kinds, 1]
        bounds = (low / case.inverse, high / case.inverse)
    measured = passes.measure(REFERENCE, buffers, order, sanitize=sanitize, bounds=bounds)
    if measured.nonfinite.any() and case.nonfinite in ("raise", "skip"):
        return decide_nothing(known).actions
    if measured.nonfinite.any() and case.nonfinite == "zero":
        return decide_zero(known).actions
    if case.bounds is not None:
        limit = case.bounds["float64"]
        return decide_value(measured, limit, known, case.inverse, sanitize).actions
    scopes = _scopes(case, segments(buffers))
    if needs_carries(measured, scopes, known, case.inverse):
        measured = passes.measure_carries(REFERENCE, buffers, measured, sanitize=sanitize)
    return decide_norms(measured, scopes, known, case.inverse, sanitize).actions


def _scopes(case: Case, count: int) -> Scopes:
    if case.weights is None:
        assert case.scopes is not None
        return case.scopes
    weights: Measured = passes.measure(REFERENCE, case.weights.buffers, 2.0)
    return Scopes(np.arange(count), limits_of(weights, case.weights.clipping, case.weights.eps))


def different(found: Actions, wanted: Actions, tolerance: float = 0.0) -> list[str]:
    """The fields that differ, with the first values that do. NaN equals NaN, 0 is not -0.

    ``tolerance``, relative, is for general orders: ``pow`` is another function on every platform.
    """
    told = []
    for field in FIELDS:
        ours, theirs = (np.asarray(getattr(actions, field), np.float64) for actions in (found, wanted))
        with np.errstate(invalid="ignore"):
            near = (ours == theirs) | (np.abs(ours - theirs) <= tolerance * np.abs(theirs))
        same = near & (np.signbit(ours) == np.signbit(theirs)) | (np.isnan(ours) & np.isnan(theirs))
        if not same.all():
            i = int(np.flatnonzero(~same)[0])
            told.append(f"{field}[{i}] is {ours[i]!r}, and the host says {theirs[i]!r}")
    return told
