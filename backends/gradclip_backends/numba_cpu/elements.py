"""Elements in memory: addresses to arrays, storage types to float32 and back.

A *tag* is a zero of the type through which memory is looked at, so that a kernel compiles anew
for each storage type: float32, float64, uint16 for float16, int16 for bfloat16, uint8 for e4m3fn,
int8 for e5m2 (Numba has none of the four). Each function here exists twice: as LLVM instructions,
and as the Python that runs when the JIT is off.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types

from gradclip_backends.numba_cpu.jit import intrinsic, overload
from gradclip_backends.numba_cpu.small_floats import (
    E4M3FN,
    E5M2,
    F16C,
    HALF,
    e4m3fn_to_float,
    e5m2_to_float,
    float_to,
    half_to_float,
    nearest,
)
from gradclip_core.protocol import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, FLOAT32, FLOAT64, DType

TAGS: dict[DType, Any] = {
    BFLOAT16: np.int16(0),
    FLOAT16: np.uint16(0),
    FLOAT32: np.float32(0),
    FLOAT64: np.float64(0),
    FLOAT8_E4M3FN: np.uint8(0),
    FLOAT8_E5M2: np.int8(0),
}
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


# ---- addresses ----------------------------------------------------------------------------------


@intrinsic
def _pointer(context: Any, address: Any, tag: Any) -> Any:
    signature = types.CPointer(tag)(types.uint64, tag)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(tag).as_pointer())

    return signature, generate


def view(address: Any, length: Any, tag: Any) -> Any:
    """The ``length`` elements at ``address``, as an array of ``tag``'s type."""
    memory = (ctypes.c_char * (int(length) * tag.itemsize)).from_address(int(address))
    return np.frombuffer(memory, tag.dtype)


@overload(view)
def _view(address: Any, length: Any, tag: Any) -> Any:
    return lambda address, length, tag: carray(_pointer(address, tag), (length,))


# ---- widen: a stored element as float32 (float64 for float64), exactly ---------------------------


