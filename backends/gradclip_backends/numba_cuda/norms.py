"""From per-segment sums to the norm of a scope: gradclip_core/norms.py, by one warp for a scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gradclip_backends.numba_cuda.arithmetic import (
    INFINITY,
    NOT_A_NUMBER,
    is_finite,
    lost_in_product,
    maximum,
    scale_by_power,
    split_exponent,
)
from gradclip_backends.numba_cuda.elements import load_32, load_64, load_double, mul, power, root
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.machine import exchange, lane
from gradclip_backends.numba_cuda.record import (
    AT_RESCALE,
    CARRIES,
    EXPONENTS,
    INFS,
    LARGEST,
    NANS,
    SUMS,
    UNITS,
    at,
)
from gradclip_backends.numba_cuda.tree import CARRIED, NUMBER, Carried, make_tree_of_any

Function = Callable[..., Any]

_NO_EXPONENT, _NO_NORM = -100000, -1100


class Norm(NamedTuple):
    """root * 2^exponent; rest is what root is short of, where carries were measured."""

    root: Any
    rest: Any
    exponent: Any


class Members(NamedTuple):
    """The segments of a scope, in the container's order."""

    address: Any
    """Of their numbers, or 0 where they are consecutive."""
    start: Any
    many: Any


class Scaling(NamedTuple):
    """What sums of several segments are brought to one exponent with."""

    record: Any
    members: Any
    order: Any
    top: Any
    rescaled: Any


class Taking(NamedTuple):
    """What the norms of several segments are combined with."""

    record: Any
    members: Any
    order: Any
    sanitized: Any
    common: Any
    top: Any


@device
def member(members: Any, i: Any) -> Any:
    """The i-th segment's number."""
    if members.address != 0:
        return load_32(members.address + 4 * (members.start + i))
    return members.start + i


def _make_largest_of_any(value: Function) -> Function:
    @device
    def largest_of_any(count: Any, context: Any) -> Any:
        """numpy.maximum.reduce over the scope, in any order: NaN where any is."""
        found = 0.0
        for i in range(lane(), count, 32):
            found = maximum(found, value(i, context))
        for step in range(5):
            found = maximum(found, exchange(found, 16 >> step))
        return found

    return largest_of_any


def _make_top_exponent(value: Function) -> Function:
    @device
    def top_exponent(count: Any, least: Any, context: Any) -> Any:
        """The largest exponent among the members that weigh anything, ``least`` where none does."""
        top = least
        for i in range(lane(), count, 32):
            top = max(top, value(i, context))
        for step in range(5):
            top = max(top, exchange(top, 16 >> step))
        return top

    return top_exponent


# ---- orders 1 and 2 ------------------------------------------------------------------------------


@device
def _exponent_of_sum(i: Any, scaling: Any) -> Any:
    segment = member(scaling.members, i)
    if load_double(at(scaling.record, SUMS, segment)) > 0.0:
        return load_64(at(scaling.record, EXPONENTS, segment))
    return _NO_EXPONENT


_top_exponent_of_sums = _make_top_exponent(_exponent_of_sum)


@device
def _scaled(x: Any, segment: Any, scaling: Any) -> Any:
    if scaling.rescaled == 0:
        return x
    steps = load_64(at(scaling.record, EXPONENTS, segment)) - scaling.top
    return scale_by_power(x, steps if scaling.order == 1.0 else 2 * steps)


@device
def _scaled_sum(i: Any, scaling: Any) -> Any:
    segment = member(scaling.members, i)
    return _scaled(load_double(at(scaling.record, SUMS, segment)), segment, scaling)


@device
def _scaled_carried(i: Any, scaling: Any) -> Any:
    segment = member(scaling.members, i)
    total = load_double(at(scaling.record, SUMS, segment))
    carry = load_double(at(scaling.record, CARRIES, segment))
    return Carried(_scaled(total, segment, scaling), _scaled(carry, segment, scaling))


_sum_of_sums = make_tree_of_any(NUMBER, _scaled_sum)
_sum_of_carried = make_tree_of_any(CARRIED, _scaled_carried)


