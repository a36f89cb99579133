"""A kernel with all it calls, as one list of instructions, and the layout of the memory its names stand for.

What is called stands before what calls it. The machine runs the threads at the lowest place first, so that threads
which left for a function are back before the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.gpu.ptx.alu import Plan
from tests.gpu.ptx.syntax import Address, Function, Group, Instruction, Module, Name, Operand, Variable

RETURNED = "(returned)"
"""The opcode of what follows each call: the results are fetched."""
IGNORED = ("vprintf",)
FAILING = ("__assertfail",)


@dataclass(eq=False)
class Call:
    """One call: where it goes, and what is copied on the way there and back."""

    place: int
    function: str
    arguments: tuple[tuple[Variable, Variable], ...] = ()
    results: tuple[tuple[Variable, Variable], ...] = ()


@dataclass(eq=False)
class Kernel:
    """What the machine runs."""

    name: str
    entry: int = 0
    code: list[Instruction] = field(default_factory=list)
    targets: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Place of a branch -> where it may go."""
    calls: dict[int, Call] = field(default_factory=dict)
    """Place of a call, and of the fetching of its results -> the call."""
    offsets: dict[Variable, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("shared", "local", "param", "frame"), 0))
    parameters: list[Variable] = field(default_factory=list)
    max_threads: int = 0
    depth: int = 1
    """Of the deepest chain of calls."""
    plans: dict[int, Plan] = field(default_factory=dict)
    """Place of an instruction that has been executed -> what it does to registers."""


def link(module: Module, name: str) -> Kernel:
    """The kernel of that name."""
    root = module.functions[name]
    kernel = Kernel(name, parameters=root.parameters, max_threads=root.max_threads)
    order: list[Function] = []
    kernel.depth = _collect(module, root, order, [])
    places: dict[str, int] = {}
    for function in order:
        places[function.name] = len(kernel.code)
        _append(module, kernel, function, places)
    kernel.entry = places[name]
    _lay_out(kernel, [*root.parameters])
    for function in order:
        _lay_out(kernel, [*function.parameters, *function.results])
    for instruction in kernel.code:
        _lay_out(kernel, [found for operand in instruction.operands for found in _variables(operand)])
    return kernel


def _called(instruction: Instruction) -> str:
    for operand in instruction.operands[:2]:
        if isinstance(operand, Name):
            return operand.text
    raise NotImplementedError(f"{instruction.text} (a call through a pointer)")


def _collect(module: Module, function: Function, order: list[Function], above: list[str]) -> int:
    if function.name in above:
        raise NotImplementedError(f"{function.name} calls itself")
    depth = 1
    for instruction in function.body:
        if instruction.name == "call":
            called = module.functions.get(_called(instruction))
            if called is not None:
                depth = max(depth, 1 + _collect(module, called, order, [*above, function.name]))
    if function not in order:
        order.append(function)
    return depth


def _append(module: Module, kernel: Kernel, function: Function, places: dict[str, int]) -> None:
    start: dict[int, int] = {}  # place in the body -> place in the code; calls take two
    for index, instruction in enumerate(function.body):
        start[index] = len(kernel.code)
        kernel.code.append(instruction)
        if instruction.name == "call":
            call = _call(module, instruction, places)
            kernel.calls[len(kernel.code) - 1] = kernel.calls[len(kernel.code)] = call
            kernel.code.append(
                Instruction(RETURNED, (), instruction.guard, instruction.guard_negated, instruction.text, ())
            )
    start[len(function.body)] = len(kernel.code)
    kernel.code.append(Instruction("ret", (), None, False, "the end of the function", ()))
    for index, instruction in enumerate(function.body):
        if instruction.name == "bra":
            label = instruction.operands[0]
            assert isinstance(label, Name)
            kernel.targets[start[index]] = (start[function.find_label(instruction, label.text)],)
        elif instruction.name == "brx":
            table = instruction.operands[1]
            assert isinstance(table, Name)
            labels = function.tables[table.text]
            kernel.targets[start[index]] = tuple(start[function.find_label(instruction, label)] for label in labels)


def _call(module: Module, instruction: Instruction, places: dict[str, int]) -> Call:
    name = _called(instruction)
    function = module.functions.get(name)
    if function is None:
        return Call(-1, name)
    groups = [operand for operand in instruction.operands if isinstance(operand, Group)]
    results = groups.pop(0) if isinstance(instruction.operands[0], Group) else Group(())
    arguments = groups.pop(0) if groups else Group(())
    return Call(
        places[name],
        name,
        _matched(arguments, function.parameters, instruction),
        _matched(results, function.results, instruction),
    )


def _matched(given: Group, declared: list[Variable], instruction: Instruction) -> tuple[tuple[Variable, Variable], ...]:
    pairs: list[tuple[Variable, Variable]] = []
    for own, its in zip(given.items, declared, strict=True):
        if not isinstance(own, Variable) or its.space != "frame":
            raise NotImplementedError(f"{instruction.text} (registers as parameters)")
        pairs.append((own, its))
    return tuple(pairs)


def _variables(operand: Operand) -> list[Variable]:
    if isinstance(operand, Variable):
        return [operand]
    if isinstance(operand, Address):
        return _variables(operand.base)
    if isinstance(operand, Group):
        return [found for item in operand.items for found in _variables(item)]
    return []


def _lay_out(kernel: Kernel, variables: list[Variable]) -> None:
    for variable in variables:
        if variable in kernel.offsets or variable.space not in kernel.sizes or variable.dynamic:
            continue
        offset = -(-kernel.sizes[variable.space] // variable.align) * variable.align
        kernel.offsets[variable] = offset
        kernel.sizes[variable.space] = offset + variable.size
