"""Machine code as text and as instructions, with NVIDIA's disassembler, and what the assembler's log says of it."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu.toolkit.nvrtc import install_root

PACKAGE = "nvidia-cuda-nvdisasm"


@dataclass(frozen=True)
class Instruction:
    """``@!P0 LDG.E.128 R4, [R2.64]`` is guard ``@!P0``, opcode ``LDG.E.128``, and the rest."""

    opcode: str
    operands: str
    guard: str = ""

    @property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]


@dataclass
class Kernel:
    """The instructions of a kernel, with the functions that it calls."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> the number of the instruction that follows it."""

    def opcodes(self) -> Counter[str]:
        """How often each stands in the text."""
        return Counter(instruction.opcode for instruction in self.instructions)

    def loops(self) -> Iterator[list[Instruction]]:
        """What lies between a label and a branch back to it, the branch included, inner loops and outer ones."""
        for number, instruction in enumerate(self.instructions):
            target = _TARGET.search(instruction.operands) if instruction.base == "BRA" else None
            start = self.labels.get(target[0]) if target else None
            if start is not None and start <= number:
                yield self.instructions[start : number + 1]

    def blocks(self) -> list[list[Instruction]]:
        """The text cut at labels and behind branches."""
        leaves = {number + 1 for number, i in enumerate(self.instructions) if i.base in ("BRA", "BRX", "CALL", "RET")}
        cuts = sorted({0, len(self.instructions), *self.labels.values(), *leaves})
        return [self.instructions[start:end] for start, end in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Usage:
    """What the assembler says of a kernel, the functions that it calls included."""

    registers: int
    frame: int
    spilled: int
    """Bytes: of the stack, and of what is stored to it and loaded from it for want of registers."""


_SECTION = re.compile(r"\.text\.(\w+):")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"\.L_x_\d+")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*)")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def disassembler() -> Path:
    """The program, from its wheel. ``FileNotFoundError`` without it."""
    program = install_root() / "bin" / "nvdisasm"
    if not program.is_file():
        raise FileNotFoundError(f"no disassembler among the installed wheels: pip install {PACKAGE}")
    return program


def has_disassembler() -> bool:
    try:
        return bool(disassembler())
    except FileNotFoundError:
        return False


def disassemble(cubin: bytes) -> str:
    """The text that ``nvdisasm`` prints, with labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        made = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"nvdisasm: {made.stderr.strip()}")
    return made.stdout


def kernels(text: str) -> dict[str, Kernel]:
    """The kernels in a disassembly, by name."""
    found: dict[str, Kernel] = {}
    kernel: Kernel | None = None
    for line in text.splitlines():
        if section := _SECTION.match(line):
            kernel = found.setdefault(section[1], Kernel())
        elif kernel is None:
            continue
        elif label := _LABEL.match(line):
            kernel.labels[label[1]] = len(kernel.instructions)
        elif match := _INSTRUCTION.match(line):
            guard, opcode, operands = match.groups()
            kernel.instructions.append(Instruction(opcode, operands.strip(), (guard or "").strip()))
    return found


def usage(log: str) -> dict[str, Usage]:
    """Kernel -> what the log says, of a compilation with ``--ptxas-options=-v``."""
    found: dict[str, Usage] = {}
    for part in re.split(r"(?=Compiling entry function)", log):
        entry, registers = _ENTRY.match(part), _REGISTERS.search(part)
        if entry and registers:
            properties = [[int(number) for number in match] for match in _PROPERTIES.findall(part)]
            frame = sum(frame for frame, _, _ in properties)
            spilled = sum(stores + loads for _, stores, loads in properties)
            found[entry[1]] = Usage(int(registers[1]), frame, spilled)
    return found
