"""What the lanes of a warp do together: ``shfl``, ``vote``, ``match``, ``redux``, ``elect`` and ``bar.warp``.

The machine calls these once all lanes of the mask have come. The mask is the last operand of each.
"""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.lanes import WARP, Lanes, Step
from tests.gpu.ptx.operands import Reader, Writer, reader, writer
from tests.gpu.ptx.syntax import Instruction, Pair, Sink
from tests.gpu.ptx.types import TYPES, UNSIGNED, Array, types_in

B32, PRED, U32 = TYPES["b32"], TYPES["pred"], TYPES["u32"]
COLLECTIVE = ("shfl", "vote", "match", "redux", "elect")


def is_collective(instruction: Instruction) -> bool:
    """Whether the lanes of a mask wait for one another here."""
    return instruction.name in COLLECTIVE or (instruction.name == "bar" and "warp" in instruction.modifiers)


def mask_reader(grid: Grid, instruction: Instruction) -> Reader:
    """Which lanes take part."""
    return reader(grid, instruction.operands[-1], U32)


def collective(grid: Grid, instruction: Instruction) -> Step:
    """What is done once all are there."""
    if instruction.name == "bar":
        return lambda lanes: None
    makers = {"shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce, "elect": _elect}
    if instruction.name != "elect" and "sync" not in instruction.modifiers:
        raise NotImplementedError(instruction.text)
    return makers[instruction.name](grid, instruction)


def active_mask(grid: Grid, instruction: Instruction) -> Step:
    """``activemask``: who executes this together."""
    write = writer(grid, instruction.operands[0], U32)
    return lambda lanes: write(lanes.select, grid.warp_bits(lanes.index)[lanes.warp])


def _targets(grid: Grid, instruction: Instruction) -> tuple[Writer, Writer]:
    target = instruction.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, Sink())
    kind = PRED if instruction.name == "vote" and "ballot" not in instruction.modifiers else B32
    if instruction.name == "match":
        kind = U32
    return writer(grid, first, kind), writer(grid, second, PRED)


def _shuffle(grid: Grid, instruction: Instruction) -> Step:
    mode = instruction.modifiers[1]
    read, read_by, read_limit, _ = (reader(grid, operand, U32) for operand in instruction.operands[1:])
    write, write_valid = _targets(grid, instruction)

    def step(lanes: Lanes) -> None:
        lane = grid.lane[lanes.select]
        limit = read_limit(lanes.select).astype(np.int64)
        by = (read_by(lanes.select) & np.uint32(31)).astype(np.int64)
        segment, clamp = (limit >> 8) & 31, limit & 31
        last, first = (lane & segment) | (clamp & ~segment), lane & segment
        wanted = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": first | (by & ~segment)}[mode]
        valid = wanted >= last if mode == "up" else wanted <= last
        source = lanes.index - lane + np.where(valid, wanted, lane)
        # What a lane that is not here would give is undefined, and is poison.
        everyone = np.full(grid.total, 0xFFFFFFFF, np.uint32)
        everyone[lanes.select] = read(lanes.select)
        write(lanes.select, everyone[source])
        write_valid(lanes.select, valid)

    return step


def _vote(grid: Grid, instruction: Instruction) -> Step:
    read, read_mask = reader(grid, instruction.operands[1], PRED), mask_reader(grid, instruction)
    write, _ = _targets(grid, instruction)
    mode = next(m for m in instruction.modifiers if m in ("all", "any", "uni", "ballot"))

    def step(lanes: Lanes) -> None:
        votes = np.broadcast_to(read(lanes.select), lanes.count)
        mask = read_mask(lanes.select)
        ayes = grid.warp_bits(lanes.index[votes])[lanes.warp] & mask
        voters = grid.warp_bits(lanes.index)[lanes.warp] & mask
        results = {"all": ayes == voters, "any": ayes != 0, "uni": (ayes == voters) | (ayes == 0), "ballot": ayes}
        write(lanes.select, results[mode])

    return step


def _by_lane(grid: Grid, lanes: Lanes, values: Array) -> tuple[Array, Array]:
    """A row for each warp, with the values of its lanes, and whether the lane is here."""
    table, here = np.zeros(grid.total, values.dtype), np.zeros(grid.total, bool)
    table[lanes.select], here[lanes.select] = values, True
    return table.reshape(-1, WARP), here.reshape(-1, WARP)


def _peers(grid: Grid, lanes: Lanes, mask: Array) -> Array:
    """For each lane a row: which lanes of its warp are here and in its mask."""
    bits = grid.warp_bits(lanes.index)[lanes.warp] & np.broadcast_to(mask, lanes.count)
    rows: Array = (bits[:, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1) != 0
    return rows


def _match(grid: Grid, instruction: Instruction) -> Step:
    type = TYPES[f"u{types_in(instruction.modifiers)[-1].bits}"]
    read, read_mask = reader(grid, instruction.operands[1], type), mask_reader(grid, instruction)
    write, write_valid = _targets(grid, instruction)
    everyone = "all" in instruction.modifiers

    def step(lanes: Lanes) -> None:
        values = np.broadcast_to(read(lanes.select), lanes.count)
        peers = _peers(grid, lanes, read_mask(lanes.select))
        table, _ = _by_lane(grid, lanes, values)
        same = (table[lanes.warp] == values[:, None]) & peers
        bits = np.packbits(same, axis=1, bitorder="little").view(np.uint32).reshape(-1)
        if everyone:
            agreed = (same == peers).all(axis=1)
            write_valid(lanes.select, agreed)
            bits = np.where(agreed, bits, np.uint32(0))
        write(lanes.select, bits)

    return step


def _reduce(grid: Grid, instruction: Instruction) -> Step:
    type = types_in(instruction.modifiers)[-1]
    if type.is_float:
        raise NotImplementedError(instruction.text)
    name = instruction.modifiers[1]
    read, read_mask = reader(grid, instruction.operands[1], type), mask_reader(grid, instruction)
    write = writer(grid, instruction.operands[0], type)
    info = np.iinfo(type.dtype)
    functions = {
        "add": (np.add, 0),
        "min": (np.minimum, info.max),
        "max": (np.maximum, info.min),
        "and": (np.bitwise_and, ~type.dtype.type(0)),
        "or": (np.bitwise_or, 0),
        "xor": (np.bitwise_xor, 0),
    }
    function, neutral = functions[name]

    def step(lanes: Lanes) -> None:
        table, _ = _by_lane(grid, lanes, np.broadcast_to(read(lanes.select), lanes.count))
        rows = np.where(_peers(grid, lanes, read_mask(lanes.select)), table[lanes.warp], type.dtype.type(neutral))
        write(lanes.select, function.reduce(rows, axis=1, dtype=type.dtype))

    return step


def _elect(grid: Grid, instruction: Instruction) -> Step:
    read_mask = mask_reader(grid, instruction)
    write, write_leader = _targets(grid, instruction)

    def step(lanes: Lanes) -> None:
        leader = np.argmax(_peers(grid, lanes, read_mask(lanes.select)), axis=1)
        write(lanes.select, leader.astype(UNSIGNED[4]))
        write_leader(lanes.select, leader == grid.lane[lanes.select])

    return step
