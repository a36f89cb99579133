"""Small arithmetic on float64, to the bit as cupy_raw/kernels/arithmetic.cuh has it."""

from __future__ import annotations

from typing import Any

from gradclip_backends.numba_cuda.elements import bits_of, double_of, mul
from gradclip_backends.numba_cuda.jit import device

INFINITY_BITS = 0x7FF0000000000000
MAGNITUDE_BITS = 0x7FFFFFFFFFFFFFFF
LARGEST_DOUBLE = 1.7976931348623157e308
INFINITY = float("inf")
NOT_A_NUMBER = float("nan")
# Sign and mantissa: 0x800fffffffffffff as an int64.
_SIGN_AND_MANTISSA = -0x7FF0000000000001
_ONE_HALF = 0x3FE0000000000000


@device
def is_nan(x: Any) -> Any:
    """Whether x is not a number."""
    return x != x


@device
def magnitude(x: Any) -> Any:
    """|x|."""
    return double_of(bits_of(x) & MAGNITUDE_BITS)


@device
def is_finite(x: Any) -> Any:
    """Whether x is neither infinite nor NaN."""
    return (bits_of(x) & MAGNITUDE_BITS) < INFINITY_BITS


@device
def maximum(a: Any, b: Any) -> Any:
    """The larger of two, NaN if either is: numpy.maximum."""
    if is_nan(a) or a > b:
        return a
    return b


@device
def minimum(a: Any, b: Any) -> Any:
    """The smaller of two, NaN if either is: numpy.minimum."""
    if is_nan(a) or a < b:
        return a
    return b


@device
def power_of_two(n: Any) -> Any:
    """2^n for -1022 <= n <= 1023."""
    return double_of((n + 1023) << 52)


@device
def scale_by_power(x: Any, by: Any) -> Any:
    """X * 2^by, rounded once. The two steps down stop where the last one alone can round."""
    n = min(max(by, -5000), 5000)
    for _ in range(2):
        if n > 1023:
            x = mul(x, power_of_two(1023))
            n -= 1023
    for _ in range(2):
        if n < -1022:
            x = mul(x, power_of_two(-969))
            n += 969
    return mul(x, power_of_two(min(max(n, -1022), 1023)))


@device
def split_exponent(x: Any) -> Any:
    """(fraction, exponent), x = fraction * 2^exponent, fraction in [1/2, 1).

    Zeros, infinities and NaNs have exponent 0.
    """
    bits = bits_of(x)
    shift = 0
    if bits & INFINITY_BITS == 0:  # zero, or subnormal
        bits = bits_of(mul(x, power_of_two(64)))
        shift = -64
    biased = (bits >> 52) & 0x7FF
    if biased == 0 or biased == 0x7FF:
        return x, 0
    return double_of((bits & _SIGN_AND_MANTISSA) | _ONE_HALF), biased - 1022 + shift


@device
def towards_zero(x: Any) -> Any:
    """The next double towards zero."""
    if x == 0.0 or is_nan(x):
        return x
    return double_of(bits_of(x) - 1)


@device
def lost_in_sum(a: Any, b: Any, s: Any) -> Any:
    """What rounding took from s = a + b, exactly: Knuth."""
    t = s - a
    return (a - (s - t)) + (b - t)


@device
def upper_half(a: Any) -> Any:
    """The upper 26 bits of a."""
    t = mul(a, 134217729.0)  # 2^27 + 1
    return t - (t - a)


@device
def lost_in_product(a: Any, b: Any, p: Any) -> Any:
    """What rounding took from p = a * b, exactly: Dekker."""
    ah = upper_half(a)
    al = a - ah
    bh = upper_half(b)
    bl = b - bh
    return ((mul(ah, bh) - p) + mul(ah, bl) + mul(al, bh)) + mul(al, bl)
