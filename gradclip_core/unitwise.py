"""Adaptive gradient clipping (AGC): the L2 ball at scope ``unit``, its radius the weight's norm.

Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
https://arxiv.org/abs/2102.06171, equation 3. What a *unit* of a weight is differs from library to
library, so ``axis`` has no default.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradclip_core import validate
from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import choose, measure, readable
from gradclip_core.protocol import FloatArray, IntArray
from gradclip_core.rules import NormRule, Site, WeightArrays
from gradclip_core.tree import flatten

Axis = int | tuple[int, ...] | str | None | Callable[[str, tuple[int, ...]], int | tuple[int, ...] | None]

_CURE = (
    "Pass the axes to reduce over: 'all_but_first' (weights stored output-first: PyTorch, timm), 'all_but_last' "
    "(output-last: JAX, Flax, optax), an int, a tuple, None (the whole array is the unit), or a function (path, shape) "
    "-> any of these"
)


_LAYOUTS = ("all_but_first", "all_but_last")


def _integers(axis: Any) -> tuple[int, ...]:
    """An int or a tuple of ints as a tuple; anything else is refused."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    try:
        if any(isinstance(a, (bool, np.bool_)) for a in axes):
            raise TypeError("a bool is no axis")
        return tuple(operator.index(a) for a in axes)
    except TypeError as error:
        raise InvalidArgumentError(
            f"axis={show(axis)}", f"it names neither axes nor a layout ({error})", _CURE
        ) from error


@dataclass(frozen=True, slots=True)
class UnitNorm(NormRule):
    """Each unit within ``clipping`` times the norm of its weights. See ``adaptive_clip``."""

    params: Any = field(repr=False, compare=False)
    clipping: float = 0.01
    eps: float = 1e-3
    axis: Axis = field(kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.params, Iterator):  # a rule is used again and again
            leaves, tree = flatten(self.params)
            object.__setattr__(self, "params", tree.rebuild(leaves))
        object.__setattr__(self, "clipping", validate.positive("clipping", self.clipping))
        object.__setattr__(self, "eps", validate.positive("eps", self.eps))
        if self.axis is not None and not callable(self.axis) and self.axis not in _LAYOUTS:
            _integers(self.axis)

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Rule.unit_axes``."""
        return [self._axes(path, shape) for path, shape in zip(site.paths, site.shapes, strict=True)]

    def _axes(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The axes of one array's units. Biases and gains (at most one axis) are one unit, as in the paper."""
        axis = self.axis(path, shape) if callable(self.axis) else self.axis
        ndim = len(shape)
        if axis is None:
            return None
        if not (isinstance(axis, str) and axis in _LAYOUTS):
            _integers(axis)
        if ndim <= 1:
            return None
        if axis == "all_but_first":
            return tuple(range(1, ndim))
        if axis == "all_but_last":
            return tuple(range(ndim - 1))
        axes = _integers(axis)
        reduced = {a % ndim for a in axes}
        if len(reduced) < len(axes) or not all(-ndim <= a < ndim for a in axes):
            seen = f"array '{path}' has shape {shape}, which has no such axes"
            raise InvalidArgumentError(f"axis={show(axis)}", seen, _CURE)
        return tuple(sorted(reduced))

    def weights(self, site: Site) -> WeightArrays | None:
        """See ``NormRule.weights``: a scope for each unit."""
        params = unload(self.params, "adaptive_clip, params", clips=False)
        arrays = [params.arrays[i] for i in self._match(params, site)]
        axes = [self._axes(path, docked.shape) for path, docked in zip(site.paths, arrays, strict=True)]
        return WeightArrays(arrays, axes, self.clipping, self.eps, site.paths)

    @staticmethod
    def _match(params: Cargo, site: Site) -> list[int]:
        for path, length in site.lengths.items():
            if params.tree.lengths.get(path, length) != length:
                where = f"at '{path}' " if path else ""
                counts = f"{params.tree.lengths[path]} parameters and {length} gradients"
                raise InvalidArgumentError(
                    "adaptive_clip, params",
                    f"{where}there are {counts}, which are paired by position",
                    "Keep a None where a parameter has no gradient: [p.grad for p in params]",
                )
        by_path = dict(zip(params.tree.paths, params.index, strict=True))
        for path, shape in zip(site.paths, site.shapes, strict=True):
            if path not in by_path:
                there = ", ".join(map(repr, list(by_path)[:5])) or "none"
                raise InvalidArgumentError(
                    f"adaptive_clip, gradient '{path}'",
                    f"there is no parameter at that path; there are {there}",
                    "Pass params in a container of the same structure as grads",
                )
            found = params.arrays[by_path[path]].shape
            if found != shape:
                raise InvalidArgumentError(
                    f"adaptive_clip, gradient '{path}'",
                    f"its shape is {shape}, its parameter's {found}",
                    "Pass params in a container of the same structure as grads",
                )
        return [by_path[path] for path in site.paths]


def measured_limits(weights: WeightArrays) -> FloatArray:
    """A limit for each unit, the weights measured where they are."""
    backend, _ = choose(None, weights.arrays)
    buffers = [readable(backend, docked, axes) for docked, axes in zip(weights.arrays, weights.axes, strict=True)]
    measured = measure(backend, buffers, 2.0)
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
