"""What ``plan.py`` decides by norms, evaluated on arrays without memory: nothing branches on a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_backends.array_api.languages import Language
from gradclip_backends.array_api.segments import Kinds, Measured, Norms, measured
from gradclip_core.operations import Axes, Task
from gradclip_core.protocol import FLOAT64, FloatArray, IntArray

GIVES_UP = ("raise", "skip", "zero")
"""Policies that leave the rule undone where an element is not finite."""


@dataclass(frozen=True, slots=True)
class Decision:
    """For each scope the two multipliers, whether anything is done to it, and whether it becomes 0."""

    ids: IntArray
    """For each segment the scope that it is of."""
    first: Any
    second: Any
    touched: Any
    zero: Any
    factor: Any
    """The product of the two, for each segment."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The arrays of a task that have elements."""

    language: Language
    task: Task
    full: list[int]
    """Which of the task's arrays they are."""
    arrays: Sequence[Any]
    kinds: Kinds
    axes: Axes
    owners: IntArray
    """For each segment the array that it is of."""

    def value(self, norms: Norms, factor: Any) -> Any:
        """The norms times a factor."""
        return norms.value(self.language.xp, factor, most(self.language))

    @property
    def size(self) -> Any:
        """Elements of all arrays."""
        return sum(self.language.size(x) for x in self.arrays)


def held(language: Language, norms: Any, roots: Any) -> Any:
    """Norms of finite elements that the wide type does not reach become its largest value."""
    xp = language.xp
    return xp.where(xp.isfinite(roots) & xp.isinf(norms), xp.zeros_like(norms) + most(language), norms)


def most(language: Language) -> float:
    """The largest finite number of the type that is computed in."""
    return float(np.finfo(language.wide_name).max)


def inverse_of(scene: Scene) -> tuple[Any, Any]:
    """1 / loss scale, and whether nothing is to be done: the rule before gave up, or that scale is no number > 0."""
    scale, after = scene.task.loss_scale, scene.task.after
    if scale is None:
        return scene.language.number(scene.task.inverse, scene.arrays[0]), after
    xp = scene.language.xp
    scale = scene.language.cast(scale, scene.language.wide)
    valid = xp.isfinite(scale) & (scale > 0)
    inverse = 1 / xp.where(valid, scale, xp.ones_like(scale))
    return inverse, ~valid if after is None else ~valid | after


def decide_norms(scene: Scene, found: Measured, inverse: Any) -> tuple[Decision, Any, Any, Any]:
    """Radial clipping: scope by scope, ``factor = min(1, max_norm/norm) · inverse``.

    Returns the decision, whether anything is clipped, the norm after, and whether weights that give limits are bad.
    """
    xp, task = scene.language.xp, scene.task
    fault = None
    if task.units is not None:
        ids, limits, fault = _limits_of_weights(scene)
    else:
        assert task.scopes is not None
        # Segments of arrays without elements are in no scope.
        kept = np.isin(np.repeat(np.arange(task.rows.size), task.rows), scene.full)
        known, ids = np.unique(task.scopes.ids[kept], return_inverse=True)
        limits, fault = _known_limits(scene, task.scopes.limits[known])
    norms = found.norms(ids, limits.value.shape[0])
    over = norms.root * inverse > limits.value / (norms.unit * limits.unit)
    lost = xp.isnan(norms.root)
    # The clipped norm is made smaller than max_norm by so much that no rounding carries it over the bound.
    aimed = limits.value * (1 - _shave(scene))
    quotient = aimed / xp.where(norms.root > 0, norms.root, xp.ones_like(norms.root))
    factor = quotient / (norms.unit * limits.unit)
    exact = task.loss_scale is not None or math.frexp(task.inverse)[0] == 0.5
    clips = over if exact else over | (factor < inverse)
    # A factor that is no normal number is applied in two steps.
    whole = (factor >= 2.0**-126) | xp.isinf(norms.root)
    one = xp.ones_like(factor)
    plain = one * inverse
    first = xp.where(clips, xp.where(whole, factor, 1 / norms.unit), plain)
    second = xp.where(clips & ~whole, quotient, one)
    first, total = (xp.where(lost, norms.root, part) for part in (first, xp.where(clips, factor, plain)))
    if task.nonfinite in GIVES_UP:  # what is thrown away is multiplied by what has a derivative
        bad = xp.any(found.infs + found.nans > 0)
        first, second = (xp.where(bad, one, part) for part in (first, second))
    # Also where the norm counts as 0, because what it is of is flushed to zero.
    zero = (limits.value == 0) & xp.isfinite(norms.root)
    touched = clips | (plain != 1) | lost | zero
    first, second, touched, zero, total = scene.language.settled((first, second, touched, zero, total))
    if not (ids.size == limits.value.shape[0] and (ids == np.arange(ids.size)).all()):
        total = xp.take(total, scene.language.index(ids, total), axis=0)
    left = xp.where(xp.isfinite(norms.root), aimed / limits.unit, norms.root * 0.0)
    left = held(scene.language, left, norms.root)
    after = xp.where(over, left, scene.value(norms, inverse))
    return (
        Decision(ids, first, second, touched, zero, total),
        xp.any(over | lost),
        _together(xp, after, task.ord),
        fault,
    )


