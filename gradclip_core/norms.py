"""From per-segment sums to norms: of each array, of each scope, of everything.

A norm is kept as ``root · 2^exponent``, because the norm of finite float64 gradients can lie
beyond float64's own range. The exponent is 0 for every other dtype and for all ordinary float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from gradclip_core.protocol import FLOAT64, BoolArray, FloatArray, IntArray, Measurements
from gradclip_core.reference import tree_sum, tree_sum_carried, two_product

# Within these magnitudes the squares of up to 2^36 float64 elements neither overflow nor lose
# bits that matter to subnormals; outside, the core measures again on x·2^-e (decision 0002).
LEAST, MOST = 2.0**-400, 2.0**400


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements, and how to read their sums: ``Σ terms·2^-exponent`` in units of ``unit``."""

    found: Measurements
    ord: float
    exponents: IntArray
    units: FloatArray
    sanitized: bool = False
    """Whether NaN was summed as 0 and infinities as the largest finite value."""
    carried: bool = False
    """Whether the sums' carries were measured."""

    def shifted(self, shifts: IntArray) -> Measured:
        """Of 2^-shifts times the segments, exactly."""
        if not shifts.any():
            return self
        found = replace(self.found, largest=np.ldexp(self.found.largest, -shifts))
        units = self.units if self.ord in (1, 2) else np.ldexp(self.units, -shifts)
        return replace(self, found=found, exponents=self.exponents - shifts, units=units)

    @property
    def nonfinite(self) -> IntArray:
        """Non-finite elements, per segment."""
        return self.found.infs + self.found.nans


@dataclass(frozen=True, slots=True)
class Norms:
    """``root · 2^exponent``, elementwise."""

    root: FloatArray
    exponent: IntArray
    rest: FloatArray
    """What ``root`` is short of: ``root + rest`` is the exact root but for 2^-90. Zero unless carried."""

    def value(self, factor: float = 1.0) -> FloatArray:
        """The norms times ``factor``, as float64; a finite norm beyond its range is its largest value."""
        with np.errstate(all="ignore"):
            scaled = times_power(self.root * factor, self.exponent)
        if np.isfinite(scaled).all():
            return scaled
        return np.where(np.isposinf(scaled) & np.isfinite(self.root), FLOAT64.largest, scaled)


def times_power(values: FloatArray, exponents: IntArray) -> FloatArray:
    """``values · 2^exponents``. As good as always no exponent is anything but 0, and that is seen at once."""
    return np.ldexp(values, exponents) if exponents.any() else values


def members(ids: IntArray, count: int) -> Iterable[IntArray]:
    """For each of ``count`` scopes the segments in it, in the container's order."""
    if count == 1:
        return [np.arange(ids.size)]
    order = np.argsort(ids, kind="stable")
    return np.split(order, np.searchsorted(ids[order], np.arange(1, count))) if count else []


def one_each(ids: IntArray, count: int) -> bool:
    """Whether every segment is a scope, in their order."""
    return count == ids.size and bool((ids == np.arange(count)).all())


def scope_norms(measured: Measured, ids: IntArray, count: int) -> Norms:
    """The norm of each scope; ``ids[segment]`` is the scope that a segment belongs to."""
    if measured.ord == math.inf:
        return _combine_largest(measured, ids, count)
    if measured.ord in (1, 2):
        return _combine_sums(measured, ids, count)
    return _combine_powers(measured, ids, count)


def _combine_sums(measured: Measured, ids: IntArray, count: int) -> Norms:
    ord = int(measured.ord)
    sums, carries, exponents = measured.found.sums, measured.found.carries, np.zeros(count, np.int64)
    if one_each(ids, count):
        total, carry, exponents = sums, carries, measured.exponents
    else:
        total, carry = np.empty(count), np.zeros(count)
        for scope, part in enumerate(members(ids, count)):
            s, c = sums[part], carries[part]
            if measured.exponents.any():
                weighty = part[s > 0]
                top = int(np.max(measured.exponents[weighty])) if weighty.size else 0
                exponents[scope] = top
                s, c = (np.ldexp(v, ord * (measured.exponents[part] - top)) for v in (s, c))
            if measured.carried:
                total[scope], carry[scope] = tree_sum_carried(s, c)
            else:
                total[scope] = tree_sum(s)
    if ord == 1:
        return Norms(total, exponents, carry)
    root = np.sqrt(total)
    if not measured.carried:
        return Norms(root, exponents, np.zeros(count))
    square, lost = two_product(root, root)
    # One Newton step from root towards the root of total + carry.
    rest = np.where(root > 0, (((total - square) - lost) + carry) / (2 * root), 0.0)
    return Norms(root, exponents, rest)


def _with_nonfinite(measured: Measured, norms: FloatArray) -> FloatArray:
    """``norms`` of the finite elements of each segment, with what the others make of them."""
    if measured.sanitized:
        return norms
    norms = np.where(measured.found.infs > 0, math.inf, norms)
    return np.where(measured.found.nans > 0, math.nan, norms)


def _combine_largest(measured: Measured, ids: IntArray, count: int) -> Norms:
    root = np.zeros(count)
    np.maximum.at(root, ids, _with_nonfinite(measured, measured.found.largest))  # propagates NaN
    return Norms(root, np.zeros(count, np.int64), np.zeros(count))


def _combine_powers(measured: Measured, ids: IntArray, count: int) -> Norms:
    p = measured.ord
    # The exponent is taken out first, so that not even the largest finite elements overflow.
    fractions, exponent = np.frexp(measured.units)
    norms = _with_nonfinite(measured, fractions * measured.found.sums ** (1.0 / p))
    root, exponents = np.zeros(count), np.zeros(count, np.int64)
    for scope, part in enumerate(members(ids, count)):
        top_exponent = int(np.max(exponent[part], initial=-1100, where=norms[part] != 0))
        scaled = np.ldexp(norms[part], exponent[part] - top_exponent)
        top = float(np.max(scaled, initial=0.0))
        if top == 0 or not math.isfinite(top):
            root[scope] = top
            continue
        exponents[scope] = top_exponent
        root[scope] = top * tree_sum((scaled / top) ** p) ** (1.0 / p)
    return Norms(root, exponents, np.zeros(count))


def rescaling(found: Measurements, float64: BoolArray, ord: float) -> IntArray | None:
    """The exponents with which to measure again, or None where the first measurement stands."""
    if ord not in (1, 2):
        return None
    outside = float64 & (found.largest > 0) & ((found.largest < LEAST) | (found.largest > MOST))
    if not outside.any():
        return None
    _, exponent = np.frexp(found.largest)
    return np.where(outside, exponent, 0).astype(np.int64)
