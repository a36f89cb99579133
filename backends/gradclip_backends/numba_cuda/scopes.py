"""What every decision has to know first: the loss scale, who gave up, and who shares which threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradclip_backends.gpu.layout import GROUP, GROUPS, ONE, POLICY_CODES
from gradclip_backends.numba_cuda.arithmetic import (
    INFINITY,
    LARGEST_DOUBLE,
    is_finite,
    maximum,
    minimum,
    scale_by_power,
)
from gradclip_backends.numba_cuda.elements import (
    load_32,
    load_64,
    load_double,
    mul,
    store_8,
    store_32,
    store_double,
    store_float,
)
from gradclip_backends.numba_cuda.factors import split
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.machine import set_32, thread_number
from gradclip_backends.numba_cuda.norms import Members, norm_of_scope
from gradclip_backends.numba_cuda.record import (
    AT_ACTS,
    AT_CARRY,
    AT_ERROR,
    AT_INVERSE,
    AT_NONFINITE,
    AT_SKIP,
    FACTOR,
    FLOAT64,
    HIGH,
    LEAVE,
    LOW,
    at,
    at_coarse,
    at_fine,
    at_op,
    dtype_of_row,
    find_row_of_segment,
    length_of_row,
)
from gradclip_backends.numba_cuda.scale import inverse_scale, is_loss_scale, loss_scale
from gradclip_backends.numba_cuda.structs import Record

SANITIZE_ALL, _ZERO_ALL = POLICY_CODES["sanitize"], POLICY_CODES["zero"]
assert max(POLICY_CODES["raise"], POLICY_CODES["skip"]) < _ZERO_ALL < SANITIZE_ALL < POLICY_CODES["propagate"]
_BAD_SCALE, _BAD_WEIGHTS = 1, 2

assert GROUP.fields is not None
_GROUP_BYTES = GROUP.itemsize
_LIMIT, _SIZE, _START, _COUNT, _NARROW = (
    int(GROUP.fields[name][1]) for name in ("limit", "size", "start", "count", "narrow")
)


class Context(NamedTuple):
    """What all threads have to know first."""

    inverse: Any
    skip: Any
    zero: Any
    carried: Any
    sanitize: Any


@device
def context_of(rule: Any) -> Any:
    """It also leaves in the record what does not depend on a segment."""
    state = rule.record.address
    valid = rule.scale.address == 0 or is_loss_scale(loss_scale(rule.scale))
    sound = rule.weights == 0 or load_64(rule.weights + AT_NONFINITE) == 0
    gone = rule.previous != 0 and load_32(rule.previous + AT_SKIP) != 0
    poisoned = load_64(state + AT_NONFINITE) != 0 and rule.policy <= _ZERO_ALL
    inverse = inverse_scale(rule.scale)
    skip = poisoned or not valid or not sound or gone
    zero = poisoned and rule.policy == _ZERO_ALL and valid and sound and not gone
    if thread_number() == 0:
        store_double(state + AT_INVERSE, inverse)
        store_32(state + AT_SKIP, 1 if skip else 0)
        fault = 0 if sound else _BAD_WEIGHTS
        store_32(state + AT_ERROR, fault if valid else _BAD_SCALE)
    return Context(inverse, skip, zero, load_32(state + AT_CARRY) != 0, rule.policy == SANITIZE_ALL)


@device
def write_action(record: Any, segment: Any, op: Any, factor: Any, low: Any, high: Any) -> None:
    """What is done to a segment."""
    coarse, fine = split(factor)
    store_8(at_op(record, segment), op)
    store_double(at(record, FACTOR, segment), factor)
    store_double(at(record, LOW, segment), low)
    store_double(at(record, HIGH, segment), high)
    store_float(at_coarse(record, segment), coarse)
    store_float(at_fine(record, segment), fine)
    if op != LEAVE:
        set_32(record.address + AT_ACTS, 1)


class Scope(NamedTuple):
    """Those who share a threshold."""

    members: Any
    limit: Any
    size: Any
    narrow: Any
    """Whether elements other than float64 take part."""


@device
def _limit_of_weights(rule: Any, segment: Any) -> Any:
    weights = Record(rule.weights, rule.record.segments)
    norm = norm_of_scope(weights, Members(0, segment, 1), 2.0, False, False)
    value = scale_by_power(norm.root, norm.exponent)
    if value == INFINITY and is_finite(norm.root):
        value = LARGEST_DOUBLE
    return minimum(mul(rule.clipping, maximum(value, rule.eps)), LARGEST_DOUBLE)


@device
def scope_of(rows: Any, rule: Any, number: Any) -> Any:
    """The scope with this number."""
    if rule.kind == ONE:
        return Scope(Members(0, 0, rule.one.count), rule.one.limit, rule.one.size, rule.one.narrow != 0)
    if rule.kind == GROUPS:
        group = rule.groups + number * _GROUP_BYTES
        members = Members(rule.members, load_32(group + _START), load_32(group + _COUNT))
        narrow = load_32(group + _NARROW) != 0
        return Scope(members, load_double(group + _LIMIT), load_double(group + _SIZE), narrow)
    row = find_row_of_segment(rows, rule.buffers, number)
    limit = rule.one.limit
    if rule.weights != 0:
        limit = _limit_of_weights(rule, number)
    elif rule.limits != 0:
        limit = load_double(rule.limits + 8 * number)
    length = length_of_row(row)
    narrow = dtype_of_row(row) != FLOAT64 and length != 0
    return Scope(Members(0, number, 1), limit, float(length), narrow)
