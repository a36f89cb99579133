"""What a PTX text is made of, once parsed."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.gpu.ptx.types import Type


@dataclass(frozen=True, slots=True)
class Register:
    """One register of one function; ``index`` counts through the module."""

    index: int
    type: Type
    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A literal: an integer of any type, or the bits of a float of ``float_width`` bytes."""

    value: int
    float_width: int = 0


@dataclass(frozen=True, slots=True)
class Special:
    """``%tid.x`` and its like."""

    name: str


@dataclass(eq=False, slots=True)
class Variable:
    """A piece of memory with a name. ``space`` is global, const, shared, local, param or frame.

    Param is a kernel's parameters, the same for all threads; frame what functions pass to one another.
    """

    name: str
    space: str
    align: int
    size: int
    content: bytes = b""
    dynamic: bool = False
    """``extern __shared__``: as large as the launch says."""


@dataclass(frozen=True, slots=True)
class Name:
    """A label, or a function."""

    text: str


@dataclass(frozen=True, slots=True)
class Negated:
    """``!p`` of a predicate, ``-r`` of a number."""

    operand: Operand


@dataclass(frozen=True, slots=True)
class Pair:
    """``d|p``."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Group:
    """``{a, b}``, and the lists of a call."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """``[base + offset]``."""

    base: Operand
    offset: int


@dataclass(frozen=True, slots=True)
class Sink:
    """``_``."""


Operand = Register | Immediate | Special | Variable | Name | Negated | Pair | Group | Address | Sink


@dataclass(eq=False, slots=True)
class Instruction:
    """One statement. ``target`` and ``targets`` are places in the kernel's code, known once it is linked."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    text: str
    scopes: tuple[int, ...]
    name: str = ""
    modifiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name, *modifiers = self.opcode.replace("::", "_").split(".")
        self.modifiers = tuple(modifiers)


@dataclass(eq=False, slots=True)
class Function:
    """A kernel, or a function that kernels call. Labels are by the scope they stand in."""

    name: str
    is_kernel: bool
    parameters: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """``.branchtargets``."""
    max_threads: int = 0

    def find_label(self, instruction: Instruction, label: str) -> int:
        """The place in the body, seen from the instruction."""
        return next(
            self.labels[scope, label] for scope in reversed(instruction.scopes) if (scope, label) in self.labels
        )


@dataclass(eq=False, slots=True)
class Module:
    """A PTX text."""

    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    registers: int = 0
