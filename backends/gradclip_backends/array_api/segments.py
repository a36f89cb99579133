"""Arrays without memory, measured: a few numbers for each segment, as arrays of their framework.

A norm is kept as ``root · unit``, the unit a power of two, so that no square of a finite element overflows and none
that counts is lost. docs/numerics.md ("Without memory") derives how far a norm can be from the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_backends.array_api.languages import Language, Pair, add, joined
from gradclip_core.operations import Axes
from gradclip_core.protocol import FLOAT16, FLOAT64, DType, IntArray

Kinds = Sequence[tuple[DType, bool]]


@dataclass(frozen=True, slots=True)
class Norms:
    """``root · unit`` for each of some scopes."""

    root: Any
    unit: Any

    def value(self, xp: Any, factor: Any, largest: float) -> Any:
        """The norms times ``factor``; a finite one that is too large becomes the largest there is."""
        product = self.root * factor * self.unit
        return xp.where(xp.isfinite(self.root) & xp.isinf(product), xp.zeros_like(product) + largest, product)


@dataclass(frozen=True, slots=True)
class Measured:
    """One entry for each segment, but for ``sums``, whose parts are two."""

    language: Language
    ord: float
    scales: Any
    """Powers of two that elements were multiplied by."""
    sums: Pair
    largest: Any
    """The largest finite magnitude, times its scale."""
    infs: Any
    nans: Any
    sanitized: bool

    def norms(self, ids: IntArray, count: int) -> Norms:
        """The norm of each scope; ``ids[segment]`` is the scope that a segment belongs to."""
        xp, language = self.language.xp, self.language
        if count == ids.size and (ids == np.arange(count)).all():
            return Norms(self._root(self.sums, self.largest, self.infs, self.nans), 1 / self.scales)
        scopes = [self._scope(np.flatnonzero(ids == scope), language) for scope in range(count)]
        roots, units = zip(*scopes, strict=True)
        return Norms(xp.concat(roots), xp.concat(units))

    def _scope(self, members: IntArray, language: Language) -> tuple[Any, Any]:
        """Root and unit of some segments together, arrays of one element."""
        xp = language.xp
        pick = _picker(language, members, self.scales)
        scales = pick(self.scales)
        top = xp.min(scales, axis=0, keepdims=True)
        ratio = top / scales  # what the segments' numbers have to be multiplied by
        infs, nans = (xp.sum(pick(x), axis=0, keepdims=True) for x in (self.infs, self.nans))
        if self.ord in (1, 2):
            power = ratio if self.ord == 1 else ratio * ratio
            high, low = (pick(part) * power for part in self.sums)
            # Carries are small: adding them up plainly loses nothing that counts.
            total = [xp.reshape(part, (1,)) for part in language.summed(high, (0,))]
            return self._root((total[0], total[1] + xp.sum(low, axis=0, keepdims=True)), None, infs, nans), 1 / top
        roots = self._root(tuple(map(pick, self.sums)), pick(self.largest), pick(self.infs), pick(self.nans)) * ratio
        most = xp.max(roots, axis=0, keepdims=True)
        if self.ord == math.inf:
            return _with_nonfinite(language, most, infs, nans, self.sanitized), 1 / top
        safe = xp.where(most > 0, most, xp.ones_like(most))
        total = xp.sum((roots / safe) ** self.ord, axis=0, keepdims=True)
        return _with_nonfinite(language, most * total ** (1 / self.ord), infs, nans, self.sanitized), 1 / top

    def _root(self, sums: Any, largest: Any, infs: Any, nans: Any) -> Any:
        xp = self.language.xp
        if self.ord == math.inf:
            return _with_nonfinite(self.language, largest, infs, nans, self.sanitized)
        root = total = sums[0] + sums[1]
        if self.ord != 1:
            # A root's slope at 0 is infinite: derivatives are taken of one that is elsewhere.
            away = xp.where(total > 0, total, xp.ones_like(total))
            root = xp.sqrt(away) if self.ord == 2 else self.language.still(largest) * away ** (1 / self.ord)
            root = xp.where(total > 0, root, total)
        return _with_nonfinite(self.language, root, infs, nans, self.sanitized)


def measured(
    language: Language,
    arrays: Sequence[Any],
    kinds: Kinds,
    axes: Axes,
    ord: float,
    mesh_axes: tuple[str, ...],
    *,
    sanitize: bool = False,
    gives_up: bool = False,
) -> Measured:
    """One read of arrays that have elements. Who ``gives_up`` where one is not finite needs no sum of such: what is
    then thrown away has derivatives all the same, which are to be finite.
    """
    xp = language.xp
    every = [tuple(range(x.ndim)) if reduced is None else reduced for x, reduced in zip(arrays, axes, strict=True)]
    values: list[list[Any]] = []
    found: list[list[Any]] = []
    for x, (dtype, is_complex), over in zip(arrays, kinds, every, strict=True):
        parts = [language.cast(part, language.wide) for part in (language.parts(x) if is_complex else (x,))]
        cleaned = dtype if sanitize else None
        looks = [_looked_at(language, part, over, cleaned, slopes=ord == math.inf) for part in parts]
        values.append([_finite(xp, v) for v, *_ in looks] if gives_up else [v for v, *_ in looks])
        largest, infs, nans = looks[0][1:]
        if is_complex:
            largest, infs, nans = xp.maximum(largest, looks[1][1]), infs + looks[1][2], nans + looks[1][3]
        if mesh_axes:
            largest = language.over_mesh(largest, mesh_axes, x, largest=True)
            infs, nans = (language.over_mesh(n, mesh_axes, x, largest=False) for n in (infs, nans))
        found.append([xp.reshape(n, (-1,)) for n in (largest, infs, nans)])
    largest, infs, nans = (joined(xp, column) for column in zip(*found, strict=True))
    stills = [language.still(here) for here, *_ in found]
    scales = [xp.ones_like(v) for v in stills] if _needs_no_scale(language, kinds) else language.powers_of_two(stills)
    pairs = []
    for x, parts, over, still, power in zip(arrays, values, every, stills, scales, strict=True):
        scale, unit = (along(xp, v, x.shape, over) for v in (power, still * power))
        sums = [language.summed(_terms(xp, part * scale, ord, unit), over) for part in parts]
        pair = sums[0] if len(sums) == 1 else add(*sums)
        if mesh_axes:
            pair = tuple(language.over_mesh(part, mesh_axes, x, largest=False) for part in pair)
        pairs.append([xp.reshape(part, (-1,)) for part in pair])
    high, low = (joined(xp, column) for column in zip(*pairs, strict=True))
    scale = joined(xp, scales)
    return Measured(language, ord, scale, (high, low), largest * scale, infs, nans, sanitize)


def along(xp: Any, values: Any, shape: tuple[int, ...], over: tuple[int, ...]) -> Any:
    """The numbers of an array's segments, in a shape that goes with the array's; ``over``: a segment's axes."""
    if not shape:
        return xp.reshape(values, ())
    return xp.reshape(values, tuple(1 if axis in over else n for axis, n in enumerate(shape)))


