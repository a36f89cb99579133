"""The structs of gpu/layout.py as named tuples, which Numba takes as arguments of kernels, field by field.

All integers become int64, whatever their size in the layout: so addresses can be added to counts.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from gradclip_backends.gpu.layout import GROUP, NODES, PASS, RECORD, ROWS_IN_MEMORY, RULE, SCALE, STRIDED

WORDS = np.dtype([("words", "i8", (128,))])
"""As many words go into memory as the argument of a launch."""

_named: Any = collections.namedtuple  # whose fields mypy wants to see written out
_classes: dict[np.dtype[Any], Any] = {}


def _struct(name: str, layout: np.dtype[Any]) -> Any:
    made = _named(name, layout.names)
    made.__module__ = __name__
    _classes[layout] = made
    return made


Nodes = _struct("Nodes", NODES)
Record = _struct("Record", RECORD)
Scale = _struct("Scale", SCALE)
Group = _struct("Group", GROUP)
Rows = _struct("Rows", ROWS_IN_MEMORY)
Pass = _struct("Pass", PASS)
Rule = _struct("Rule", RULE)
Strided = _struct("Strided", STRIDED)
Words = _struct("Words", WORDS)


def argument(value: Any) -> Any:
    """A launch's argument, a NumPy scalar or a struct as an array of size 1, as a kernel here takes it."""
    return _convert(value[0] if isinstance(value, np.ndarray) else value, value.dtype)


def _convert(value: Any, layout: np.dtype[Any]) -> Any:
    if layout in _classes:
        assert layout.fields is not None
        return _classes[layout](*(_convert(value[name], field[0]) for name, field in layout.fields.items()))
    if layout.subdtype is not None:
        return tuple(_convert(entry, layout.subdtype[0]) for entry in value)
    return np.float64(value) if layout.kind == "f" else int(value)


def numba_type(layout: np.dtype[Any]) -> Any:
    """The type that Numba finds an argument of this layout to be."""
    from numba.cuda import types

    if layout in _classes:
        assert layout.fields is not None
        return types.NamedTuple([numba_type(field[0]) for field in layout.fields.values()], _classes[layout])
    if layout.subdtype is not None:
        return types.UniTuple(numba_type(layout.subdtype[0]), layout.subdtype[1][0])
    return types.float64 if layout.kind == "f" else types.int64
