"""Decide: a few numbers per segment in, a few factors per segment out.

All that the library *means* is in this file: which threshold holds for whom, what is done about
it, and what is done about values that are not finite. It never sees a gradient. NaN and infinity
are data here: the pipeline runs it with IEEE arithmetic and NumPy's warnings off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradclip_core.norms import Measured, Norms, one_each, scope_norms, times_power
from gradclip_core.precision.factors import aim_float32, aim_float64, round_down_float32, split
from gradclip_core.protocol import (
    DTYPES,
    FLOAT64,
    LEAVE,
    SCALE,
    ZERO,
    Actions,
    BoolArray,
    Buffer,
    DType,
    FloatArray,
    IntArray,
    Manifest,
    Scopes,
)
from gradclip_core.reference import narrow, widen


@dataclass(frozen=True, slots=True)
class Segments:
    """What is known of the segments before they are measured."""

    sizes: FloatArray
    dtypes: list[DType]
    """The storage types that there are."""
    kinds: IntArray
    """For each segment its entry of ``dtypes``."""
    float64: BoolArray

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> Segments:
        """The segments of these buffers."""
        if isinstance(buffers, Manifest):
            return cls._of(buffers.lengths.astype(np.float64), list(DTYPES.values()), buffers.codes)
        rows = [buffer.rows for buffer in buffers]
        dtypes = list({buffer.dtype.name: buffer.dtype for buffer in buffers}.values())
        places = {dtype.name: place for place, dtype in enumerate(dtypes)}
        kinds = np.array([places[buffer.dtype.name] for buffer in buffers], np.int64)
        # What other processes hold of an array is decided on together with what is here.
        sizes = np.array([float(b.length if b.shared is None else b.shared.elements) for b in buffers])
        return cls._of(np.repeat(sizes, rows), dtypes, np.repeat(kinds, rows))

    @classmethod
    def _of(cls, sizes: FloatArray, dtypes: list[DType], kinds: IntArray) -> Segments:
        wide = np.array([dtype is FLOAT64 for dtype in dtypes], np.bool_)
        return cls(sizes, dtypes, kinds, wide[kinds])


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do to each segment, and what comes of it."""

    actions: Actions
    clipped: bool
    clipped_norm: float | None
    """None: only measuring what was written can tell."""
    one_factor: float | None
    """The factor, where the whole decision is one factor on everything."""


def needs_carries(measured: Measured, scopes: Scopes, segments: Segments, inverse: float) -> bool:
    """Whether a scope of float64 memory alone is over its limit, by the rounded sums.

    Only the carries can tell by how much, to the last bit; such steps take one more read pass.
    """
    if measured.ord not in (1, 2) or not segments.float64.any():
        return False
    norms = scope_norms(measured, scopes.ids, scopes.limits.size)
    return bool((over(norms, scopes, inverse) & ~_narrow(scopes, segments)).any())


def decide_norms(measured: Measured, scopes: Scopes, segments: Segments, inverse: float, sanitize: bool) -> Decision:
    """Radial clipping: scope by scope, ``factor = min(1, max_norm/norm) · inverse``."""
    count, ids = scopes.limits.size, scopes.ids
    norms = scope_norms(measured, ids, count)
    beyond = over(norms, scopes, inverse)
    if inverse == 1 and not sanitize and not beyond.any() and not np.isnan(norms.root).any():
        # As below, at once: so it is in most steps, and of many small arrays the decision is a good part of the time.
        left_alone = _norm_left_alone(measured, norms, scopes, inverse)
        return Decision(_leave(ids.size), False, left_alone, None if measured.nonfinite.any() else inverse)

    narrow_scope = _narrow(scopes, segments)
    spread = None if one_each(ids, count) else ids
    sizes = segments.sizes if spread is None else np.asarray(np.bincount(ids, segments.sizes, count), np.float64)
    aim = aim_float32(scopes.limits, norms, sizes, measured.ord)
    if not narrow_scope.all():
        aim = np.where(narrow_scope, aim, aim_float64(scopes.limits, norms, sizes, measured.ord))
    # Products with anything but a power of two are rounded, up to half an ulp upwards, so that
    # a norm just below the threshold has to be shaved as well.
    exact = math.frexp(inverse)[0] == 0.5
    factor = np.where(beyond if exact else aim < inverse, np.minimum(aim, inverse), inverse)
    factor = np.where(np.isnan(norms.root), np.nan, factor)
    factor = np.where(narrow_scope, round_down_float32(factor), factor)
    multiplied_by_zero = (factor == 0) & np.isfinite(norms.root)
    op = np.where(multiplied_by_zero, ZERO, np.where(factor == 1, LEAVE, SCALE)).astype(np.uint8)
    op = op if spread is None else op[spread]
    if sanitize:
        op = np.where((measured.nonfinite > 0) & (op == LEAVE), SCALE, op).astype(np.uint8)
    clipped = bool(beyond.any()) or bool(np.isnan(norms.root).any())
    alike = bool((factor == factor[0]).all()) if count else True
    poisoned = bool(measured.nonfinite.any())
    return Decision(
        actions_of(op, factor, ids=spread, sanitize=sanitize),
        clipped,
        _norm_after(measured, norms, scopes, beyond, factor)
        if clipped
        else _norm_left_alone(measured, norms, scopes, inverse),
        None if poisoned or not alike else (float(factor[0]) if count else inverse),
    )


