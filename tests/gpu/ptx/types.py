"""PTX's operand types, and how each lies in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DType = np.dtype[Any]

UNSIGNED: dict[int, DType] = {width: np.dtype(f"<u{width}") for width in (1, 2, 4, 8)}


@dataclass(frozen=True)
class Type:
    """An operand type. ``kind`` is "p" predicate, "b" bits, "u" unsigned, "s" signed or "f" floating point."""

    name: str
    kind: str
    width: int
    """In bytes."""
    dtype: DType
    element: Type | None = None
    """Of a packed pair."""

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def bits(self) -> int:
        return 8 * self.width


def _types() -> dict[str, Type]:
    types = {"pred": Type("pred", "p", 1, np.dtype(bool))}
    for width in (1, 2, 4, 8):
        for kind, letter in (("b", "u"), ("u", "u"), ("s", "i")):
            name = f"{kind}{8 * width}"
            types[name] = Type(name, kind, width, np.dtype(f"<{letter}{width}"))
    for width in (2, 4, 8):
        types[f"f{8 * width}"] = Type(f"f{8 * width}", "f", width, np.dtype(f"<f{width}"))
    types["bf16"] = Type("bf16", "f", 2, UNSIGNED[2])  # NumPy has none: its bits
    for name in ("f16", "bf16", "u16", "s16"):
        element = types[name]
        types[f"{name}x2"] = Type(f"{name}x2", element.kind, 4, UNSIGNED[4], element)
    return types


TYPES = _types()


def types_in(modifiers: tuple[str, ...]) -> list[Type]:
    """The types named in an opcode, in its order."""
    return [TYPES[modifier] for modifier in modifiers if modifier in TYPES]


def halves(type: Type, array: Array) -> Array:
    """Packed pairs as rows of two."""
    assert type.element is not None
    return np.ascontiguousarray(array).view(type.element.dtype).reshape(-1, 2)


def packed(rows: Array) -> Array:
    """Rows of two as packed pairs."""
    return np.ascontiguousarray(rows).view(UNSIGNED[4]).reshape(-1)
