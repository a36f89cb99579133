"""PTX text to ``syntax``: every operand is resolved here, once."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from tests.gpu.ptx.syntax import (
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    Module,
    Name,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Variable,
)
from tests.gpu.ptx.types import TYPES

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
LINE_DIRECTIVE = re.compile(r"\s*\.(?:version|target|address_size|file|loc)\b[^\n;]*;?")
SECTION = re.compile(r"\s*\.section\b[^{]*\{[^}]*\}")
FUNCTION = re.compile(r"[^{;=]*\.(entry|func)\b")
VARIABLE = re.compile(
    r"\.(global|const|shared|local|param|reg)\b(?:\s*\.align\s+(\d+))?\s*\.(\w+)"
    r"(?:\s*\.ptr)?(?:\s*\.(?:global|const|shared|local))?(?:\s*\.align\s+\d+)?\s+"
    r"([\w$%]+)\s*(\[\s*\d*\s*\])?\s*(?:=\s*(.*))?$",
    re.S,
)
LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")
OPCODE = re.compile(r"([a-z][\w.:]*)\s*(.*)$", re.S)
INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]+)$")
ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")


class PtxSyntaxError(ValueError):
    """A text that this parser cannot read."""


def parse(text: str) -> Module:
    """The whole text, as NVRTC or Numba wrote it."""
    text = COMMENT.sub("", text.rstrip("\0"))
    module = Module()
    position = 0
    while text[position:].strip():
        skipped = LINE_DIRECTIVE.match(text, position) or SECTION.match(text, position)
        if skipped:
            position = skipped.end()
            continue
        if FUNCTION.match(text, position):
            end = min(place for place in (text.find("{", position), text.find(";", position)) if place >= 0)
            header = text[position:end]
            position = end + 1
            if text[end] == "{":
                close = _closing_brace(text, end)
                function = _header(header)
                module.functions[function.name] = function
                _Body(module, function).read(text[end + 1 : close])
                position = close + 1
            continue
        end = text.index(";", position)
        statement = text[position:end].strip()
        position = end + 1
        if not statement.startswith((".pragma", ".alias")):
            variable = _variable(statement)
            module.variables[variable.name] = variable
    return module


def _closing_brace(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise PtxSyntaxError("a brace is not closed")


def _header(header: str) -> Function:
    match = re.search(r"\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$%]+)\s*(?:\(([^)]*)\))?", header, re.S)
    if match is None:
        raise PtxSyntaxError(header)
    function = Function(match.group(3), match.group(1) == "entry")
    space = "param" if function.is_kernel else "frame"
    for texts, variables in ((match.group(2), function.results), (match.group(4), function.parameters)):
        for text in filter(None, map(str.strip, (texts or "").split(","))):
            variable = _variable(text)
            variable.space = space
            variables.append(variable)
    limit = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", header[match.end() :])
    if limit:
        function.max_threads = 1
        for size in limit.group(1).split(","):
            function.max_threads *= int(size)
    return function


def _variable(text: str) -> Variable:
    match = VARIABLE.search(text)
    if match is None:
        raise PtxSyntaxError(text)
    space, align, type_name, name, extent, initial = match.groups()
    width = TYPES[type_name].width
    count = int(extent.strip("[] ") or 0) if extent else 1
    variable = Variable(name, space, int(align or width), width * count, dynamic=extent is not None and count == 0)
    if initial:
        variable.content = b"".join(_initial(item, type_name) for item in initial.strip("{} \n").split(","))
    return variable


def _initial(item: str, type_name: str) -> bytes:
    operand = _literal(item.strip())
    if operand is None:
        raise NotImplementedError(f"an address in an initialiser: {item}")
    width = TYPES[type_name].width
    return (operand.value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _literal(text: str) -> Immediate | None:
    if match := FLOAT.match(text):
        return Immediate(int(match.group(2), 16), 4 if match.group(1) in "fF" else 8)
    if INTEGER.match(text):
        digits = text.rstrip("U")
        octal = re.match(r"-?0\d+$", digits)
        return Immediate(int(digits, 8 if octal else 0))
    if re.match(r"-?\d+\.\d*(?:[eE][+-]?\d+)?$", text):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
    return None


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


class _Body:
    """Reads one function's statements. Braces open scopes, in which names may be declared anew."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function
        self.scopes: list[tuple[int, dict[str, Register | Variable]]] = [(0, {})]
        self.opened = 0
        for variable in (*function.parameters, *function.results):
            self.scopes[0][1][variable.name] = variable

    def read(self, text: str) -> None:
        for statement in self._statements(text):
            if statement.startswith("."):
                self._declare(statement)
            else:
                self.function.body.append(self._instruction(statement))

    def _statements(self, text: str) -> Iterator[str]:
        position = 0
        space = re.compile(r"\s*")
        while True:
            found = space.match(text, position)
            position = found.end() if found else position
            if position >= len(text):
                return
            if text[position] == "{":
                self.opened += 1
                self.scopes.append((self.opened, {}))
                position += 1
            elif text[position] == "}":
                self.scopes.pop()
                position += 1
            elif text[position] == ";":
                position += 1
            elif skipped := LINE_DIRECTIVE.match(text, position):
                position = skipped.end()
            elif label := LABEL.match(text, position):
                position = label.end()
                self.function.labels[self.scopes[-1][0], label.group(1)] = len(self.function.body)
                table = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, position)
                if table:
                    self.function.tables[label.group(1)] = tuple(split(table.group(1)))
                    position = table.end()
            else:
                end = text.index(";", position)
                yield text[position:end].strip()
                position = end + 1

    def _declare(self, statement: str) -> None:
        names = self.scopes[-1][1]
        if statement.startswith(".reg"):
            type_name, rest = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", statement, re.S).groups()  # type: ignore[union-attr]
            for name in map(str.strip, rest.split(",")):
                many = re.match(r"([\w$%]+)<(\d+)>$", name)
                for register in [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [name]:
                    names[register] = Register(self.module.registers, TYPES[type_name], register)
                    self.module.registers += 1
        elif not statement.startswith((".pragma", ".branchtargets")):
            variable = _variable(statement)
            if variable.space == "param":
                variable.space = "frame"
            names[variable.name] = variable

    def _instruction(self, statement: str) -> Instruction:
        text = " ".join(statement.split())
        guard, negated, rest = None, False, text
        if match := GUARD.match(text):
            register = self._operand(match.group(2))
            assert isinstance(register, Register)
            guard, negated, rest = register, match.group(1) == "!", text[match.end() :]
        opcode = OPCODE.match(rest)
        if opcode is None:
            raise PtxSyntaxError(text)
        operands = tuple(self._operand(part) for part in split(opcode.group(2)))
        scopes = tuple(scope for scope, _ in self.scopes)
        return Instruction(opcode.group(1), operands, guard, negated, text, scopes)

    def _operand(self, text: str) -> Operand:
        if text == "_":
            return Sink()
        if text[0] in "{(":
            return Group(tuple(self._operand(part) for part in split(text[1:-1])))
        if text[0] == "[":
            match = ADDRESS.match(text)
            if match is None:
                raise PtxSyntaxError(text)
            return Address(self._operand(match.group(1)), int(match.group(2) or "0", 0))
        literal = _literal(text)
        if literal is not None:
            return literal
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first.strip()), self._operand(second.strip()))
        if text[0] in "!-":
            return Negated(self._operand(text[1:].strip()))
        for _, names in reversed(self.scopes):
            if text in names:
                return names[text]
        if text in self.module.variables:
            return self.module.variables[text]
        if text == "WARP_SZ":
            return Immediate(32)
        return Special(text) if text.startswith("%") else Name(text)
