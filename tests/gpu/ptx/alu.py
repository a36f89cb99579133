"""Every instruction that computes in registers: which operands it reads and writes, as what types, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.gpu.ptx import integers
from tests.gpu.ptx.compare import (
    property_test,
    select,
    select_by_sign,
    set_predicates,
    set_value,
)
from tests.gpu.ptx.convert import conversion, pack_pair
from tests.gpu.ptx.floats import float_op, gross_f64
from tests.gpu.ptx.syntax import Group, Immediate, Instruction, Operand, Pair
from tests.gpu.ptx.types import TYPES, Array, Type, halves, packed, types_in

Typed = tuple[Operand, Type]
PRED, U32 = TYPES["pred"], TYPES["u32"]


@dataclass(frozen=True)
class Plan:
    """What an instruction does to registers. ``compute`` gives one array for each of ``results``."""

    results: tuple[Typed, ...]
    sources: tuple[Typed, ...]
    compute: Callable[..., tuple[Array, ...]]
    reads_carry: bool = False
    writes_carry: bool = False
    """The carry is one more source, one more result."""


def plan(instruction: Instruction) -> Plan:
    """Raises ``NotImplementedError`` with the instruction's text where it is not known."""
    name, modifiers, operands = instruction.name, instruction.modifiers, instruction.operands
    types = types_in(modifiers)
    try:
        special = _SPECIAL.get(name)
        if special is not None:
            made = special(modifiers, types, operands)
            if made is not None:
                return made
        type = types[-1]
        compute, widths = _arithmetic(name, type, modifiers)
    except (NotImplementedError, KeyError, IndexError, StopIteration) as fault:
        raise NotImplementedError(f"{instruction.text} ({type_name(fault)})") from fault
    result, sources = widths or (type, (type,) * (len(operands) - 1))
    return _simple((operands[0], result), tuple(zip(operands[1:], sources, strict=True)), compute)


def type_name(fault: Exception) -> str:
    """What an unknown instruction is blamed on."""
    return f"{type(fault).__name__}: {fault}" if str(fault) else "unknown"


def _simple(result: Typed, sources: tuple[Typed, ...], compute: Callable[..., Array]) -> Plan:
    return Plan((result,), sources, lambda *arrays: (compute(*arrays),))


Widths = tuple[Type, tuple[Type, ...]]


def _arithmetic(name: str, type: Type, modifiers: tuple[str, ...]) -> tuple[Callable[..., Array], Widths | None]:
    """What is computed, and the types where they are not all the same."""
    if type is PRED:
        return _PREDICATE[name], None
    if type.element is not None and name not in (*_BITWISE, "mov", "selp"):
        single, _ = _arithmetic(name, type.element, tuple(TYPES_OF_ELEMENT.get(m, m) for m in modifiers))
        return lambda *pairs: packed(single(*(halves(type, pair) for pair in pairs))), None
    if type.is_float and name != "mov":
        if type.width == 8 and "approx" in modifiers and "ftz" in modifiers:
            return gross_f64(name), None
        compute = float_op(name, type, modifiers)
        if compute is None:
            raise NotImplementedError(name)
        return compute, None
    if name in ("mul", "mad"):
        return _multiply(name, type, modifiers)
    if name in ("shl", "shr"):
        return integers.shift_left if name == "shl" else integers.shift_right, (type, (type, U32))
    if name in ("bfe", "bfi"):
        if name == "bfe":
            return integers.extract_field, (type, (type, U32, U32))
        return integers.insert_field, (type, (type, type, U32, U32))
    if name in ("popc", "clz", "bfind"):
        counts: dict[str, Callable[..., Array]] = {
            "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
            "clz": integers.leading_zeros,
            "bfind": integers.find_bit("shiftamt" in modifiers),
        }
        return counts[name], (U32, (type,))
    if "sat" in modifiers:
        return integers.saturating(name, type), None
    if name in _INTEGER:
        return _INTEGER[name], None
    raise NotImplementedError(name)


TYPES_OF_ELEMENT = {f"{name}x2": name for name in ("f16", "bf16", "u16", "s16")}


def _same(a: Array) -> Array:
    return a


def _multiply(name: str, type: Type, modifiers: tuple[str, ...]) -> tuple[Callable[..., Array], Widths | None]:
    result = type
    product: Callable[[Array, Array], Array] = np.multiply
    if "wide" in modifiers:
        product, result = integers.multiply_wide, TYPES[f"{type.kind}{2 * type.bits}"]
    elif "hi" in modifiers:
        product = integers.multiply_high
    if name == "mul":
        return product, (result, (type, type))
    return lambda a, b, c: product(a, b) + c, (result, (type, type, result))


