"""Instructions that compare: ``setp``, ``set``, ``selp``, ``slct`` and ``testp``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.gpu.ptx.floats import flush, widen
from tests.gpu.ptx.types import Array, Type

Compute = Callable[..., Array]

COMPARISONS: dict[str, Compute] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {f"{name}u" for name in ("eq", "ne", "lt", "le", "gt", "ge")}
COMBINATIONS: dict[str, Compute] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(type: Type, modifiers: tuple[str, ...]) -> Compute:
    """Of two arrays, as booleans."""
    name = next(
        modifier
        for modifier in modifiers
        if modifier in COMPARISONS or modifier in UNORDERED or modifier in ("num", "nan")
    )
    if type.element is not None:
        raise NotImplementedError(f"comparison of {type.name}")
    if not type.is_float:
        return COMPARISONS[name]
    ftz = "ftz" in modifiers and type.name == "f32"

    def compute(a: Array, b: Array) -> Array:
        if ftz:
            a, b = flush(a), flush(b)
        elif type.width == 2:
            a, b = widen(type, a), widen(type, b)
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered if name == "nan" else np.logical_not(unordered)
        if name in UNORDERED:
            return np.logical_or(COMPARISONS[name[:-1]](a, b), unordered)
        return np.logical_and(COMPARISONS[name](a, b), ~unordered)  # NumPy's != holds for a NaN, PTX's does not

    return compute


def set_predicates(type: Type, modifiers: tuple[str, ...], both: bool) -> Callable[..., tuple[Array, ...]]:
    """``setp``, of whose two results the second is the comparison's opposite; a third argument is combined in."""
    compare = comparison(type, modifiers)
    combine = next((COMBINATIONS[modifier] for modifier in modifiers if modifier in COMBINATIONS), None)

    def compute(a: Array, b: Array, *third: Array) -> tuple[Array, ...]:
        result = compare(a, b)
        results = (result, ~result) if both else (result,)
        if combine is None:
            return results
        return tuple(combine(value, third[0]) for value in results)

    return compute


def set_value(to: Type, type: Type, modifiers: tuple[str, ...]) -> Compute:
    """``set``: all ones, or 1.0, where the comparison holds."""
    predicates = set_predicates(type, modifiers, False)
    true = to.dtype.type(1.0) if to.name == "f32" else ~to.dtype.type(0)

    def compute(*arguments: Array) -> Array:
        result: Array = np.where(predicates(*arguments)[0], true, to.dtype.type(0))
        return result

    return compute


def select(a: Array, b: Array, chosen: Array) -> Array:
    """``selp``."""
    return np.where(chosen, a, b)


def select_by_sign(a: Array, b: Array, c: Array) -> Array:
    """``slct``."""
    return np.where(c >= 0, a, b)


def property_test(type: Type, modifiers: tuple[str, ...]) -> Compute:
    """``testp``."""
    tiny = np.finfo(type.dtype).tiny
    tests: dict[str, Compute] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < tiny),
    }
    return next(tests[modifier] for modifier in modifiers if modifier in tests)
