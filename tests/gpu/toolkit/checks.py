"""What is wrong with compiled kernels, as sentences, of which there should be none.

PTX says how everything is rounded; machine code is what is executed, and how it reaches memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tests.gpu.toolkit.sass import Kernel, Usage

_FUNCTION = re.compile(r"^\.(?:visible|weak|func|entry)\b.*?\b(\w+)\s*\(\s*$", re.MULTILINE)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+\w+(?:\[(\d+)\])?")
_COMPUTES = re.compile(r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt)\.[\w.]*f(?:32|64)\b")
_GENERIC = ("LD", "ST", "ATOM")
_LOCAL = ("LDL", "STL")


def resource_faults(usage: Mapping[str, Usage], caps: Mapping[str, int]) -> list[str]:
    """No stack, nothing spilled, and no more registers than allowed; every kernel has its cap."""
    faults = [f"{name}: has no cap" for name in usage if name not in caps]
    for name, used in usage.items():
        if used.frame:
            faults.append(f"{name}: a stack frame of {used.frame} bytes")
        if used.spilled:
            faults.append(f"{name}: {used.spilled} bytes spilled")
        if used.registers > caps.get(name, 255):
            faults.append(f"{name}: {used.registers} registers, not {caps[name]}")
    return faults


def memory_faults(name: str, kernel: Kernel, wide: Sequence[str] = ()) -> list[str]:
    """No access to local memory or through a generic address; each of ``wide``, as LDG, somewhere by 16 bytes."""
    faults = []
    for kind, bases in (("generic", _GENERIC), ("local", _LOCAL)):
        found = sorted({instruction.opcode for instruction in kernel.instructions if instruction.base in bases})
        if found:
            faults.append(f"{name}: {kind} {', '.join(found)}")
    for base in wide:
        if not any(i.base == base and ".128" in i.opcode for i in kernel.instructions):
            faults.append(f"{name}: no {base} of 128 bits")
    return faults


def by_function(ptx: str) -> dict[str, str]:
    """The PTX of each kernel and function."""
    starts = [(match.start(), match[1]) for match in _FUNCTION.finditer(ptx) if not _is_declaration(ptx, match.end())]
    ends = [start for start, _ in starts[1:]] + [len(ptx)]
    return {name: ptx[start:end] for (start, name), end in zip(starts, ends, strict=True)}


def _is_declaration(ptx: str, position: int) -> bool:
    end = ptx.index(")", position)
    return ptx[end + 1 :].lstrip().startswith(";")


def fused(ptx: str) -> list[str]:
    """Multiply-adds that round once, where the source may have meant two roundings."""
    return _lines(ptx, re.compile(r"\b(?:fma|mad)\.[\w.]*f(?:32|64)\b"))


def unrounded(ptx: str) -> list[str]:
    """float operations that do not say how they round: the assembler may fuse these, or approximate them."""
    return [line for line in _lines(ptx, _COMPUTES) if not re.search(r"\.r[nzmp]\.", line)]


def flushes(ptx: str) -> list[str]:
    """What takes float32 subnormals for zeros."""
    return _lines(ptx, re.compile(r"\.ftz\.[\w.]*f32\b"))


def _lines(ptx: str, pattern: re.Pattern[str]) -> list[str]:
    return [line.strip() for line in ptx.splitlines() if pattern.search(line)]


def parameter_bytes(ptx: str) -> dict[str, int]:
    """Kernel -> the bytes of its parameters, padding included."""
    sizes = {}
    for name, text in by_function(ptx).items():
        if ".entry" not in text.partition("(")[0]:
            continue
        total = 0
        for align, bits, count in _PARAMETER.findall(text[: text.index(")")]):
            size = int(bits) // 8
            total = -(-total // int(align or size)) * int(align or size) + size * int(count or 1)
        sizes[name] = total
    return sizes