_BITWISE: dict[str, Callable[..., Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}

_PREDICATE: dict[str, Callable[..., Array]] = {**_BITWISE, "not": np.logical_not, "mov": _same}

_INTEGER: dict[str, Callable[..., Array]] = {
    **_BITWISE,
    "not": np.invert,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "mov": _same,
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "div": integers.divide,
    "rem": integers.remainder,
    "brev": integers.reverse_bits,
    "prmt": integers.permute_bytes,
    "sad": lambda a, b, c: c + np.where(a < b, b - a, a - b).astype(c.dtype),
    "mul24": lambda a, b: (a & a.dtype.type(0xFFFFFF)) * (b & a.dtype.type(0xFFFFFF)),
}

Modifiers = tuple[str, ...]
Operands = tuple[Operand, ...]


def _move(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan | None:
    """Packs and unpacks; a plain move is arithmetic."""
    target, source = operands
    if isinstance(source, Group):
        part = TYPES[f"b{types[0].bits // len(source.items)}"]

        def pack(*parts: Array) -> Array:
            rows = np.stack(np.broadcast_arrays(*parts), axis=1)
            joined: Array = np.ascontiguousarray(rows).view(f"<u{types[0].width}").reshape(-1)
            return joined

        return _simple((target, TYPES[f"b{types[0].bits}"]), tuple((item, part) for item in source.items), pack)
    if isinstance(target, Group):
        part = TYPES[f"b{types[0].bits // len(target.items)}"]

        def unpack(whole: Array) -> tuple[Array, ...]:
            rows = np.ascontiguousarray(whole).view(part.dtype).reshape(len(whole), -1)
            return tuple(rows[:, k] for k in range(rows.shape[1]))

        results = tuple((item, part) for item in target.items)
        return Plan(results, ((source, TYPES[f"b{types[0].bits}"]),), unpack)
    return None


def _convert(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    to, source = types
    if to.element is not None:
        if source.name != "f32":
            raise NotImplementedError("cvt of pairs")
        return _simple((operands[0], to), ((operands[1], source), (operands[2], source)), pack_pair(to, modifiers))
    return _simple((operands[0], to), ((operands[1], source),), conversion(to, source, modifiers))


def _set_predicate(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    target, *sources = operands
    targets = (target.first, target.second) if isinstance(target, Pair) else (target,)
    typed = [(source, types[-1]) for source in sources[:2]] + [(source, PRED) for source in sources[2:]]
    compute = set_predicates(types[-1], modifiers, len(targets) == 2)
    return Plan(tuple((target, PRED) for target in targets), tuple(typed), compute)


def _set(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    to, source = types
    typed = [(operand, source) for operand in operands[1:3]] + [(operand, PRED) for operand in operands[3:]]
    return _simple((operands[0], to), tuple(typed), set_value(to, source, modifiers))


def _select(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    target, a, b, chosen = operands
    return _simple((target, types[0]), ((a, types[0]), (b, types[0]), (chosen, PRED)), select)


def _select_by_sign(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    target, a, b, c = operands
    return _simple((target, types[0]), ((a, types[0]), (b, types[0]), (c, types[1])), select_by_sign)


def _test_property(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    return _simple((operands[0], PRED), ((operands[1], types[0]),), property_test(types[0], modifiers))


def _logic(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    *sources, table = operands[1:]
    if not isinstance(table, Immediate) or len(sources) != 3:
        raise NotImplementedError("lop3")
    typed = tuple((source, types[0]) for source in sources)
    return _simple((operands[0], types[0]), typed, integers.logic(table.value))


def _funnel_shift(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan:
    compute = integers.funnel_shift("l" in modifiers, "wrap" in modifiers)
    return _simple((operands[0], U32), tuple((operand, U32) for operand in operands[1:]), compute)


def _permute(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan | None:
    if len(modifiers) > 1:
        raise NotImplementedError("a mode of prmt")
    return _simple((operands[0], U32), tuple((operand, U32) for operand in operands[1:]), integers.permute_bytes)


def _carry(name: str) -> Callable[[Modifiers, list[Type], Operands], Plan | None]:
    """The carry chains; ``add`` without ``.cc`` is arithmetic."""

    def make(modifiers: Modifiers, types: list[Type], operands: Operands) -> Plan | None:
        reads, writes = name.endswith("c"), "cc" in modifiers
        if not (reads or writes):
            return None
        base = name[:-1] if reads else name
        single = integers.with_carry(base, types[0], "hi" in modifiers)
        typed = tuple((operand, types[0]) for operand in operands[1:])

        def compute(*arrays: Array) -> tuple[Array, ...]:
            result, carry = single(*(arrays if reads else (*arrays, np.zeros(1, bool))))
            return (result, carry) if writes else (result,)

        return Plan(((operands[0], types[0]),), typed, compute, reads, writes)

    return make


_SPECIAL: dict[str, Callable[[Modifiers, list[Type], Operands], Plan | None]] = {
    "mov": _move,
    "cvt": _convert,
    "setp": _set_predicate,
    "set": _set,
    "selp": _select,
    "slct": _select_by_sign,
    "testp": _test_property,
    "lop3": _logic,
    "shf": _funnel_shift,
    "prmt": _permute,
    **{name: _carry(name) for name in ("add", "addc", "sub", "subc", "mad", "madc")},
}
