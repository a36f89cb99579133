"""The decision, on the device: a few numbers per segment in, a few factors per segment out.

To the bit what gradclip_core/plan.py decides. Launched by gradclip_backends/gpu/passes.py, after the
read pass. Grid: any number of blocks of whole warps; each warp takes a scope after the other, or, by
value, each thread a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradclip_backends.numba_cuda.arithmetic import (
    INFINITY,
    NOT_A_NUMBER,
    is_finite,
    is_nan,
    minimum,
    scale_by_power,
    split_exponent,
)
from gradclip_backends.numba_cuda.elements import load_64, load_double, mul
from gradclip_backends.numba_cuda.factors import make_aim_float32, make_aim_float64, round_down_float32
from gradclip_backends.numba_cuda.jit import device, kernel
from gradclip_backends.numba_cuda.machine import lane, set_32, thread_number, threads, warp_number, warps
from gradclip_backends.numba_cuda.norms import general_norm_of_scope, member, norm_of_scope
from gradclip_backends.numba_cuda.record import (
    AT_CARRY,
    AT_CLIPPED,
    FLOAT64,
    INFS,
    LARGEST,
    LEAVE,
    NANS,
    OUTSIDE,
    SCALE,
    ZERO,
    at,
    dtype_of_row,
    find_row_of_segment,
)
from gradclip_backends.numba_cuda.scale import inverse_scale
from gradclip_backends.numba_cuda.scopes import SANITIZE_ALL, context_of, scope_of, write_action

Function = Callable[..., Any]


@device
def is_over(norm: Any, limit: Any, inverse: Any) -> Any:
    """Compared in units of 2^exponent: no side overflows."""
    bound = scale_by_power(limit, -norm.exponent)
    unscaled = mul(norm.root, inverse)
    margin = unscaled - bound
    # The rounded norm is over; the carries may know that the norm itself is not.
    within = norm.rest < 0.0 and margin + mul(norm.rest, inverse) <= 0.0
    return unscaled > bound and not within


def _make_factor_of(general: bool) -> Function:
    aim_float32, aim_float64 = make_aim_float32(general), make_aim_float64(general)

    @device
    def factor_of(scope: Any, norm: Any, order: Any, inverse: Any) -> Any:
        aim = 0.0
        if scope.narrow:
            aim = aim_float32(scope.limit, norm, scope.size, order)
        else:
            aim = aim_float64(scope.limit, norm, scope.size, order)
        # Products with anything but a power of two are rounded, so a norm just below its limit is shaved too.
        over = is_over(norm, scope.limit, inverse) if split_exponent(inverse)[0] == 0.5 else aim < inverse
        factor = minimum(aim, inverse) if over else inverse
        if is_nan(norm.root):
            factor = NOT_A_NUMBER
        return round_down_float32(factor) if scope.narrow else factor

    return factor_of


def _make_decide(general: bool) -> Function:
    factor_of, norm_of = _make_factor_of(general), general_norm_of_scope if general else norm_of_scope

    @device
    def decide(rows: Any, rule: Any) -> None:
        context = context_of(rule)
        for number in range(warp_number(), rule.scopes, warps()):
            scope = scope_of(rows, rule, number)
            op = ZERO if context.zero else LEAVE
            factor = 0.0 if context.zero else 1.0
            if not context.skip:
                norm = norm_of(rule.record, scope.members, rule.order, context.carried, context.sanitize)
                factor = factor_of(scope, norm, rule.order, context.inverse)
                op = LEAVE if factor == 1.0 else SCALE
                if factor == 0.0 and is_finite(norm.root):
                    op = ZERO
            for i in range(lane(), scope.members.many, 32):
                segment = member(scope.members, i)
                infs, nans = load_64(at(rule.record, INFS, segment)), load_64(at(rule.record, NANS, segment))
                cleans = not context.skip and context.sanitize and infs + nans != 0 and op == LEAVE
                write_action(rule.record, segment, SCALE if cleans else op, factor, -INFINITY, INFINITY)

    return decide


_decide_plain, _decide_general = _make_decide(False), _make_decide(True)

# A decision works on a few numbers: one thread block a processor will do, and has all registers.


@kernel(blocks=1)
def decide_norms(rows: Any, rule: Any) -> None:
    """Radial clipping, of order 1, 2 and infinity."""
    _decide_plain(rows, rule)


@kernel(blocks=1)
def decide_general(rows: Any, rule: Any) -> None:
    """Radial clipping, of another order."""
    _decide_general(rows, rule)


@kernel(blocks=1)
def ask_for_carries(rows: Any, rule: Any) -> None:
    """Whether a scope of float64 alone is over its limit by the rounded sums: its carries are to be measured."""
    inverse = inverse_scale(rule.scale)
    for number in range(warp_number(), rule.scopes, warps()):
        scope = scope_of(rows, rule, number)
        if not scope.narrow:
            norm = norm_of_scope(rule.record, scope.members, rule.order, False, rule.policy == SANITIZE_ALL)
            if lane() == 0 and is_over(norm, scope.limit, inverse):
                set_32(rule.record.address + AT_CARRY, 1)


@kernel(blocks=1)
def decide_value(rows: Any, rule: Any) -> None:
    """By value: clamp every element of the unscaled gradient to [low, high]."""
    context = context_of(rule)
    record = rule.record
    for segment in range(thread_number(), record.segments, threads()):
        if context.skip:
            op, factor = (ZERO, 0.0) if context.zero else (LEAVE, 1.0)
            write_action(record, segment, op, factor, -INFINITY, INFINITY)
        else:
            dtype = dtype_of_row(find_row_of_segment(rows, rule.buffers, segment))
            low, high = rule.low[dtype], rule.high[dtype]
            infinite = load_64(at(record, INFS, segment)) != 0
            nan = load_64(at(record, NANS, segment)) != 0
            beyond = False
            if rule.symmetric == 0:
                beyond = load_64(at(record, OUTSIDE, segment)) != 0
            else:
                largest = mul(load_double(at(record, LARGEST, segment)), context.inverse)
                beyond = largest > high or (not context.sanitize and infinite and is_finite(high))
            factor = context.inverse if dtype == FLOAT64 else round_down_float32(context.inverse)
            touched = beyond or factor != 1.0 or (context.sanitize and (infinite or nan))
            write_action(record, segment, SCALE if touched else LEAVE, factor, low, high)
            if beyond:
                set_32(record.address + AT_CLIPPED, 1)
