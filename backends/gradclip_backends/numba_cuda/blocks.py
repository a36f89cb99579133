"""The sum over one block of up to 4096 elements by one warp: fast, and with every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gradclip_backends.gpu.layout import BOUNDS, SANITIZE
from gradclip_backends.numba_cuda.arithmetic import is_finite, is_nan, magnitude
from gradclip_backends.numba_cuda.elements import STRIDE, VECTORS, add_exact_square, hidden, load_vectors, mul
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.machine import all_of_warp, exchange, lane
from gradclip_backends.numba_cuda.storage import Storage, sanitized
from gradclip_backends.numba_cuda.tree import NUMBER, largest_of_warp, make_fold_1

Function = Callable[..., Any]

_fold = make_fold_1(NUMBER)
# Three counts of up to 4096 go in one word, so that one exchange adds all of them.
_NAN, _OUTSIDE, _COUNT = 1 << 16, 1 << 32, 0xFFFF


class Found(NamedTuple):
    """What one block gives. ``largest`` is that of the finite values."""

    sum: Any
    largest: Any
    infs: Any
    nans: Any
    outside: Any


# ---- full, aligned blocks ------------------------------------------------------------------------


@device
def _add_square(x: Any, total: Any) -> Any:
    return total + mul(x, x)


@device
def _add_magnitude(x: Any, total: Any) -> Any:
    return total + x


def make_sum_vectors(storage: Storage, power: int) -> Function:
    """By 16-byte loads, eight of them under way at a time: (sum, largest code)."""
    codes, value, fold, none = storage.codes, storage.value, storage.fold, storage.no_code
    # The squares of 16- and 32-bit values are exact, so that fusing changes no bit.
    square = _add_square if storage.size == 8 else add_exact_square
    add = _add_magnitude if power == 1 else square
    batches = 4096 * storage.size // (STRIDE * VECTORS)

    @device
    def take_2(lanes: Any, low: Any, high: Any, largest: Any) -> Any:
        a, b = codes(low)[0], codes(high)[0]
        return (add(value(a), lanes[0]), add(value(b), lanes[1])), max(max(a, b), largest)

    @device
    def take_4(lanes: Any, low: Any, high: Any, largest: Any) -> Any:
        a, b = codes(low)
        c, d = codes(high)
        first, second = add(value(a), lanes[0]), add(value(b), lanes[1])
        third, fourth = add(value(c), lanes[2]), add(value(d), lanes[3])
        return (first, second, third, fourth), max(max(max(a, b), max(c, d)), largest)

    @device
    def take_4_of(word: Any, a: Any, b: Any, c: Any, d: Any, largest: Any) -> Any:
        p, q, r, s = codes(word)
        added = (add(value(p), a), add(value(q), b), add(value(r), c), add(value(s), d))
        return added, max(max(max(p, q), max(r, s)), largest)

    @device
    def take_8(lanes: Any, low: Any, high: Any, largest: Any) -> Any:
        first, largest = take_4_of(low, lanes[0], lanes[1], lanes[2], lanes[3], largest)
        second, largest = take_4_of(high, lanes[4], lanes[5], lanes[6], lanes[7], largest)
        return first + second, largest

    @device
    def sum_doubles(pointer: Any) -> Any:
        a = b = c = d = (0.0, 0.0)
        largest = none()
        for batch in range(hidden(batches)):
            q = load_vectors(pointer + batch * (STRIDE * VECTORS) + lane() * 16)
            a, largest = take_2(a, q[0], q[1], largest)
            b, largest = take_2(b, q[2], q[3], largest)
            c, largest = take_2(c, q[4], q[5], largest)
            d, largest = take_2(d, q[6], q[7], largest)
            a, largest = take_2(a, q[8], q[9], largest)
            b, largest = take_2(b, q[10], q[11], largest)
            c, largest = take_2(c, q[12], q[13], largest)
            d, largest = take_2(d, q[14], q[15], largest)
        return fold(a + b + c + d), largest

    @device
    def sum_floats(pointer: Any) -> Any:
        a = b = (0.0, 0.0, 0.0, 0.0)
        largest = none()
        for batch in range(hidden(batches)):
            q = load_vectors(pointer + batch * (STRIDE * VECTORS) + lane() * 16)
            a, largest = take_4(a, q[0], q[1], largest)
            b, largest = take_4(b, q[2], q[3], largest)
            a, largest = take_4(a, q[4], q[5], largest)
            b, largest = take_4(b, q[6], q[7], largest)
            a, largest = take_4(a, q[8], q[9], largest)
            b, largest = take_4(b, q[10], q[11], largest)
            a, largest = take_4(a, q[12], q[13], largest)
            b, largest = take_4(b, q[14], q[15], largest)
        return fold(a + b), largest

    @device
    def sum_halves(pointer: Any) -> Any:
        a = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        largest = none()
        for batch in range(hidden(batches)):
            q = load_vectors(pointer + batch * (STRIDE * VECTORS) + lane() * 16)
            a, largest = take_8(a, q[0], q[1], largest)
            a, largest = take_8(a, q[2], q[3], largest)
            a, largest = take_8(a, q[4], q[5], largest)
            a, largest = take_8(a, q[6], q[7], largest)
            a, largest = take_8(a, q[8], q[9], largest)
            a, largest = take_8(a, q[10], q[11], largest)
            a, largest = take_8(a, q[12], q[13], largest)
            a, largest = take_8(a, q[14], q[15], largest)
        return fold(a), largest

    return {2: sum_halves, 4: sum_floats, 8: sum_doubles}[storage.size]


# ---- any block -----------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What an element-wise pass is told. ``a`` and ``b`` are for the term."""

    options: Any
    low: Any
    high: Any
    a: Any
    b: Any


