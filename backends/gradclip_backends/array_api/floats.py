"""Stored elements as numbers and back, every rounding where the reference rounds.

``Plain`` leaves it to the framework. ``ByBits`` is for float32 where the framework flushes its
subnormals, and for bfloat16 where it has none: float32 values are held in float64, which no one
flushes, and are rounded and stored by integers.
"""

from __future__ import annotations

from typing import Any, Protocol

from gradclip_backends.array_api.frameworks import Framework
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT64, DType

_INFINITY, _NAN, _SIGN = 0x7F800000, 0x7FC00000, 0x80000000
_BIAS = 896  # float64's exponents are biased by 1023, float32's by 127
_SHIFT = 29  # float64 has 52 bits of fraction, float32 23


class Floats(Protocol):
    """How one storage type is computed with."""

    xp: Any
    wide: Any
    """The namespace's dtype that the numbers are held in."""

    def widen(self, x: Any) -> Any:
        """Stored elements as numbers, exactly."""
        ...

    def rounded(self, y: Any) -> Any:
        """A product of two numbers as the number that it rounds to in float32; float64 is not rounded again."""
        ...

    def narrow(self, y: Any, stored: Any) -> Any:
        """Numbers as elements of the dtype ``stored``, rounded to nearest, ties to even."""
        ...


def floats_for(framework: Framework, dtype: DType) -> Floats:
    """The way to compute with a storage type in a framework."""
    bits = framework.flushes or (dtype is BFLOAT16 and framework.has_views)
    return ByBits(framework.xp, dtype) if bits and dtype is not FLOAT64 else Plain(framework.xp, dtype)


class Plain:
    """See ``Floats``."""

    def __init__(self, xp: Any, dtype: DType) -> None:
        self.xp = xp
        self.wide = xp.float64 if dtype is FLOAT64 else xp.float32

    def widen(self, x: Any) -> Any:
        """See ``Floats.widen``."""
        return self.xp.astype(x, self.wide, copy=False)

    def rounded(self, y: Any) -> Any:
        """See ``Floats.rounded``: the product was made in float32."""
        return y

    def narrow(self, y: Any, stored: Any) -> Any:
        """See ``Floats.narrow``."""
        return self.xp.astype(y, stored, copy=False)


class ByBits:
    """See ``Floats``. Needs NumPy's ``view``."""

    def __init__(self, xp: Any, dtype: DType) -> None:
        self.xp = xp
        self.dtype = dtype
        self.wide = xp.float64

    def widen(self, x: Any) -> Any:
        """See ``Floats.widen``: the float32's exponent and fraction, moved to a float64's places."""
        xp = self.xp
        if self.dtype is FLOAT16:  # by way of float32, of which no float16 is a subnormal
            return xp.astype(xp.astype(x, xp.float32), xp.float64)
        if self.dtype is BFLOAT16:
            bits = xp.astype(x.view(xp.uint16), xp.int64) << 16
        else:
            bits = xp.astype(x.view(xp.uint32), xp.int64)
        magnitude = bits & (_SIGN - 1)
        # Subnormals of float32 become subnormals of float64 here, and numbers by the scaling, which is exact.
        value = (magnitude << _SHIFT).view(xp.float64) * 2.0**_BIAS
        value = xp.where(magnitude == _INFINITY, xp.full((), float("inf")), value)
        value = xp.where(magnitude > _INFINITY, xp.full((), float("nan")), value)
        return xp.where(bits != magnitude, -value, value)

    def rounded(self, y: Any) -> Any:
        """See ``Floats.rounded``. The product of two float32 is exact in float64, so this rounds once."""
        xp = self.xp
        magnitude = xp.abs(y)
        bits = magnitude.view(xp.int64)
        half = (1 << (_SHIFT - 1)) - 1
        value = (((bits + half + ((bits >> _SHIFT) & 1)) >> _SHIFT) << _SHIFT).view(xp.float64)
        # Below float32's normal numbers its steps are all 2^-149.
        value = xp.where(magnitude < 2.0**-126, xp.round(magnitude * 2.0**149) * 2.0**-149, value)
        value = xp.where(value >= 2.0**128, xp.full((), float("inf")), value)
        value = xp.where(xp.isnan(y), y, value)
        return xp.copysign(value, y)

    def narrow(self, y: Any, stored: Any) -> Any:
        """See ``Floats.narrow``. ``y`` are values of float32."""
        xp = self.xp
        if self.dtype is FLOAT16:  # what float32 flushes on the way is a zero in float16
            return xp.astype(xp.astype(y, xp.float32), stored)
        magnitude = xp.abs(y)
        small = magnitude < 2.0**-126
        steps = xp.astype(xp.where(small, magnitude, xp.zeros_like(magnitude)) * 2.0**149, xp.int64)
        bits = xp.where(small, steps, (magnitude.view(xp.int64) >> _SHIFT) - (_BIAS << 23))
        bits = xp.where(xp.isinf(y), xp.full_like(bits, _INFINITY), bits)
        bits = xp.where(xp.isnan(y), xp.full_like(bits, _NAN), bits)
        if self.dtype is BFLOAT16:
            bits = bits + xp.where(xp.isnan(y), xp.zeros_like(bits), 0x7FFF + ((bits >> 16) & 1))
        bits = xp.where(y.view(xp.int64) < 0, bits | _SIGN, bits)
        if self.dtype is BFLOAT16:
            return xp.astype(bits >> 16, xp.uint16).view(stored)
        return xp.astype(bits, xp.uint32).view(stored)
