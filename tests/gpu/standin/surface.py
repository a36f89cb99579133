"""Holding the stand-in, and the code that runs on it, against the real CuPy, which imports without a GPU."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def names_used(source: str) -> set[str]:
    """The dotted names below ``cupy`` that a file uses, as far as its imports tell: ``cuda.Device``."""
    tree = ast.parse(source)
    bound: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "cupy":
                    path = alias.name.partition(".")[2]
                    used.add(path)
                    bound[alias.asname or "cupy"] = path if alias.asname else ""
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cupy":
            for alias in node.names:
                path = _join((node.module or "").partition(".")[2], alias.name)
                used.add(path)
                bound[alias.asname or alias.name] = path
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.expr | ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in bound:
            used.add(_join(bound[inner.id], *parts))
    return used - {""}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def missing(names: set[str], cupy: Any) -> list[str]:
    """Which of these CuPy has not; a name that ends on an instance's attribute counts by its last class or module."""
    lost = []
    for name in sorted(names):
        thing = cupy
        for part in name.split("."):
            if not hasattr(thing, part):
                if isinstance(thing, ModuleType) or inspect.isclass(thing):
                    lost.append(name)
                break
            thing = getattr(thing, part)
    return lost


def invented(standin: Any, real: Any, path: str = "cupy") -> Iterator[str]:
    """Public attributes, and methods by their special names, that the real CuPy lacks."""
    module = isinstance(standin, ModuleType)
    for name, value in list(vars(standin).items()):
        special = name.startswith("__") and callable(value)
        if name.startswith("_") and not (special and not module):
            continue
        here = f"{path}.{name}"
        if not hasattr(real, name):
            yield here
        elif (isinstance(value, ModuleType) and value.__name__.startswith("cupy")) or _is_own_class(value):
            yield from invented(value, getattr(real, name), here)
        elif not special or name == "__dlpack__":  # the language calls the others, by position
            yield from _parameters(value, getattr(real, name), here)


def _is_own_class(value: Any) -> bool:
    return inspect.isclass(value) and value.__module__.startswith("tests.gpu.standin")


def _parameters(ours: Any, real: Any, path: str) -> Iterator[str]:
    """Keywords that the real function does not take, where it says what it takes."""
    if not inspect.isfunction(ours):
        return
    try:
        theirs = inspect.signature(real).parameters
    except (TypeError, ValueError):
        # Cython puts the signature into the docstring's first line.
        line = (getattr(real, "__doc__", None) or "").partition("\n")[0]
        if not line.partition("(")[0].endswith(getattr(ours, "__name__", "?")):
            return
        for name in inspect.signature(ours).parameters:
            if name != "self" and name not in line:
                yield f"{path}({name}=)"
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in theirs.values()):
        return
    for name in inspect.signature(ours).parameters:
        if name not in theirs:
            yield f"{path}({name}=)"