@device
def _sum_of_warp(x: Any) -> Any:
    for step in range(5):
        x = x + exchange(x, 16 >> step)
    return x


def make_sum_elements(storage: Storage, term: Function) -> Function:
    """An element at a time; neighbours are read by neighbours, whatever the alignment.

    ``term(value, a, b)`` is what is summed.
    """
    read, size, top = storage.read, storage.size, storage.largest

    @device
    def take(total: Any, largest: Any, counts: Any, address: Any, told: Any) -> Any:
        value = read(address)
        if told.options & BOUNDS != 0 and (value < told.low or value > told.high):
            counts += _OUTSIDE
        if is_nan(value):
            counts += _NAN
        elif not is_finite(value):
            counts += 1
        if told.options & SANITIZE != 0 and not is_finite(value):
            value = sanitized(value, top)
        if is_finite(value):
            largest = max(magnitude(value), largest)
        return total + term(value, told.a, told.b), largest, counts

    @device
    def sum_elements(pointer: Any, n: Any, told: Any) -> Any:
        a = b = c = d = e = f = g = h = 0.0
        largest, counts = 0.0, 0
        for row in range(0, n, 256):
            i = row + lane()
            at = pointer + i * size
            if i < n:
                a, largest, counts = take(a, largest, counts, at, told)
            if i + 32 < n:
                b, largest, counts = take(b, largest, counts, at + 32 * size, told)
            if i + 64 < n:
                c, largest, counts = take(c, largest, counts, at + 64 * size, told)
            if i + 96 < n:
                d, largest, counts = take(d, largest, counts, at + 96 * size, told)
            if i + 128 < n:
                e, largest, counts = take(e, largest, counts, at + 128 * size, told)
            if i + 160 < n:
                f, largest, counts = take(f, largest, counts, at + 160 * size, told)
            if i + 192 < n:
                g, largest, counts = take(g, largest, counts, at + 192 * size, told)
            if i + 224 < n:
                h, largest, counts = take(h, largest, counts, at + 224 * size, told)
        total = _fold((a, b, c, d, e, f, g, h))
        counts = _sum_of_warp(counts)
        infs, nans, outside = counts & _COUNT, (counts >> 16) & _COUNT, counts >> 32
        return Found(total, largest_of_warp(largest), infs, nans, outside)

    return sum_elements


@device
def _square_term(x: Any, _a: Any, _b: Any) -> Any:
    return mul(x, x)


@device
def _magnitude_term(x: Any, _a: Any, _b: Any) -> Any:
    return magnitude(x)


def make_sum_block(storage: Storage, power: int) -> Function:
    """The fast way where it can be taken, the other where it cannot, or gave up."""
    sum_vectors = make_sum_vectors(storage, power)
    sum_elements = make_sum_elements(storage, _magnitude_term if power == 1 else _square_term)
    value, infinity = storage.value, storage.infinity

    @device
    def sum_block(place: Any, told: Any) -> Any:
        if place.n == 4096 and place.pointer & 15 == 0:
            total, code = sum_vectors(place.pointer)
            largest = largest_of_warp(value(code))
            # Nothing lies outside of [low, high] where nothing reaches the nearer of the two.
            inside = told.options & BOUNDS == 0 or (largest <= told.high and -largest >= told.low)
            if all_of_warp(code < infinity and inside):
                return Found(total, largest, 0, 0, 0)
        return sum_elements(place.pointer, place.n, told)

    return sum_block
