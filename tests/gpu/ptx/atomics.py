"""``atom`` and ``red``. Threads that meet at an address go one after the other, in the schedule's order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.gpu.ptx.access import Accessor
from tests.gpu.ptx.floats import canonical, flush
from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.lanes import Lanes, Step
from tests.gpu.ptx.memory import Place
from tests.gpu.ptx.operands import reader, writer
from tests.gpu.ptx.syntax import Group, Instruction, Sink
from tests.gpu.ptx.types import UNSIGNED, Array, Type, types_in

Update = Callable[[Array, Array, Array], Array]
"""From what memory holds and the two operands, what it holds afterwards."""

UPDATES: dict[str, Update] = {
    "add": lambda old, a, b: old + a,
    "min": lambda old, a, b: np.minimum(old, a),
    "max": lambda old, a, b: np.maximum(old, a),
    "exch": lambda old, a, b: a,
    "and": lambda old, a, b: old & a,
    "or": lambda old, a, b: old | a,
    "xor": lambda old, a, b: old ^ a,
    "cas": lambda old, a, b: np.where(old == a, b, old),
    "inc": lambda old, a, b: np.where(old >= a, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, a, b: np.where((old == 0) | (old > a), a, old - old.dtype.type(1)),
}


def atomic(grid: Grid, instruction: Instruction) -> Step:
    """``atom`` gives what was there before; ``red`` does not."""
    type = types_in(instruction.modifiers)[-1]
    target, address, *values = (Sink(), *instruction.operands) if instruction.name == "red" else instruction.operands
    if type.width < 4 or type.element or any(isinstance(value, Group) for value in values):
        raise NotImplementedError(instruction.text)
    update = UPDATES[next(modifier for modifier in instruction.modifiers if modifier in UPDATES)]
    if type.is_float:
        update = _float_add(type, "shared" in instruction.modifiers)
    readers = [reader(grid, value, type) for value in values]
    write = writer(grid, target, type)
    access = Accessor(grid, instruction, "st", address, type.width)

    def step(lanes: Lanes) -> None:
        given = [np.broadcast_to(read(lanes.select), lanes.count) for read in readers]
        for some, which, place in access.places(lanes, type.width):
            a, b = given[0][which], given[-1][which]
            order = np.arange(some.count) if grid.random is None else grid.random.permutation(some.count)
            write(some.select, _in_turn(place, order, type, update, a, b))

    return step


def _float_add(type: Type, shared: bool) -> Update:
    """In float32, atomics flush subnormals in global memory, and do not in shared memory."""
    if type.name == "f32" and not shared:
        return lambda old, a, b: canonical(type, flush(flush(old) + flush(a)))
    return lambda old, a, b: canonical(type, old + a)


def _in_turn(place: Place, order: Array, type: Type, update: Update, a: Array, b: Array) -> Array:
    """Apply the update, in rounds in which no two threads share an address."""
    bits = UNSIGNED[type.width]
    sorter = order[np.argsort(place.index[order], kind="stable")]
    keys = place.index[sorter]
    first = np.concatenate(([True], keys[1:] != keys[:-1]))
    position = np.arange(len(keys))
    turn = position - np.maximum.accumulate(np.where(first, position, 0))
    before = np.empty(len(keys), type.dtype)
    for number in range(int(turn.max()) + 1):
        chosen = sorter[turn == number]
        index = place.index[chosen]
        before[chosen] = place.elements[index].view(type.dtype)
        place.elements[index] = update(before[chosen], a[chosen], b[chosen]).view(bits)
    return before