def _looked_at(
    language: Language, v: Any, over: tuple[int, ...], dtype: DType | None, *, slopes: bool
) -> tuple[Any, Any, Any, Any]:
    """The values, sanitized where a dtype says how; their largest finite magnitude; how many are infinite, and NaN.

    ``slopes``: that magnitude is a result, of which derivatives may be taken.
    """
    xp = language.xp
    infs, nans = xp.isinf(v), xp.isnan(v)
    if dtype is not None:
        v = sanitized(language, v, dtype)
    finite = xp.abs(v if dtype is not None else xp.where(infs | nans, xp.zeros_like(v), v))
    counts = [language.cast(mask, xp.int32) for mask in (infs, nans)]
    if not over:
        return v, finite, counts[0], counts[1]
    if not slopes:
        return v, *language.extremes(finite, counts[0], counts[1], over)
    return v, xp.max(finite, axis=over), *(xp.sum(count, axis=over) for count in counts)


def _finite(xp: Any, v: Any) -> Any:
    return xp.where(xp.isfinite(v), v, xp.zeros_like(v))


def sanitized(language: Language, v: Any, dtype: DType) -> Any:
    """NaN becomes 0, ±inf becomes ± the largest finite value of the storage type."""
    xp = language.xp
    top = language.number(dtype.largest, v)
    v = xp.where(xp.isnan(v), xp.zeros_like(v), v)
    return xp.where(v > top, top, xp.where(v < -top, -top, v))


def _terms(xp: Any, v: Any, ord: float, unit: Any) -> Any:
    if ord == 2 or ord == math.inf:
        return v * v
    if ord == 1:
        return xp.abs(v)
    return (xp.abs(v) / xp.where(unit > 0, unit, xp.ones_like(unit))) ** ord


def _picker(language: Language, members: IntArray, like: Any) -> Callable[[Any], Any]:
    if members.size == like.shape[0]:
        return lambda x: x
    index = language.index(members, like)
    return lambda x: language.xp.take(x, index, axis=0)


def _with_nonfinite(language: Language, norms: Any, infs: Any, nans: Any, sanitized: bool) -> Any:
    """``norms`` of the finite elements, with what the others make of them."""
    if sanitized:
        return norms
    infinity, nan = (language.number(value, norms) for value in (math.inf, math.nan))
    return language.xp.where(nans > 0, nan, language.xp.where(infs > 0, infinity, norms))


def _needs_no_scale(language: Language, kinds: Kinds) -> bool:
    """Whether the wide type holds the squares of all that the storage types hold."""
    return all(dtype is FLOAT16 or (language.exact and dtype is not FLOAT64) for dtype, _ in kinds)
