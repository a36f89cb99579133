"""Across lanes: 256 sums to one, and a line's codes to the largest. LLVM vectors, without a loop: quick to compile."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from gradclip_backends.numba_cpu.elements import larger_code
from gradclip_backends.numba_cpu.jit import bare, intrinsic, overload

LANES = 256
LINE = 64
_F64, _I32, _I64 = ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_EIGHT = ir.VectorType(_F64, 8)


@intrinsic
def _fold(context: Any, lanes: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        starts = (b.add(args[0], _I64(8 * k)) for k in range(0, LANES, 8))
        kept = [b.load(b.inttoptr(start, _EIGHT.as_pointer()), align=8) for start in starts]
        while len(kept) > 1:  # lane k and the one half as far on as there are lanes
            half = len(kept) // 2
            kept = [b.fadd(one, other) for one, other in zip(kept[:half], kept[half:], strict=True)]
        (eight,) = kept
        one = [b.extract_element(eight, _I32(k)) for k in range(8)]
        one = [b.fadd(one[k], one[k + 4]) for k in range(4)]
        return b.fadd(b.fadd(one[0], one[2]), b.fadd(one[1], one[3]))

    return types.float64(types.uint64), generate


def fold(lanes: Any) -> Any:
    """The sum of 256 lanes, folded in halves: lanes k and k + 128 first. It may leave anything in them."""
    width = LANES
    while width > 1:
        width //= 2
        for k in range(width):
            lanes[k] += lanes[k + width]
    return lanes[0]


@overload(fold)
def _overload_fold(lanes: Any) -> Any:
    def impl(lanes: Any) -> Any:
        return _fold(np.uint64(lanes.ctypes.data))

    return bare(impl)


@intrinsic
def _largest(context: Any, codes: Any, zero: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        bits = zero.bitwidth
        kind = ir.VectorType(ir.IntType(bits), LINE * 8 // bits)
        name = f"llvm.vector.reduce.smax.v{kind.count}i{bits}"
        known = b.module.globals.get(name)
        reduce = known or ir.Function(b.module, ir.FunctionType(kind.element, [kind]), name)
        return b.call(reduce, [b.load(b.inttoptr(args[0], kind.as_pointer()), align=bits // 8)])

    return zero(types.uint64, zero), generate


def largest_of(codes: Any, zero: Any) -> Any:
    """The largest of a line's codes, which are those of magnitudes."""
    largest = zero
    for code in codes:
        largest = larger_code(largest, code)
    return largest


@overload(largest_of)
def _overload_largest_of(codes: Any, zero: Any) -> Any:
    def impl(codes: Any, zero: Any) -> Any:
        return _largest(np.uint64(codes.ctypes.data), zero)

    return bare(impl)
