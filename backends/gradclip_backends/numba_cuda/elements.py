"""Memory by its address, and bits as numbers: loads and stores of the device's memory, each as one instruction.

Addresses, bits and counts are int64 throughout: Numba makes a float64 of int64 and uint64 together.
An address is cast to a pointer to global memory, or the instructions would be those for any memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir

from gradclip_backends.numba_cuda.jit import F32, F64, I8, I16, I32, I64, assembling, calling, device, primitive

VECTORS = 8
"""16-byte loads that are under way at a time."""
STRIDE = 16 * 32
"""Bytes that a warp's 16-byte loads span."""
_WORD = 0xFFFFFFFFFFFFFFFF


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, 1))


def _loading(kind: Any, size: int) -> Any:
    def emit(builder: Any, address: Any) -> Any:
        value = builder.load(_pointer(builder, address, kind), align=size)
        return builder.zext(value, I64) if isinstance(kind, ir.IntType) and size < 8 else value

    return emit


def _storing(kind: Any, size: int) -> Any:
    def emit(builder: Any, address: Any, value: Any) -> None:
        if isinstance(kind, ir.IntType) and size < 8:
            value = builder.trunc(value, kind)
        builder.store(value, _pointer(builder, address, kind), align=size)

    return emit


# ---- loads and stores ----------------------------------------------------------------------------


@primitive("float64(int64)", _loading(F64, 8))
def load_double(address: Any) -> Any:
    """A float64."""
    return np.float64(ctypes.c_double.from_address(address).value)


@primitive("float32(int64)", _loading(F32, 4))
def load_float(address: Any) -> Any:
    """A float32."""
    return np.float32(ctypes.c_float.from_address(address).value)


@primitive("int64(int64)", _loading(I64, 8))
def load_64(address: Any) -> Any:
    """Eight bytes."""
    return ctypes.c_int64.from_address(address).value


@primitive("int64(int64)", _loading(I32, 4))
def load_32(address: Any) -> Any:
    """Four bytes."""
    return ctypes.c_uint32.from_address(address).value


@primitive("int64(int64)", _loading(I16, 2))
def load_16(address: Any) -> Any:
    """Two bytes."""
    return ctypes.c_uint16.from_address(address).value


@primitive("int64(int64)", _loading(I8, 1))
def load_8(address: Any) -> Any:
    """A byte."""
    return ctypes.c_uint8.from_address(address).value


@primitive("void(int64, float64)", _storing(F64, 8))
def store_double(address: Any, value: Any) -> None:
    """A float64."""
    ctypes.c_double.from_address(address).value = float(value)


@primitive("void(int64, float32)", _storing(F32, 4))
def store_float(address: Any, value: Any) -> None:
    """A float32."""
    ctypes.c_float.from_address(address).value = float(value)


@primitive("void(int64, int64)", _storing(I64, 8))
def store_64(address: Any, value: Any) -> None:
    """Eight bytes."""
    ctypes.c_uint64.from_address(address).value = value & _WORD


@primitive("void(int64, int64)", _storing(I32, 4))
def store_32(address: Any, value: Any) -> None:
    """Four bytes."""
    ctypes.c_uint32.from_address(address).value = value & 0xFFFFFFFF


@primitive("void(int64, int64)", _storing(I16, 2))
def store_16(address: Any, value: Any) -> None:
    """Two bytes."""
    ctypes.c_uint16.from_address(address).value = value & 0xFFFF


@primitive("void(int64, int64)", _storing(I8, 1))
def store_8(address: Any, value: Any) -> None:
    """A byte."""
    ctypes.c_uint8.from_address(address).value = value & 0xFF


@primitive("float64(int64)", assembling("ld.global.cg.f64 $0, [$1];", "=d,l,~{memory}", F64, I64, effect=True))
def load_fresh(address: Any) -> Any:
    """A float64 that another warp has written: no cache of this processor may answer."""
    return np.float64(ctypes.c_double.from_address(address).value)


@device
def copy_item(to: Any, source: Any, size: Any) -> None:
    """A word of 1, 2, 4 or 8 bytes."""
    if size == 1:
        store_8(to, load_8(source))
    elif size == 2:
        store_16(to, load_16(source))
    elif size == 4:
        store_32(to, load_32(source))
    else:
        store_64(to, load_64(source))


def _emit_load_vectors(builder: Any, address: Any) -> Any:
    words = ir.Constant(ir.ArrayType(I64, 2 * VECTORS), ir.Undefined)
    for i in range(VECTORS):
        pointer = _pointer(builder, builder.add(address, I64(STRIDE * i)), ir.VectorType(I64, 2))
        vector = builder.load(pointer, align=16)
        for j in range(2):
            words = builder.insert_value(words, builder.extract_element(vector, I32(j)), 2 * i + j)
    return words