def _norm_after(measured: Measured, norms: Norms, scopes: Scopes, beyond: BoolArray, factor: FloatArray) -> float:
    """The norm of everything, once each scope has its factor."""
    applied = times_power(norms.root * factor, norms.exponent)
    return scope_values(np.where(beyond, np.minimum(applied, scopes.limits), applied), measured.ord)


def _norm_left_alone(measured: Measured, norms: Norms, scopes: Scopes, inverse: float) -> float:
    """The norm of everything, unscaled. Where there is one scope, that is its norm."""
    if scopes.limits.size == 1:
        # The carries can know a norm to be within a limit that its rounded value is over.
        return min(float(norms.value(inverse)[0]), float(scopes.limits[0]))
    return float(scope_norms(measured, np.zeros_like(scopes.ids), 1).value(inverse)[0])


def _narrow(scopes: Scopes, segments: Segments) -> BoolArray:
    """The scopes in which elements other than float64 take part: they have a float32 factor."""
    narrow_scope = np.zeros(scopes.limits.size, np.bool_)
    part = ~segments.float64 & (segments.sizes > 0)
    narrow_scope[scopes.ids if part.all() else scopes.ids[part]] = True
    return narrow_scope


def over(norms: Norms, scopes: Scopes, inverse: float) -> BoolArray:
    """The scopes whose norm is over their limit, compared in units of 2^exponent: no side overflows."""
    limits = times_power(scopes.limits, -norms.exponent)
    root = norms.root * inverse
    beyond: BoolArray = root > limits
    if not norms.rest.any():
        return beyond
    # The rounded norm is over; the carries may know that the norm itself is not.
    margin = root - limits
    return beyond & ~((norms.rest < 0) & (margin + norms.rest * inverse <= 0))


def scope_values(norms: FloatArray, ord: float) -> float:
    """One norm from those of disjoint scopes."""
    top = float(np.max(norms, initial=0.0))
    if norms.size == 1 or top == 0 or not math.isfinite(top) or ord == math.inf:
        return float(norms[0]) if norms.size == 1 else top
    return float(top * np.sum((norms / top) ** ord) ** (1.0 / ord))


def stored_limits(limit: tuple[float, float], segments: Segments) -> tuple[FloatArray, FloatArray]:
    """The limits as each segment's dtype holds them, rounded to nearest as ``numpy.clip`` rounds them."""
    pairs = np.array([stored_values(limit, dtype) for dtype in segments.dtypes]).reshape(-1, 2)
    return pairs[segments.kinds, 0], pairs[segments.kinds, 1]


def stored_values(values: Sequence[float], dtype: DType) -> list[float]:
    """``values``, numbers or infinities, rounded to a storage type; what is too large to an infinity, as a bound."""
    if dtype.coded:  # by way of float32, as ml_dtypes rounds; NumPy rounds to its own types at once
        wide = np.array(values, np.float32)
        rounded = widen(narrow(wide, dtype), dtype)
        rounded = np.where(np.isnan(rounded), np.copysign(np.float32(np.inf), wide), rounded)
    else:
        rounded = np.array(values).astype(dtype.view)
    return [float(value) for value in rounded]


def decide_value(
    measured: Measured,
    limit: tuple[float, float],
    segments: Segments,
    inverse: float,
    sanitize: bool,
) -> Decision:
    """By value: clamp every element of the unscaled gradient to [low, high]."""
    low, high = stored_limits(limit, segments)
    found = measured.found
    if limit[0] == -limit[1]:
        infinite = found.infs > 0 if not sanitize else False
        beyond = (found.largest * inverse > high) | (infinite & np.isfinite(high))
    else:
        beyond = found.outside > 0
    factor = np.full(beyond.shape, inverse)
    factor = np.where(segments.float64, factor, round_down_float32(factor))
    touched = beyond | (factor != 1) | (sanitize & (measured.nonfinite > 0))
    op = np.where(touched, SCALE, LEAVE).astype(np.uint8)
    clipped = bool(beyond.any())
    unclipped = scope_norms(measured, np.zeros(beyond.size, np.int64), 1).value(inverse)[0]
    return Decision(
        actions_of(op, factor, low, high, sanitize),
        clipped,
        None if clipped else float(unclipped),
        None if clipped or measured.nonfinite.any() else inverse,
    )


def decide_zero(segments: Segments) -> Decision:
    """Every element of every segment becomes 0, by assignment: 0 · NaN is NaN."""
    count = segments.sizes.size
    actions = actions_of(np.full(count, ZERO, np.uint8), np.zeros(count))
    return Decision(actions, False, 0.0, None)


def decide_nothing(segments: Segments) -> Decision:
    """Every segment is left as it is, scaled or not."""
    return Decision(_leave(segments.sizes.size), False, None, None)


def _leave(count: int) -> Actions:
    """Nothing is written; in other memory, what was there."""
    one, infinity = np.ones(count, np.float32), np.full(count, math.inf)
    return Actions(np.full(count, LEAVE, np.uint8), np.ones(count), one, one, -infinity, infinity)


def actions_of(
    op: np.ndarray,
    factor: FloatArray,
    low: FloatArray | None = None,
    high: FloatArray | None = None,
    sanitize: bool = False,
    ids: IntArray | None = None,
) -> Actions:
    """The write pass that a decision asks for; with ``ids`` a segment's factor is ``factor[ids]``."""
    coarse, fine = split(factor)
    if ids is not None:
        factor, coarse, fine = factor[ids], coarse[ids], fine[ids]
    unbounded = np.full(factor.shape, math.inf)
    return Actions(
        op, factor, coarse, fine, -unbounded if low is None else low, unbounded if high is None else high, sanitize
    )