@intrinsic
def _half_to_float(context: Any, half: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return half_to_float(builder, args[0])

    return types.float32(types.uint16), generate


@intrinsic
def _brain_to_float(context: Any, brain: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(types.int16), generate


@intrinsic
def _e4m3fn_to_float(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return e4m3fn_to_float(builder, args[0])

    return types.float32(types.uint8), generate


@intrinsic
def _e5m2_to_float(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return e5m2_to_float(builder, args[0])

    return types.float32(types.int8), generate


def widen(x: Any) -> Any:
    """A stored element's value."""
    if isinstance(x, np.uint16):
        return np.float32(x.view(np.float16))
    if isinstance(x, np.int16):
        return (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if isinstance(x, np.int8):
        return np.float32(np.uint16(int(x.view(np.uint8)) << 8).view(np.float16))
    if isinstance(x, np.uint8):
        body, sign = int(x) & 0x7F, int(x) >> 7 << 15
        half = HALF.nan if body == E4M3FN.nan else body << 7
        return np.float32(np.uint16(half | sign).view(np.float16)) * np.float32(256)
    return x


@overload(widen)
def _widen(x: Any) -> Any:
    if x == types.uint16:
        return lambda x: _half_to_float(x)
    if x == types.int16:
        return lambda x: _brain_to_float(x)
    if x == types.uint8:
        return lambda x: _e4m3fn_to_float(x)
    if x == types.int8:
        return lambda x: _e5m2_to_float(x)
    return lambda x: x


# ---- narrow: float32 to a stored element, to nearest, ties to even -------------------------------


@intrinsic
def _float_to_half(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if F16C:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))
        return float_to(builder, args[0], HALF)

    return types.uint16(types.float32), generate


@intrinsic
def _float_to_brain(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = builder
        bits = b.bitcast(args[0], _I32)
        high = b.lshr(bits, _I32(16))
        rounded = b.lshr(b.add(b.add(bits, _I32(0x7FFF)), b.and_(high, _I32(1))), _I32(16))
        quiet_nan = b.or_(b.and_(high, _I32(0x8000)), _I32(0x7FC0))
        is_nan = b.icmp_unsigned(">", b.and_(bits, _I32(0x7FFFFFFF)), _I32(0x7F800000))
        return b.trunc(b.select(is_nan, quiet_nan, rounded), ir.IntType(16))

    return types.int16(types.float32), generate


@intrinsic
def _float_to_e4m3fn(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return float_to(builder, args[0], E4M3FN)

    return types.uint8(types.float32), generate


@intrinsic
def _float_to_e5m2(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return float_to(builder, args[0], E5M2)

    return types.int8(types.float32), generate


def narrow(y: Any, tag: Any) -> Any:
    """``y`` as an element of ``tag``'s storage type."""
    if isinstance(tag, np.uint16):
        return np.float16(y).view(np.uint16)
    if isinstance(tag, np.int16):
        bits = int(np.float32(y).view(np.uint32))
        if y != y:
            return np.uint16((bits >> 16) & 0x8000 | 0x7FC0).view(np.int16)
        return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).view(np.int16)
    if isinstance(tag, np.uint8):
        return np.uint8(nearest(y, E4M3FN))
    if isinstance(tag, np.int8):
        return np.uint8(nearest(y, E5M2)).view(np.int8)
    return y


@overload(narrow)
def _narrow(y: Any, tag: Any) -> Any:
    if tag == types.uint16:
        return lambda y, tag: _float_to_half(y)
    if tag == types.int16:
        return lambda y, tag: _float_to_brain(y)
    if tag == types.uint8:
        return lambda y, tag: _float_to_e4m3fn(y)
    if tag == types.int8:
        return lambda y, tag: _float_to_e5m2(y)
    return lambda y, tag: y


# ---- float64 to a stored element, rounded once ----------------------------------------------------


@intrinsic
def _double_to_odd_float(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = builder
        nearest = b.fptrunc(args[0], _F32)
        back = b.fpext(nearest, ir.DoubleType())
        magnitude = b.module.declare_intrinsic("llvm.fabs", [ir.DoubleType()])
        over = b.fcmp_ordered(">", b.call(magnitude, [back]), b.call(magnitude, args))
        inexact = b.fcmp_ordered("!=", back, args[0])  # not for NaN
        bits = b.sub(b.bitcast(nearest, _I32), b.zext(over, _I32))
        return b.bitcast(b.or_(bits, b.zext(inexact, _I32)), _F32)

    return types.float32(types.float64), generate


def to_odd_float(x: Any) -> Any:
    """float64 to float32, inexact results with their last bit set: a second rounding, to at most 22
    bits, is then as if it were the only one (Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819).
    """
    nearest = np.float32(x)
    back = float(nearest)
    if back == x or not np.isfinite(x):
        return nearest
    bits = int(nearest.view(np.uint32)) - (abs(back) > abs(x))
    return np.uint32(bits | 1).view(np.float32)


@overload(to_odd_float)
def _to_odd_float(x: Any) -> Any:
    return lambda x: _double_to_odd_float(x)


def narrow_once(y: Any, tag: Any) -> Any:
    """``y``, a float64, as an element of ``tag``'s storage type."""
    if isinstance(tag, np.float64):
        return y
    if isinstance(tag, np.float32):
        return np.float32(y)
    return narrow(to_odd_float(y), tag)


@overload(narrow_once)
def _narrow_once(y: Any, tag: Any) -> Any:
    if tag == types.float64:
        return lambda y, tag: y
    if tag == types.float32:
        return lambda y, tag: np.float32(y)
    return lambda y, tag: narrow(to_odd_float(y), tag)


# ---- bits ----------------------------------------------------------------------------------------


def bits_of(u: Any) -> Any:
    """The 64 bits of a float64."""
    return np.float64(u).view(np.uint64)


@overload(bits_of)
def _bits_of(u: Any) -> Any:
    return lambda u: _bitcast(u, np.uint64(0))


# ---- magnitudes as integers ----------------------------------------------------------------------
# With the sign bit cleared, the bits of a float order as integers, in every format. The maximum of
# integers vectorises at the width of the storage, and shows infinities and NaNs for free.


def code_tag(tag: Any) -> Any:
    """A zero of the signed integer as wide as ``tag``."""
    return {1: np.int8(0), 2: np.int16(0), 4: np.int32(0), 8: np.int64(0)}[tag.itemsize]


@intrinsic
def _larger_code(context: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.IntType(a.bitwidth)
        magnitude = builder.and_(args[1], kind((1 << (a.bitwidth - 1)) - 1))
        return builder.select(builder.icmp_signed(">", magnitude, args[0]), magnitude, args[0])

    return a(a, a), generate


def larger_code(a: Any, b: Any) -> Any:
    """The larger of ``a``, a magnitude's code, and the magnitude of the code ``b``."""
    return max(a, type(b)(b & np.iinfo(type(b)).max))


@overload(larger_code)
def _overload_larger_code(a: Any, b: Any) -> Any:
    return lambda a, b: _larger_code(a, b)


@intrinsic
def _clamped_code(context: Any, code: Any, limit: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b, (code_, limit_) = builder, args
        sign = code_.type(-1 << (code.bitwidth - 1))
        magnitude = b.and_(code_, b.not_(sign))
        return b.select(b.icmp_signed(">", magnitude, limit_), b.or_(b.and_(code_, sign), limit_), code_)

    return code(code, code), generate


def clamped_code(code: Any, limit: Any) -> Any:
    """The code of an element whose magnitude is at most that of the code ``limit``."""
    sign = np.iinfo(type(code)).min
    return type(code)((code & sign) | limit) if code & ~sign > limit else code


@overload(clamped_code)
def _overload_clamped_code(code: Any, limit: Any) -> Any:
    return lambda code, limit: _clamped_code(code, limit)


@intrinsic
def _bitcast(context: Any, code: Any, tag: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(tag))

    return tag(code, tag), generate


def decode(code: Any, tag: Any) -> Any:
    """The stored element whose bits are ``code``."""
    return code.view(tag.dtype)


@overload(decode)
def _decode(code: Any, tag: Any) -> Any:
    return lambda code, tag: _bitcast(code, tag)
