"""Whether measuring is as fast as memory: what an element of a full block costs, unit by unit.

Outside of data centres a processor gives 2 float64 results a clock, 1/64 of its float32's, conversions to and from
float64 included. ``python -m tests.gpu.toolkit.pipes`` prints the counts, and how long each unit is busy, as a share
of the time that memory takes. Computed from machine code and data sheets: nothing here has been measured.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.gpu.toolkit.archs import PRINCIPAL, compiled
from tests.gpu.toolkit.sass import Instruction, Kernel

ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LOADS, BLOCK_LOADS = 8, 16
"""16-byte loads of one thread: in a loop, and in 16-bit blocks where float64 is slow."""
LANE = 16
"""Elements of a 16-bit lane in a block."""
TAIL = 18 / 128
"""float64 operations of a thread after the loads, for its 128 elements: 12 additions of the fold, 5 comparisons for
the largest of the warp, and its conversion."""
UNITS = ("float64", "converts", "float32", "integer", "memory", "control")


@dataclass(frozen=True)
class Card:
    """Of a processor and a clock: results of float64, conversions to it where they are apart, integer results."""

    name: str
    arch: int
    processors: int
    gigahertz: float
    gigabytes: float
    float64: int = 2
    converts: int = 0
    integer: int = 64

    @property
    def consumer(self) -> bool:
        return self.float64 == 2


# Clocks are boost clocks; H100's is the lower of the two that are found. Issue: 4 warps a processor and clock.
CARDS = (
    Card("RTX 2080 Ti", 75, 68, 1.545, 616),
    Card("RTX 3090", 86, 82, 1.695, 936),
    Card("RTX 4090", 89, 128, 2.52, 1008),
    Card("RTX 5090", 120, 170, 2.41, 1792),
    Card("A100 SXM", 80, 108, 1.41, 2039, float64=32, converts=16),
    Card("H100 SXM", 90, 132, 1.755, 3350, float64=64, converts=16),
)
ISSUED = 128
_CONTROL = ("BRA", "CALL", "BSSY", "BSYNC", "EXIT", "RET", "WARPSYNC", "NOP", "BMOV", "YIELD")


def unit(instruction: Instruction) -> str:
    """The unit that executes it, one of ``UNITS``; what is neither of the others counts as integer."""
    base, opcode = instruction.base, instruction.opcode
    if base in ("F2F", "I2F", "F2I", "FRND", "F2FP"):
        return "converts" if ".F64" in opcode or ".64" in opcode else "float32"
    if base in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"):
        return "float64"
    if base.startswith(("LD", "ST")):
        return "memory"
    if base in _CONTROL:
        return "control"
    return "float32" if base.startswith(("F", "H", "MUFU")) else "integer"


def hot_code(kernel: Kernel) -> dict[str, list[Instruction]]:
    """dtype -> what is executed for the 16-byte loads of a full block. ``ValueError`` where that cannot be told."""
    found: dict[str, list[Instruction]] = {}
    for body in (*_loops(kernel), *_exact_lanes(kernel)):
        count = Counter(instruction.base for instruction in body)
        if count["LDG"] == BLOCK_LOADS:
            dtype = "float16" if count["HADD2"] else "bfloat16"
        else:
            adds = (count["DFMA"] + count["DADD"]) / LOADS
            dtype = {2: "float64", 4: "float32", 8: "float16" if count["HADD2"] else "bfloat16"}.get(int(adds), "?")
        if dtype in found or dtype not in ITEMSIZES:
            raise ValueError(f"{len(body)} instructions of {dtype}, beside those of {sorted(found)}")
        found[dtype] = body
    if set(found) != set(ITEMSIZES):
        raise ValueError(f"the code found is that of {sorted(found)}")
    return found


def _loops(kernel: Kernel) -> Iterator[list[Instruction]]:
    """Those over 8 loads, which sum every element in float64."""
    for body in kernel.loops():
        count = Counter(instruction.base for instruction in body)
        if _wide_loads(body) == count["LDG"] == LOADS and not (count["STG"] or count["SHFL"]):
            yield body


def _exact_lanes(kernel: Kernel) -> Iterator[list[Instruction]]:
    """From 16 loads to the first shuffle: 8 lanes, as integers. A lane's other way, in float64, is left out."""
    blocks = kernel.blocks()
    for number, first in enumerate(blocks):
        if _wide_loads(first) == BLOCK_LOADS:
            rest = itertools.takewhile(lambda block: all(i.base != "SHFL" for i in block), blocks[number:])
            taken = [block for block in rest if sum(i.base == "DFMA" for i in block) < LANE]
            body = [instruction for block in taken for instruction in block]
            if sum(i.base == "FFMA" for i in body) == 8 * LANE:
                yield body


def _wide_loads(body: list[Instruction]) -> int:
    return sum(instruction.base == "LDG" and ".128" in instruction.opcode for instruction in body)


@functools.cache
def _code_of(arch: int) -> dict[str, list[Instruction]]:
    return hot_code(compiled("measure.cu", arch).kernels()["measure_squares_inline"])


def costs(arch: int, dtype: str) -> dict[str, float]:
    """Unit -> instructions an element, and "total"."""
    body = _code_of(arch)[dtype]
    elements = _wide_loads(body) * 16 // ITEMSIZES[dtype]
    count = Counter(unit(instruction) for instruction in body)
    return {name: count[name] / elements for name in UNITS} | {"total": len(body) / elements}


def shares(card: Card, dtype: str) -> dict[str, float]:
    """Unit -> the time it takes, as a share of the time that memory takes. Above 1 it is the slower of the two.

    A 16-bit lane whose values are spread too wide for integers takes a float64 operation an element, and its warp
    with it: "spread" is float64's share if every warp has such a lane beside others, each time.
    """
    cost = costs(card.arch, dtype)
    available = card.processors * card.gigahertz * ITEMSIZES[dtype] / card.gigabytes  # clocks of a processor
    doubles = cost["float64"] + TAIL + (0 if card.converts else cost["converts"])
    spread = doubles + (1 if _wide_loads(_code_of(card.arch)[dtype]) == BLOCK_LOADS else 0)
    return {
        "float64": doubles / card.float64 / available,
        "converts": cost["converts"] / card.converts / available if card.converts else 0.0,
        "integer": cost["integer"] / card.integer / available,
        "issue": cost["total"] / ISSUED / available,
        "spread": spread / card.float64 / available,
    }


def _tables() -> Iterator[str]:
    yield f"| sm | dtype | {' | '.join(UNITS)} | total |"
    yield "|---|---|" + "---:|" * (len(UNITS) + 1)
    for arch in PRINCIPAL:
        for dtype in ITEMSIZES:
            yield f"| {arch} | {dtype} | {' | '.join(f'{cost:.2f}' for cost in costs(arch, dtype).values())} |"
    yield ""
    yield "| card | dtype | float64 | converts | integer | issue | float64, all lanes spread |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for card in CARDS:
        for dtype in ITEMSIZES:
            yield f"| {card.name} | {dtype} | {' | '.join(f'{share:.0%}' for share in shares(card, dtype).values())} |"


if __name__ == "__main__":
    print("\n".join(_tables()))
