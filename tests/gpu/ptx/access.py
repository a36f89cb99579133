"""``ld``, ``st`` and what else deals in addresses, bound to one launch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.lanes import Lanes, Selection, Step
from tests.gpu.ptx.memory import WINDOWS, Place
from tests.gpu.ptx.operands import reader, writer
from tests.gpu.ptx.syntax import Address, Group, Instruction, Operand, Register, Variable
from tests.gpu.ptx.types import TYPES, UNSIGNED, Array, types_in

U64 = TYPES["u64"]
WINDOW_BITS = 56
OFFSET = np.uint64((1 << WINDOW_BITS) - 1)


def space_of(instruction: Instruction) -> str:
    """Named by the opcode, or "generic"."""
    for modifier in instruction.modifiers:
        space = modifier.split("_")[0]  # shared::cta
        if space in ("global", "shared", "local", "param", "const"):
            return space
    return "generic"


class Accessor:
    """Finds the places that the threads of one instruction go to. ``kind`` is "ld" or "st"."""

    def __init__(self, grid: Grid, instruction: Instruction, kind: str, operand: Operand, size: int) -> None:
        assert isinstance(operand, Address)
        self.grid, self.kind, self.size = grid, kind, size
        self.fault = grid.fault_at(instruction)
        self.space = space_of(instruction)
        if self.space == "param":  # the kernel's, or those of a call; their addresses are generic from the start
            self.space = operand.base.space if isinstance(operand.base, Variable) else "generic"
        self.offset = np.uint64(operand.offset & (2**64 - 1))
        narrow = isinstance(operand.base, Register) and operand.base.type.width == 4  # enough for shared memory
        self.read = reader(grid, operand.base, TYPES["u32"] if narrow else U64)

    def places(self, lanes: Lanes, width: int) -> Iterator[tuple[Lanes, Selection, Place]]:
        """By space: the threads, which of ``lanes`` they are, and where they go."""
        addresses = self.read(lanes.select).astype(np.uint64) + self.offset
        if len(addresses) != lanes.count:
            addresses = np.broadcast_to(addresses, lanes.count)
        if self.space != "generic":
            if self.space in ("param", "frame"):
                addresses = addresses & OFFSET
            yield lanes, slice(None), self._place(self.space, addresses, lanes, width)
            return
        windows = addresses >> np.uint64(WINDOW_BITS)
        for window in np.unique(windows):
            space = next((name for name, start in WINDOWS.items() if start >> WINDOW_BITS == window), "global")
            mask = windows == window
            some = lanes.where(mask)
            assert some is not None
            own = addresses[mask] if space == "global" else addresses[mask] & OFFSET
            yield some, mask, self._place(space, own, some, width)

    def _place(self, space: str, addresses: Array, lanes: Lanes, width: int) -> Place:
        table = self.grid.tables.get(space)
        if table is not None:
            return table.place(self.kind, addresses, self.size, width, lanes, self.fault)
        return self.grid.memory.place(self.kind, addresses, self.size, width, lanes, self.fault)


def load(grid: Grid, instruction: Instruction) -> Step:
    """``ld``, of one value or a vector."""
    type = types_in(instruction.modifiers)[-1]
    target = instruction.operands[0]
    writers = [writer(grid, item, type) for item in (target.items if isinstance(target, Group) else (target,))]
    access = Accessor(grid, instruction, "ld", instruction.operands[1], type.width * len(writers))

    def step(lanes: Lanes) -> None:
        for some, _, place in access.places(lanes, type.width):
            values = [place.elements[place.index + k] for k in range(len(writers))]
            for write, value in zip(writers, values, strict=True):
                write(some.select, value.view(type.dtype))

    return step


def store(grid: Grid, instruction: Instruction) -> Step:
    """``st``, of one value or a vector."""
    type = types_in(instruction.modifiers)[-1]
    source = instruction.operands[1]
    readers = [reader(grid, item, type) for item in (source.items if isinstance(source, Group) else (source,))]
    access = Accessor(grid, instruction, "st", instruction.operands[0], type.width * len(readers))
    bits = UNSIGNED[type.width]

    def step(lanes: Lanes) -> None:
        for some, _, place in access.places(lanes, type.width):
            for k, read in enumerate(readers):
                place.elements[place.index + k] = read(some.select).view(bits)

    return step


def convert_address(grid: Grid, instruction: Instruction) -> Step:
    """``cvta``: to a generic address and back."""
    window = np.uint64(WINDOWS.get(space_of(instruction), 0))
    read, write = reader(grid, instruction.operands[1], U64), writer(grid, instruction.operands[0], U64)
    if space_of(instruction) == "param":
        return lambda lanes: write(lanes.select, read(lanes.select))
    if "to" in instruction.modifiers:
        return lambda lanes: write(lanes.select, read(lanes.select) - window)
    return lambda lanes: write(lanes.select, read(lanes.select) + window)


def is_space(grid: Grid, instruction: Instruction) -> Step:
    """``isspacep``."""
    space = space_of(instruction)
    read, write = reader(grid, instruction.operands[1], U64), writer(grid, instruction.operands[0], TYPES["pred"])
    windows = np.array([start >> WINDOW_BITS for start in WINDOWS.values()], np.uint64)

    def step(lanes: Lanes) -> None:
        window = read(lanes.select) >> np.uint64(WINDOW_BITS)
        if space == "global":
            write(lanes.select, ~np.isin(window, windows))
        else:
            write(lanes.select, window == np.uint64(WINDOWS[space] >> WINDOW_BITS))

    return step
