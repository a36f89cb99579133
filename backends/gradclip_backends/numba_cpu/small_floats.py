"""Floats of at most 16 bits by integer instructions, for float8, and for float16 where the processor has none.

What is here builds LLVM instructions; ``nearest`` is the Python that runs when the JIT is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_INFINITY = 0x7F800000


@dataclass(frozen=True, slots=True)
class Format:
    """How a storage type divides its bits. Codes are without the sign."""

    width: int
    fraction: int
    """Bits behind the leading one."""
    bias: int
    beyond: int
    """The code of what is too large, the one after the largest finite."""
    nan: int

    @property
    def shift(self) -> int:
        """Bits of a float32's fraction that this one has not."""
        return 23 - self.fraction

    @property
    def rebias(self) -> int:
        """What a float32's bits have more in the exponent."""
        return (127 - self.bias) << 23


HALF = Format(16, 10, 15, 0x7C00, 0x7E00)
E4M3FN = Format(8, 3, 7, 0x7F, 0x7F)
E5M2 = Format(8, 2, 15, 0x7C, 0x7E)


def _has(feature: str) -> bool:
    """Whether LLVM may emit the processor's instructions of this name; without them it calls a function."""
    if binding.get_host_cpu_features and numba.config.CPU_FEATURES is not None:
        return f"+{feature}" in numba.config.CPU_FEATURES
    if numba.config.CPU_NAME not in (None, "", "host"):
        return False
    return bool(dict(binding.get_host_cpu_features()).get(feature, False))


F16C = _has("f16c")
"""Half-precision conversions. The function that LLVM calls without them is nowhere."""
FMA = _has("fma")


# ---- widen --------------------------------------------------------------------------------------


def half_to_float(b: Any, half: Any) -> Any:
    """The 16 bits of a float16 as a float32."""
    return b.fpext(b.bitcast(half, ir.HalfType()), _F32) if F16C else _half_by_integers(b, half)


def _half_by_integers(b: Any, half: Any) -> Any:
    """Shift exponent and mantissa into place, rebias, and renormalise subnormals by a subtraction."""
    bits = b.zext(half, _I32)
    body = b.shl(b.and_(bits, _I32(0x7FFF)), _I32(13))
    exponent = b.and_(body, _I32(0x0F800000))
    rebiased = b.add(body, _I32(HALF.rebias))
    special = b.add(rebiased, _I32(HALF.rebias))
    magic = b.bitcast(_I32(113 << 23), _F32)
    subnormal = b.bitcast(b.fsub(b.bitcast(b.add(rebiased, _I32(1 << 23)), _F32), magic), _I32)
    magnitude = b.select(b.icmp_unsigned("==", exponent, _I32(0x0F800000)), special, rebiased)
    magnitude = b.select(b.icmp_unsigned("==", exponent, _I32(0)), subnormal, magnitude)
    sign = b.shl(b.and_(bits, _I32(0x8000)), _I32(16))
    return b.bitcast(b.or_(magnitude, sign), _F32)


def e5m2_to_float(b: Any, code: Any) -> Any:
    """It is the upper half of a float16."""
    return half_to_float(b, b.shl(b.zext(code, _I16), _I16(8)))


def e4m3fn_to_float(b: Any, code: Any) -> Any:
    """Its exponent and fraction are those of a float16 that is 2^-8 of it; all bits set are NaN."""
    bits = b.zext(code, _I16)
    body = b.and_(bits, _I16(0x7F))
    half = b.select(b.icmp_unsigned("==", body, _I16(0x7F)), _I16(HALF.nan), b.shl(body, _I16(7)))
    sign = b.shl(b.and_(bits, _I16(0x80)), _I16(8))
    return b.fmul(half_to_float(b, b.or_(half, sign)), ir.Constant(_F32, 256.0))


# ---- narrow: to nearest, ties to even -----------------------------------------------------------


def float_to(b: Any, x: Any, to: Format) -> Any:
    """Normal results round in the integers, subnormal ones by an addition that shifts them out."""
    bits = b.bitcast(x, _I32)
    body = b.and_(bits, _I32(0x7FFFFFFF))
    odd = b.and_(b.lshr(body, _I32(to.shift)), _I32(1))
    half_less_one = (1 << (to.shift - 1)) - 1
    rebiased = b.add(body, _I32((half_less_one - to.rebias) & 0xFFFFFFFF))
    normal = b.lshr(b.add(rebiased, odd), _I32(to.shift))
    normal = b.select(b.icmp_unsigned(">", normal, _I32(to.beyond)), _I32(to.beyond), normal)
    # The float32 whose last bit is the smallest subnormal.
    magic = _I32((151 - to.bias - to.fraction) << 23)
    shifted = b.fadd(b.bitcast(body, _F32), b.bitcast(magic, _F32))
    subnormal = b.sub(b.bitcast(shifted, _I32), magic)
    code = b.select(b.icmp_unsigned("<", body, _I32(to.rebias + (1 << 23))), subnormal, normal)
    code = b.select(b.icmp_unsigned(">", body, _I32(_INFINITY)), _I32(to.nan), code)
    sign = b.lshr(b.and_(bits, _I32(0x80000000)), _I32(32 - to.width))
    return b.trunc(b.or_(code, sign), ir.IntType(to.width))


def nearest(x: Any, to: Format) -> int:
    """The bits of a float32 in a narrower format."""
    bits = int(np.float32(x).view(np.uint32))
    body = bits & 0x7FFFFFFF
    if body > _INFINITY:
        code = to.nan
    elif body < to.rebias + (1 << 23):
        code = round(abs(float(x)) * 2.0 ** (to.bias + to.fraction - 1))
    else:
        odd = (body >> to.shift) & 1
        code = min((body - to.rebias + (1 << (to.shift - 1)) - 1 + odd) >> to.shift, to.beyond)
    return code | bits >> 31 << (to.width - 1)
