"""Adaptive gradient clipping (AGC): the L2 ball at scope ``unit``, its radius the weight's norm.

Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
https://arxiv.org/abs/2102.06171, equation 3. What a *unit* of a weight is differs from library to
library, so ``axis`` has no default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradclip_core import validate
from gradclip_core.arrays.dock import unload
from gradclip_core.arrays.express import in_units
from gradclip_core.axes import Axis, check_axis
from gradclip_core.errors import InvalidArgumentError
from gradclip_core.members import match
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import choose, measure, readable
from gradclip_core.protocol import Buffer, FloatArray, IntArray
from gradclip_core.rules import NormRule, Site, WeightArrays
from gradclip_core.tree import kept


@dataclass(frozen=True, slots=True)
class UnitNorm(NormRule):
    """Each unit within ``clipping`` times the norm of its weights. See ``adaptive_clip``."""

    params: Any = field(repr=False, compare=False)
    clipping: float = 0.01
    eps: float = 1e-3
    axis: Axis = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", kept(self.params))
        object.__setattr__(self, "clipping", validate.positive("clipping", self.clipping))
        object.__setattr__(self, "eps", validate.positive("eps", self.eps))
        check_axis(self.axis)

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Rule.unit_axes``."""
        return site.units(self.axis)

    def weights(self, site: Site) -> WeightArrays | None:
        """See ``NormRule.weights``: a scope for each unit."""
        params = unload(self.params, "adaptive_clip, params", clips=False)
        index = match(params, site, "adaptive_clip, params", "parameter")
        axes = site.units(self.axis)
        if params.manifest is not None and index == list(range(len(params.arrays))):
            return WeightArrays(params.arrays, axes, self.clipping, self.eps, site.paths)
        return WeightArrays([params.arrays[i] for i in index], axes, self.clipping, self.eps, site.paths)


def measured_limits(weights: WeightArrays) -> FloatArray:
    """A limit for each unit, the weights measured where they are."""
    if not all(docked.memory for docked in weights.arrays):
        raise InvalidArgumentError(
            "adaptive_clip, params",
            "they are traced, and the gradients are not",
            "Clip inside the function that is traced, or pass weights that are there",
        )
    backend, _ = choose(None, weights.arrays)
    buffers: Sequence[Buffer] = in_units(weights.arrays, weights.axes) or [
        readable(backend, docked, axes) for docked, axes in zip(weights.arrays, weights.axes, strict=True)
    ]
    measured = measure(backend, buffers, 2.0)
    if measured.nonfinite.any():
        rows = np.array([buffer.rows for buffer in buffers], np.int64)
        refuse_nonfinite_weights(weights, measured.nonfinite, rows)
    return limits_of(measured, weights.clipping, weights.eps)


def limits_of(measured: Measured, clipping: float, eps: float) -> FloatArray:
    """``clipping · max(‖w_unit‖, eps)``: the eps lets weights that start at zero train."""
    count = measured.found.sums.size
    norms = scope_norms(measured, np.arange(count), count).value()
    return np.minimum(clipping * np.maximum(norms, eps), np.finfo(np.float64).max)


def refuse_nonfinite_weights(weights: WeightArrays, nonfinite: IntArray, rows: IntArray) -> None:
    """Raise where an array has elements that are not finite. ``nonfinite`` is per unit, ``rows`` per array."""
    if nonfinite.any():
        segment = int(np.flatnonzero(nonfinite)[0])
        array = int(np.searchsorted(np.cumsum(rows), segment, side="right"))
        raise InvalidArgumentError(
            f"adaptive_clip, params '{weights.paths[array]}'",
            "it holds infinities or NaNs, so it gives no threshold",
            "Restore the weights from the last good checkpoint",
        )
