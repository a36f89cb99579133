"""A block's number becomes its segment's: whoever stores the last of up to 4096 siblings sums them.

Nodes of every level stand in the slots of the blocks: a parent in its first child's, which nobody
reads any more. Beside each sum stands the largest magnitude, or the carry of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gradclip_backends.numba_cuda.elements import load_fresh, store_32, store_double
from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.machine import add_to_32, broadcast, fence, lane, sync_warp
from gradclip_backends.numba_cuda.tree import CARRIED, NUMBER, Carried, largest_of_warp, make_tree_of

Function = Callable[..., Any]


class Siblings(NamedTuple):
    """Where the children of a node are."""

    sums: Any
    """The address of the first one's sum."""
    seconds: Any
    stride: Any
    """From one to the next, in bytes."""


@device
def _sum_of_child(i: Any, siblings: Any) -> Any:
    return load_fresh(siblings.sums + i * siblings.stride)


@device
def _carried_of_child(i: Any, siblings: Any) -> Any:
    return Carried(load_fresh(siblings.sums + i * siblings.stride), load_fresh(siblings.seconds + i * siblings.stride))


_sum_children = make_tree_of(NUMBER, _sum_of_child)
_sum_carried_children = make_tree_of(CARRIED, _carried_of_child)


@device
def _reduce(siblings: Any, n: Any) -> Any:
    total = _sum_children(n, siblings)
    found = 0.0
    for i in range(lane(), n, 32):
        x = load_fresh(siblings.seconds + i * siblings.stride)
        found = x if x > found else found
    return total, largest_of_warp(found)


@device
def _reduce_carried(siblings: Any, n: Any) -> Any:
    total = _sum_carried_children(n, siblings)
    return total.sum, total.carry


def _make_climb(reduce: Function) -> Function:
    @device
    def climb(nodes: Any, place: Any, total: Any, second: Any) -> Any:
        """(whether this warp has the segment's own numbers, the sum, what stands beside it)."""
        sums = nodes.address + 4 * nodes.capacity
        seconds = sums + 8 * nodes.capacity
        number, count, stride, level = place.number, place.blocks, 1, 0
        while count > 1:
            parent = number >> 12
            siblings = min(count - (parent << 12), 4096)
            base = place.first + (parent << 12) * stride
            if siblings > 1:
                last = 0
                if lane() == 0:
                    slot = place.first + number * stride
                    store_double(sums + 8 * slot, total)
                    store_double(seconds + 8 * slot, second)
                    # The counter of a level stands a slot further, or a level would count in its child's.
                    arrived = nodes.address + 4 * (base + level)
                    fence()
                    last = 1 if add_to_32(arrived, 1) == siblings - 1 else 0
                    fence()
                    if last != 0:
                        store_32(arrived, 0)  # as the next call expects it
                last = broadcast(last)
                if last == 0:
                    return False, total, second
                sync_warp()
                total, second = reduce(Siblings(sums + 8 * base, seconds + 8 * base, 8 * stride), siblings)
            number = parent
            count = (count + 4095) >> 12
            stride = stride << 12
            level += 1
        return True, total, second

    return climb


climb = _make_climb(_reduce)
"""With largest magnitudes."""
climb_carried = _make_climb(_reduce_carried)
"""With carries."""
