"""The certificates of the older rules that are projections: an L2 ball for each scope, and a box.

They follow from the few numbers that were measured and decided: nothing is read again. Radial
clipping by another norm than the 2-norm is no Euclidean projection, and has none.
"""

from __future__ import annotations

import math

import numpy as np

from gradclip_core.norms import Measured, scope_norms
from gradclip_core.plan import Decision, over
from gradclip_core.protocol import FloatArray
from gradclip_core.rules import ArrayNorm, GlobalNorm, GroupNorm, Value
from gradclip_core.sets.base import INSIDE, Certificate
from gradclip_core.stages import Stage


def of_older_rule(stage: Stage, measured: Measured, decision: Decision) -> Certificate | None:
    """That of a rule which is the projection on L2 balls or a box; None for others, and where NaNs went through."""
    if measured.nonfinite.any() and not stage.sanitize:
        return None
    if isinstance(stage.rule, Value):
        return _of_box(stage, measured, decision)
    if isinstance(stage.rule, (GlobalNorm, GroupNorm, ArrayNorm)) and stage.rule.order == 2:
        return _of_balls(stage, measured, decision)
    return None


def _of_balls(stage: Stage, measured: Measured, decision: Decision) -> Certificate:
    """``y = c·u`` with ``‖u‖ > r``: ``sup_z <u - y, z> = r·(1 - c)·‖u‖``, and ``<u - y, y> = (1 - c)·c·‖u‖²``.

    A common factor is left out; the rounding of each element to its storage type is not in it.
    """
    assert stage.scopes is not None
    limits, count = stage.scopes.limits, stage.scopes.limits.size
    norms = scope_norms(measured, stage.scopes.ids, count)
    factor = np.full(count, stage.inverse)
    factor[stage.scopes.ids] = decision.actions.factor  # one for all segments of a scope
    certificate = INSIDE
    for scope in np.flatnonzero(over(norms, stage.scopes, stage.inverse)):
        radius = math.ldexp(limits[scope], -int(norms.exponent[scope]))
        after = float(norms.root[scope] * factor[scope])
        taken = float(norms.root[scope]) * max(0.0, stage.inverse - float(factor[scope]))
        excess = after / radius - 1 if radius else 0.0
        moved = float(np.ldexp(taken, norms.exponent[scope]))
        certificate = certificate.joined(Certificate.of(excess, radius, after, moved))
    return certificate


def _of_box(stage: Stage, measured: Measured, decision: Decision) -> Certificate:
    """Clamping is exact but for the limits, which are rounded to the storage type."""
    found, (low, high) = measured.found, stage.limit
    beyond = found.largest * stage.inverse > decision.actions.high if low == -high else found.outside > 0
    if not beyond.any():
        return INSIDE
    excess, gap = 0.0, 0.0
    for asked, stored, sign in ((low, decision.actions.low, -1), (high, decision.actions.high, 1)):
        if asked and math.isfinite(asked):
            off: FloatArray = sign * (stored[beyond] - asked) / abs(asked)
            excess, gap = max(excess, float(off.max())), max(gap, float(np.abs(off).max()))
    return Certificate(excess, gap, None)
