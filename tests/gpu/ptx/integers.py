"""Integer instructions: arrays of one width in, arrays out, wrapping as the hardware does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.gpu.ptx.types import TYPES, UNSIGNED, Array, Type


def as_unsigned(array: Array) -> Array:
    """The same bits."""
    unsigned: Array = array.view(UNSIGNED[array.itemsize])
    return unsigned


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product, signed or unsigned by the arrays' type."""
    if a.itemsize < 8:
        wide = np.dtype(f"<{a.dtype.kind}{2 * a.itemsize}")
        upper: Array = ((a.astype(wide) * b.astype(wide)) >> wide.type(8 * a.itemsize)).astype(a.dtype)
        return upper
    ua, ub = as_unsigned(a), as_unsigned(b)
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = ua >> half, ua & mask, ub >> half, ub & mask
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & mask)
    high = a_high * b_high + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    result: Array = high.view(a.dtype)
    return result


def multiply_wide(a: Array, b: Array) -> Array:
    """The whole product, in twice the width."""
    wide = np.dtype(f"<{a.dtype.kind}{2 * a.itemsize}")
    result: Array = a.astype(wide) * b.astype(wide)
    return result


def divide(a: Array, b: Array) -> Array:
    """The quotient, towards zero; all ones where the divisor is zero (PTX leaves it open)."""
    if a.dtype.kind == "u":
        quotient: Array = a // np.where(b == 0, a.dtype.type(1), b)
    else:
        magnitude = as_unsigned(np.abs(a)) // as_unsigned(np.where(b == 0, a.dtype.type(1), np.abs(b)))
        quotient = magnitude.view(a.dtype)
        quotient = np.where((a < 0) != (b < 0), -quotient, quotient)
    return np.where(b == 0, ~a.dtype.type(0), quotient)


def remainder(a: Array, b: Array) -> Array:
    """With the sign of the dividend; the dividend itself where the divisor is zero."""
    result: Array = np.where(b == 0, a, a - divide(a, b) * b)
    return result


def shift_left(a: Array, count: Array) -> Array:
    """Zero once everything is shifted out."""
    bits = 8 * a.itemsize
    shifted: Array = a << np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: Array, count: Array) -> Array:
    """Filled with the sign, where the type has one."""
    bits = 8 * a.itemsize
    shifted: Array = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


def funnel_shift(left: bool, wrap: bool) -> Callable[[Array, Array, Array], Array]:
    """``shf``: 32 bits out of 64."""

    def compute(low: Array, high: Array, count: Array) -> Array:
        count = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        shifted = (both << count) >> np.uint64(32) if left else both >> count
        return shifted.astype(np.uint32)

    return compute


def logic(table: int) -> Callable[[Array, Array, Array], Array]:
    """``lop3``: any function of three bits."""

    def compute(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), a.dtype)
        for case in range(8):
            if table >> case & 1:
                result |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
        return result

    return compute


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """``prmt`` in its default mode."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
    for position in range(4):
        choice = (selector >> np.uint32(4 * position)) & np.uint32(15)
        byte = (both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte >= 128, np.uint32(0xFF), np.uint32(0))
        result |= np.where(choice >= 8, sign, byte) << np.uint32(8 * position)
    return result


def extract_field(a: Array, start: Array, length: Array) -> Array:
    """``bfe``: with the sign of the field's last bit where the type has one."""
    bits = 8 * a.itemsize
    start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    size = np.minimum(length, np.maximum(bits - start, 0))
    field = shift_right(as_unsigned(a), start) & low_mask(size, a.itemsize)
    if a.dtype.kind == "u":
        return field
    last = np.minimum(start + length - 1, bits - 1)
    negative = (shift_right(as_unsigned(a), last) & 1).astype(bool) & (length > 0)
    return np.where(negative, field | ~low_mask(size, a.itemsize), field).view(a.dtype)


def insert_field(a: Array, b: Array, start: Array, length: Array) -> Array:
    """``bfi``: the low bits of ``a`` into ``b``."""
    start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    mask = shift_left(low_mask(length, a.itemsize), start)
    result: Array = (b & ~mask) | (shift_left(a, start) & mask)
    return result


def low_mask(count: Array, width: int) -> Array:
    """So many ones."""
    inverted: Array = ~shift_left(np.full(count.shape, ~UNSIGNED[width].type(0)), count)
    return inverted


def bit_length(a: Array) -> Array:
    """Of the unsigned value: 0 for 0."""
    value, length = as_unsigned(a).astype(np.uint64), np.zeros(a.shape, np.uint32)
    for step in (32, 16, 8, 4, 2, 1):
        above = value >> np.uint64(step)
        length += np.where(above != 0, np.uint32(step), np.uint32(0))
        value = np.where(above != 0, above, value)
    result: Array = length + (value != 0).astype(np.uint32)
    return result


def leading_zeros(a: Array) -> Array:
    """``clz``."""
    zeros: Array = np.uint32(8 * a.itemsize) - bit_length(a)
    return zeros


def find_bit(shift_amount: bool) -> Callable[[Array], Array]:
    """``bfind``: the most significant bit that is not the sign's; all ones if there is none."""

    def compute(a: Array) -> Array:
        value: Array = np.where(a < 0, ~a, a) if a.dtype.kind == "i" else a
        position = bit_length(value) - np.uint32(1)
        distance = np.uint32(8 * a.itemsize - 1) - position
        return np.where(value == 0, np.uint32(0xFFFFFFFF), distance if shift_amount else position)

    return compute


def reverse_bits(a: Array) -> Array:
    """``brev``."""
    value = as_unsigned(a)
    kind = value.dtype.type
    for step, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        low = kind(mask & (2 ** (8 * a.itemsize) - 1))
        value = ((value >> kind(step)) & low) | ((value & low) << kind(step))
    swapped: Array = value.byteswap()
    return swapped


def with_carry(name: str, type: Type, high: bool) -> Callable[..., tuple[Array, Array]]:
    """``add``, ``sub`` and ``mad`` of the carry chains: the last argument is the carry in."""

    def compute(*arguments: Array) -> tuple[Array, Array]:
        *values, carry = [*map(as_unsigned, arguments[:-1]), arguments[-1]]
        if name == "mad":
            product = multiply_high(arguments[0], arguments[1]) if high else arguments[0] * arguments[1]
            values = [as_unsigned(product), values[2]]
        a, b = values
        more = carry.astype(a.dtype)
        if name == "sub":
            total = a - b - more
            borrow = (a < b) | ((a == b) & carry)
            return total.view(type.dtype), borrow
        partial = a + b
        total = partial + more
        return total.view(type.dtype), (partial < a) | (total < partial)

    return compute


def saturating(name: str, type: Type) -> Callable[[Array, Array], Array]:
    """``add.sat.s32`` and ``sub.sat.s32``."""
    if type is not TYPES["s32"]:
        raise NotImplementedError(f"{name}.sat.{type.name}")
    info = np.iinfo(np.int32)

    def compute(a: Array, b: Array) -> Array:
        wide = a.astype(np.int64) + (b if name == "add" else -b.astype(np.int64))
        return wide.clip(info.min, info.max).astype(np.int32)

    return compute