@device
def _combine_sums(record: Any, members: Any, order: Any, carried: Any) -> Any:
    top, total, carry = 0, 0.0, 0.0
    if members.many == 1:
        segment = member(members, 0)
        total = load_double(at(record, SUMS, segment))
        carry = load_double(at(record, CARRIES, segment))
        top = load_64(at(record, EXPONENTS, segment))
    else:
        rescaled = load_32(record.address + AT_RESCALE)
        if rescaled != 0:
            top = _top_exponent_of_sums(members.many, _NO_EXPONENT, Scaling(record, members, order, 0, rescaled))
            top = 0 if top == _NO_EXPONENT else top
        scaling = Scaling(record, members, order, top, rescaled)
        if carried:
            found = _sum_of_carried(members.many, scaling)
            total, carry = found.sum, found.carry
        else:
            total = _sum_of_sums(members.many, scaling)
    if order == 1.0:
        return Norm(total, carry if carried else 0.0, top)
    found_root = root(total)
    square = mul(found_root, found_root)
    # One Newton step from the root towards the root of sum + carry.
    short_of = ((total - square) - lost_in_product(found_root, found_root, square)) + carry
    rest = short_of / mul(2.0, found_root) if carried and found_root > 0.0 else 0.0
    return Norm(found_root, rest, top)


# ---- infinity ------------------------------------------------------------------------------------


@device
def _with_nonfinite(record: Any, segment: Any, norm: Any, sanitized: Any) -> Any:
    """What infinities and NaNs make of the norm of a segment's finite values."""
    if sanitized:
        return norm
    if load_64(at(record, NANS, segment)) != 0:
        return NOT_A_NUMBER
    if load_64(at(record, INFS, segment)) != 0:
        return INFINITY
    return norm


@device
def _largest_value(i: Any, taking: Any) -> Any:
    segment = member(taking.members, i)
    largest = load_double(at(taking.record, LARGEST, segment))
    return _with_nonfinite(taking.record, segment, largest, taking.sanitized)


_largest_of_values = _make_largest_of_any(_largest_value)

# ---- a general order p: top · (Σ (norm / top)^p)^(1/p), the exponent taken out first ---------------


@device
def _norm_of(i: Any, taking: Any) -> Any:
    segment = member(taking.members, i)
    fraction, exponent = split_exponent(load_double(at(taking.record, UNITS, segment)))
    norm = mul(fraction, power(load_double(at(taking.record, SUMS, segment)), 1.0 / taking.order))
    return _with_nonfinite(taking.record, segment, norm, taking.sanitized), exponent


@device
def _exponent_of_norm(i: Any, taking: Any) -> Any:
    norm, exponent = _norm_of(i, taking)
    return exponent if norm != 0.0 else _NO_NORM


@device
def _norm_in_common(i: Any, taking: Any) -> Any:
    norm, exponent = _norm_of(i, taking)
    return scale_by_power(norm, exponent - taking.common)


@device
def _power_of_norm(i: Any, taking: Any) -> Any:
    return power(_norm_in_common(i, taking) / taking.top, taking.order)


_top_exponent_of_norms = _make_top_exponent(_exponent_of_norm)
_largest_norm = _make_largest_of_any(_norm_in_common)
_sum_of_powers = make_tree_of_any(NUMBER, _power_of_norm)


@device
def general_norm_of_scope(record: Any, members: Any, order: Any, _carried: Any, sanitized: Any) -> Any:
    """Of an order other than 1, 2 and infinity."""
    common = _top_exponent_of_norms(members.many, _NO_NORM, Taking(record, members, order, sanitized, 0, 1.0))
    top = _largest_norm(members.many, Taking(record, members, order, sanitized, common, 1.0))
    if top == 0.0 or not is_finite(top):
        return Norm(top, 0.0, 0)
    total = _sum_of_powers(members.many, Taking(record, members, order, sanitized, common, top))
    return Norm(mul(top, power(total, 1.0 / order)), 0.0, common)


@device
def norm_of_scope(record: Any, members: Any, order: Any, carried: Any, sanitized: Any) -> Any:
    """Of order 1, 2 or infinity."""
    if order == INFINITY:
        taking = Taking(record, members, order, sanitized, 0, 1.0)
        return Norm(_largest_of_values(members.many, taking), 0.0, 0)
    return _combine_sums(record, members, order, carried)
