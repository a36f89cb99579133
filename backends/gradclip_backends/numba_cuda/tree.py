"""tree_sum, by one warp for 4096 elements: 256 lanes in 8 registers of 32 threads.

WIDTH lanes that are neighbours belong to one thread, as many as a 16-byte load brings:
  lane = v * 32 * WIDTH + thread * WIDTH + j,   register v * WIDTH + j,   v < 8 / WIDTH, j < WIDTH
The folds of the definition then are: over v within a thread, over threads by five exchanges, over j.
While several registers are left, two threads share the work of an exchange: each sends the half that
the other keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradclip_backends.numba_cuda.arithmetic import lost_in_sum
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.machine import exchange, lane

Function = Callable[..., Any]


class Carried(NamedTuple):
    """A number with what rounding took from it."""

    sum: Any
    carry: Any


@dataclass(frozen=True)
class Kind:
    """What is summed: how a value is added to another, and how threads exchange one."""

    zero: Function
    add: Function
    exchange: Function


@device
def _zero() -> Any:
    return 0.0


@device
def _add(a: Any, b: Any) -> Any:
    return a + b


@device
def _zero_carried() -> Any:
    return Carried(0.0, 0.0)


@device
def _add_carried(a: Any, b: Any) -> Any:
    s = a.sum + b.sum
    return Carried(s, (a.carry + b.carry) + lost_in_sum(a.sum, b.sum, s))


@device
def _exchange_carried(x: Any, mask: Any) -> Any:
    return Carried(exchange(x.sum, mask), exchange(x.carry, mask))


NUMBER = Kind(_zero, _add, exchange)
CARRIED = Kind(_zero_carried, _add_carried, _exchange_carried)


@device
def largest_of_warp(x: Any) -> Any:
    """The largest of the warp's values."""
    for step in range(5):
        other = exchange(x, 16 >> step)
        x = other if other > x else x
    return x


# ---- folds, lane by lane -------------------------------------------------------------------------


@device
def _trade(low: Any, high: Any, mask: Any) -> Any:
    """Keep one of two registers, and add what the other thread sends of its own."""
    upper = (lane() & mask) != 0
    given = low if upper else high
    kept = high if upper else low
    return kept + exchange(given, mask)


@device
def _gather(x: Any, first: Any, steps: Any) -> Any:
    for step in range(steps):
        x = x + exchange(x, first >> step)
    return x


@device
def fold_2(x: Any) -> Any:
    """Of lanes that stand in pairs."""
    low, high = (x[0] + x[4]) + (x[2] + x[6]), (x[1] + x[5]) + (x[3] + x[7])
    return _gather(_gather(_trade(low, high, 16), 8, 4), 16, 1)


@device
def fold_4(x: Any) -> Any:
    """Of lanes that stand in fours."""
    a, b = _trade(x[0] + x[4], x[2] + x[6], 16), _trade(x[1] + x[5], x[3] + x[7], 16)
    return _gather(_gather(_trade(a, b, 8), 4, 3), 16, 2)


@device
def fold_8(x: Any) -> Any:
    """Of lanes that stand in eights."""
    a, b = _trade(x[0], x[4], 16), _trade(x[1], x[5], 16)
    c, d = _trade(x[2], x[6], 16), _trade(x[3], x[7], 16)
    return _gather(_gather(_trade(_trade(a, c, 8), _trade(b, d, 8), 4), 2, 2), 16, 3)


def make_fold_1(kind: Kind) -> Function:
    """Of lanes that stand apart, values of any kind."""
    add, trade = kind.add, kind.exchange

    @device
    def fold_1(x: Any) -> Any:
        low = add(add(x[0], x[4]), add(x[2], x[6]))
        total = add(low, add(add(x[1], x[5]), add(x[3], x[7])))
        for step in range(5):
            total = add(total, trade(total, 16 >> step))
        return total

    return fold_1


def make_tree_of(kind: Kind, value: Function) -> Function:
    """The sum of n <= 4096 values, ``value(i, context)`` being the i-th; every thread gets it."""
    zero, add, fold = kind.zero, kind.add, make_fold_1(kind)

    @device
    def tree_of(n: Any, context: Any) -> Any:
        a = b = c = d = e = f = g = h = zero()
        for row in range(0, n, 256):
            i = row + lane()
            if i < n:
                a = add(a, value(i, context))
            if i + 32 < n:
                b = add(b, value(i + 32, context))
            if i + 64 < n:
                c = add(c, value(i + 64, context))
            if i + 96 < n:
                d = add(d, value(i + 96, context))
            if i + 128 < n:
                e = add(e, value(i + 128, context))
            if i + 160 < n:
                f = add(f, value(i + 160, context))
            if i + 192 < n:
                g = add(g, value(i + 192, context))
            if i + 224 < n:
                h = add(h, value(i + 224, context))
        return fold((a, b, c, d, e, f, g, h))

    return tree_of


def make_tree_of_any(kind: Kind, value: Function) -> Function:
    """The same of up to 4096² values.

    The block sums are the second level's values: they come in order, so each joins its lane at
    once, and nothing has to be stored.
    """
    zero, add, fold = kind.zero, kind.add, make_fold_1(kind)

    @device
    def shifted(i: Any, context: Any) -> Any:
        return value(context[0] + i, context[1])

    tree_of = make_tree_of(kind, shifted)

    @device
    def tree_of_any(count: Any, context: Any) -> Any:
        if count <= 4096:
            return tree_of(count, (0, context))
        a = b = c = d = e = f = g = h = zero()
        for first in range(0, count, 4096):
            total = tree_of(min(count - first, 4096), (first, context))
            number = (first >> 12) & 255
            if number & 31 == lane():
                register = number >> 5
                a = add(a, total) if register == 0 else a
                b = add(b, total) if register == 1 else b
                c = add(c, total) if register == 2 else c
                d = add(d, total) if register == 3 else d
                e = add(e, total) if register == 4 else e
                f = add(f, total) if register == 5 else f
                g = add(g, total) if register == 6 else g
                h = add(h, total) if register == 7 else h
        return fold((a, b, c, d, e, f, g, h))

    return tree_of_any