@primitive("UniTuple(int64, 16)(int64)", _emit_load_vectors)
def load_vectors(address: Any) -> Any:
    """Eight 16-byte loads, ``STRIDE`` apart, as sixteen words."""
    places = (address + STRIDE * i for i in range(VECTORS))
    return tuple(ctypes.c_int64.from_address(place + j).value for place in places for j in (0, 8))


def _emit_store_vector(builder: Any, address: Any, low: Any, high: Any) -> None:
    vector = ir.Constant(ir.VectorType(I64, 2), ir.Undefined)
    for j, word in enumerate((low, high)):
        vector = builder.insert_element(vector, word, I32(j))
    builder.store(vector, _pointer(builder, address, ir.VectorType(I64, 2)), align=16)


@primitive("void(int64, int64, int64)", _emit_store_vector)
def store_vector(address: Any, low: Any, high: Any) -> None:
    """A 16-byte store."""
    ctypes.c_uint64.from_address(address).value = low & _WORD
    ctypes.c_uint64.from_address(address + 8).value = high & _WORD


# ---- bits ----------------------------------------------------------------------------------------


@primitive("int64(float64)", lambda builder, x: builder.bitcast(x, I64))
def bits_of(x: Any) -> Any:
    """A float64's bits."""
    return int(np.float64(x).view(np.int64))


@primitive("float64(int64)", lambda builder, bits: builder.bitcast(bits, F64))
def double_of(bits: Any) -> Any:
    """The float64 with these bits."""
    return np.int64(bits).view(np.float64)


@primitive("int64(float32)", lambda builder, x: builder.zext(builder.bitcast(x, I32), I64))
def bits_of_float(x: Any) -> Any:
    """A float32's bits."""
    return int(np.float32(x).view(np.uint32))


@primitive("float32(int64)", lambda builder, bits: builder.bitcast(builder.trunc(bits, I32), F32))
def float_of(bits: Any) -> Any:
    """The float32 with these bits, the lower half of a word."""
    return np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)


_half_to_float = assembling("cvt.f32.f16 $0, $1;", "=f,h", F32, I16)
_float_to_half = assembling("cvt.rn.f16.f32 $0, $1;", "=h,f", I16, F32)


@primitive("float32(int64)", lambda builder, bits: _half_to_float(builder, builder.trunc(bits, I16)))
def float_of_half(bits: Any) -> Any:
    """The value of the float16 with these bits."""
    return np.float32(np.uint16(bits & 0xFFFF).view(np.float16))


@primitive("int64(float32)", lambda builder, x: builder.zext(_float_to_half(builder, x), I64))
def half_of_float(x: Any) -> Any:
    """The bits of the nearest float16, of the even one of two."""
    return int(np.float16(x).view(np.uint16))


@primitive("int64(int64)", assembling("mov.u64 $0, $1;", "=l,l", I64, I64))
def hidden(n: Any) -> Any:
    """The number, without the compiler's knowing it: a loop of so many steps is not written out step by step."""
    return n


# ---- operations whose rounding must not depend on the compiler ------------------------------------
# NVVM fuses a product with a sum, but for these: `.rn` in the PTX says that the rounding is meant.


@primitive("float64(float64, float64)", calling("llvm.nvvm.mul.rn.d", F64, F64, F64))
def mul(a: Any, b: Any) -> Any:
    """A * b, rounded."""
    return np.float64(a) * np.float64(b)


@primitive("float32(float32, float32)", calling("llvm.nvvm.mul.rn.f", F32, F32, F32))
def multiply(a: Any, b: Any) -> Any:
    """A * b in float32, rounded, subnormals kept."""
    return np.float32(a) * np.float32(b)


@primitive("float64(float64, float64)", lambda builder, x, total: builder.fma(x, x, total))
def add_exact_square(x: Any, total: Any) -> Any:
    """Total + x * x, rounded once. For squares that are exact."""
    return np.float64(x) * np.float64(x) + np.float64(total)


@primitive("float64(float64)", calling("llvm.nvvm.sqrt.rn.d", F64, F64))
def root(x: Any) -> Any:
    """The square root, rounded to nearest."""
    return np.sqrt(np.float64(x))


@primitive("float64(float64)", calling("llvm.floor.f64", F64, F64))
def floor(x: Any) -> Any:
    """The largest integer that is not larger; infinities and NaN stay."""
    return np.floor(np.float64(x))


@primitive("float64(float64, float64)", calling("__nv_pow", F64, F64, F64))
def power(x: Any, p: Any) -> Any:
    """x^p, nearly rounded."""
    return np.power(np.float64(x), np.float64(p))
