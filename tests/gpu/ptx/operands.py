"""Operands, bound to one launch: functions that read or write them for the threads of a selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tests.gpu.ptx.lanes import Selection
from tests.gpu.ptx.syntax import Immediate, Negated, Operand, Register, Sink, Special, Variable
from tests.gpu.ptx.types import UNSIGNED, Array, Type

Reader = Callable[[Selection], Array]
Writer = Callable[[Selection, Array], None]


class State(Protocol):
    """What operands are bound to."""

    def register(self, register: Register) -> Array:
        """One value for each thread."""
        ...

    def special(self, name: str) -> Array:
        """One value for each thread, or a single one."""
        ...

    def address(self, variable: Variable) -> int:
        """In the variable's own space."""
        ...


def reader(state: State, operand: Operand, type: Type) -> Reader:
    """Gives arrays of ``type``: one value for each thread, or a single one where all have the same."""
    if isinstance(operand, Register):
        return _view(state.register(operand), operand, type).__getitem__
    if isinstance(operand, Negated):
        inner = reader(state, operand.operand, type)
        return (lambda select: ~inner(select)) if type.kind == "p" else lambda select: -inner(select)
    if isinstance(operand, Special):
        values = state.special(operand.name)
        if values.dtype.itemsize != type.width:
            values = values.astype(type.dtype)
        values = values.view(type.dtype)
        return (lambda select: values) if len(values) == 1 else values.__getitem__
    if isinstance(operand, Immediate):
        constant = _constant(operand, type)
    elif isinstance(operand, Variable):
        constant = np.array([state.address(operand)], np.uint64).astype(UNSIGNED[type.width]).view(type.dtype)
    else:
        raise NotImplementedError(f"{operand} as a value")
    return lambda select: constant


def writer(state: State, operand: Operand, type: Type) -> Writer:
    """Takes arrays of ``type``. A wider register is filled up with zeros, or with the sign."""
    if isinstance(operand, Sink):
        return lambda select, values: None
    if not isinstance(operand, Register):
        raise NotImplementedError(f"{operand} as a result")
    values = state.register(operand)
    if type.kind == "p" or type.width == operand.type.width:
        return values.view(type.dtype).__setitem__
    if operand.type.width < type.width:
        raise NotImplementedError(f"{type.name} into {operand.name} of {operand.type.bits} bits")
    kind = "i" if type.kind == "s" else "u"
    wide, own = values.view(f"<{kind}{operand.type.width}"), np.dtype(f"<{kind}{type.width}")
    return lambda select, result: wide.__setitem__(select, result.view(own))


def _view(values: Array, register: Register, type: Type) -> Array:
    width = register.type.width
    if (type.kind == "p") != (register.type.kind == "p") or width < type.width:
        raise NotImplementedError(f"{register.name} of {register.type.name} as {type.name}")
    if width == type.width:
        return values.view(type.dtype)
    return values.view(type.dtype)[:: width // type.width]  # the low part


def _constant(operand: Immediate, type: Type) -> Array:
    if type.kind == "p":
        return np.array([bool(operand.value)])
    bits = operand.value & ((1 << 64) - 1)
    if operand.float_width and type.is_float and operand.float_width != type.width:
        own = np.array([bits], np.uint64).astype(UNSIGNED[operand.float_width]).view(f"<f{operand.float_width}")
        return own.astype(type.dtype)
    if type.is_float and not operand.float_width and type.width > 2:
        raise NotImplementedError(f"the integer {operand.value} as {type.name}")
    return np.array([bits], np.uint64).astype(UNSIGNED[type.width]).view(type.dtype)
