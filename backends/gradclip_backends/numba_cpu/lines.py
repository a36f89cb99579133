"""A cache line at a time: 64 bytes are loaded, widened, and added to their lanes; the largest is kept.

Memory is read in its order and once, each line asked for 4 KB before it is used, so that all arithmetic
hides behind the memory. Written as LLVM vectors, because the compiler does not make one loop of the
sum and the maximum: it took two walks over a block, the first one waiting for memory, the second
one not. A processor with narrower vectors gets two or four instructions for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from gradclip_backends.numba_cpu.elements import code_tag, larger_code, view, widen
from gradclip_backends.numba_cpu.jit import bare, intrinsic, jit, overload
from gradclip_backends.numba_cpu.small_floats import F16C, FMA

LANES = 256
LINE = 64
AHEAD = 4096
"""Bytes between what is asked for and what is used: 2 KB and 8 KB measured the same, 1 KB slower."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_ELEMENTS = {types.float32: _F32, types.float64: _F64, types.int16: _I16}
if F16C:
    _ELEMENTS[types.uint16] = ir.HalfType()


def _all(kind: ir.Type, n: int, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, n), [value] * n)


def _widen(b: Any, raw: Any, tag: Any, n: int) -> Any:
    """``widen``, and to float64, of a vector."""
    singles, doubles = ir.VectorType(_F32, n), ir.VectorType(_F64, n)
    if tag == types.float64:
        return raw
    if tag == types.int16:
        raw = b.bitcast(b.shl(b.zext(raw, ir.VectorType(_I32, n)), _all(_I32, n, 16)), singles)
    elif tag == types.uint16:
        raw = b.fpext(raw, singles)
    return b.fpext(raw, doubles)


def _row_intrinsic(square: bool) -> Any:
    def add_row(context: Any, address: Any, lanes: Any, codes: Any, tag: Any) -> Any:
        """Add the row at ``address`` to the float64 at ``lanes``, and its magnitudes' codes to those at ``codes``."""
        element = _ELEMENTS[tag]

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            b, (address, lanes, codes, _) = builder, args
            size = tag.bitwidth // 8
            n, code = LINE // size, ir.IntType(tag.bitwidth)

            def pointer(start: Any, offset: int, kind: Any) -> Any:
                return b.inttoptr(b.add(start, _I64(offset)), ir.VectorType(kind, n).as_pointer())

            # In a register from line to line: through memory it would be a chain of stores and loads.
            largest = b.load(pointer(codes, 0, code), align=LINE)
            for line in range(LANES // n):
                _ask(b, b.add(address, _I64(AHEAD + line * LINE)))
                raw = b.load(pointer(address, line * LINE, element), align=size)
                bits = b.bitcast(raw, ir.VectorType(code, n))
                magnitude = b.and_(bits, _all(code, n, (1 << (tag.bitwidth - 1)) - 1))
                largest = b.select(b.icmp_signed(">", magnitude, largest), magnitude, largest)
                v = _widen(b, raw if square else b.bitcast(magnitude, raw.type), tag, n)
                sums = pointer(lanes, line * n * 8, _F64)
                total = b.load(sums, align=LINE)
                if not square:
                    total = b.fadd(total, v)
                elif FMA and tag != types.float64:
                    total = _fused(b, v, total)
                else:
                    total = b.fadd(total, b.fmul(v, v))
                b.store(total, sums, align=LINE)
            b.store(largest, pointer(codes, 0, code), align=LINE)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64, tag), generate

    return intrinsic(add_row)


def _fused(b: Any, v: Any, total: Any) -> Any:
    """``v·v + total`` in one instruction: the same bits where the product is exact, as of all but float64."""
    name = f"llvm.fma.v{v.type.count}f64"
    fused = b.module.globals.get(name)
    fused = fused or ir.Function(b.module, ir.FunctionType(v.type, [v.type] * 3), name)
    return b.call(fused, [v, v, total])


def _ask(b: Any, address: Any) -> None:
    """Ask for the line at an address, which may be nobody's: asking never faults."""
    byte = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    ask = b.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    b.call(ask, [b.inttoptr(address, byte), _I32(0), _I32(3), _I32(1)])


@intrinsic
def ask(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _ask(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


_add_squares, _add_magnitudes = _row_intrinsic(True), _row_intrinsic(False)


@jit
def term(x: Any, absolute: Any) -> Any:
    """x² or abs(x), in float64. ``absolute`` is None or True: a kernel is compiled for the one that is asked for."""
    v = np.float64(widen(x))
    if absolute is None:
        return v * v
    return abs(v)


def add_row(address: Any, lanes: Any, codes: Any, absolute: Any, tag: Any) -> Any:
    """Add x² or abs(x) of the 256 elements at ``address`` to ``lanes``, and keep the largest codes in ``codes``."""
    add_some(view(address, LANES, tag), view(address, LANES, code_tag(tag)), LANES, lanes, codes, absolute)


@overload(add_row)
def _add_row(address: Any, lanes: Any, codes: Any, absolute: Any, tag: Any) -> Any:
    if tag in _ELEMENTS:
        add = _add_squares if isinstance(absolute, types.NoneType) else _add_magnitudes

        def by_lines(address: Any, lanes: Any, codes: Any, absolute: Any, tag: Any) -> Any:
            add(address, np.uint64(lanes.ctypes.data), np.uint64(codes.ctypes.data), tag)

        return bare(by_lines)

    zero = {8: np.int8(0), 16: np.int16(0), 32: np.int32(0), 64: np.int64(0)}[tag.bitwidth]

    def by_elements(address: Any, lanes: Any, codes: Any, absolute: Any, tag: Any) -> Any:
        add_some(view(address, LANES, tag), view(address, LANES, zero), LANES, lanes, codes, absolute)

    return bare(by_elements)


@jit
def add_some(x: Any, bits: Any, n: Any, lanes: Any, codes: Any, absolute: Any) -> Any:
    """``add_row`` for up to 256 elements, an element at a time."""
    largest = codes[0]
    for k in range(n):
        lanes[k] += term(x[k], absolute)
    for k in range(n):
        largest = larger_code(largest, bits[k])
    codes[0] = largest