@dataclass(frozen=True, slots=True)
class _Limits:
    """``value / unit`` for each scope: so are bounds held that the type which is computed in does not reach."""

    value: Any
    unit: Any


def _known_limits(scene: Scene, limits: FloatArray) -> tuple[_Limits, Any]:
    """Limits in the wide type, never larger than they were; and whether a traced one is no bound at all."""
    language, xp = scene.language, scene.language.xp
    if (bound := scene.task.bound) is not None:
        bound = language.cast(bound, language.wide)
        valid = xp.isfinite(bound) & (bound >= 0)
        one = language.number(np.ones(limits.size), scene.arrays[0])
        return _Limits(one * xp.where(valid, bound, xp.zeros_like(bound)), one), ~valid
    unit = np.where(np.isfinite(limits) & (limits > most(language) / 2), 2.0**-64, 1.0)
    wide = np.asarray(limits * unit, language.wide_name)
    wide = np.where(wide > limits * unit, np.nextafter(wide, wide.dtype.type(0)), wide)
    return _Limits(*(language.number(values, scene.arrays[0]) for values in (wide, unit))), None


def _limits_of_weights(scene: Scene) -> tuple[IntArray, _Limits, Any]:
    units = scene.task.units
    assert units is not None
    weights = [units.weights[i] for i in scene.full]
    kinds = [units.dtypes[i] for i in scene.full]
    found = measured(scene.language, weights, kinds, scene.axes, 2, scene.task.mesh_axes)
    ids = np.arange(scene.owners.size)
    norms = scene.value(found.norms(ids, ids.size), 1.0)
    least = scene.language.number(units.eps, norms)
    limits = units.clipping * scene.language.xp.where(norms < least, least, norms)
    xp = scene.language.xp
    return ids, _Limits(limits, xp.ones_like(limits)), xp.any(found.infs + found.nans > 0)


def _shave(scene: Scene) -> Any:
    """docs/numerics.md, "Without memory"."""
    general = scene.task.ord not in (1, 2, math.inf)
    if not scene.language.exact:
        return 2.0**-17 * scene.task.ord if general else 2.0**-20
    narrow = any(dtype is not FLOAT64 for dtype, _ in scene.kinds)
    own = 2.0**-38 if general else 2.0**-48
    return scene.size * 2.0**-53 + own + (2.0**-24 + 2.0**-40 if narrow else 0.0)


def _together(xp: Any, norms: Any, ord: float) -> Any:
    """One norm of several."""
    largest = xp.max(norms)
    if ord == math.inf or norms.shape[0] == 1:
        return largest
    safe = xp.where((largest > 0) & xp.isfinite(largest), largest, xp.ones_like(largest))
    return safe * xp.sum((norms / safe) ** ord) ** (1 / ord)
