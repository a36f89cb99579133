"""What a *unit* of an array is: the ``axis`` of ``adaptive_clip`` and of the sets that are made of groups.

``axis`` names the axes that a unit extends over. Libraries disagree on it, so it is never guessed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from gradclip_core.errors import InvalidArgumentError, show

Axis = int | tuple[int, ...] | str | None | Callable[[str, tuple[int, ...]], int | tuple[int, ...] | None]

_CURE = (
    "Pass the axes to reduce over: 'all_but_first' (weights stored output-first: PyTorch, timm), 'all_but_last' "
    "(output-last: JAX, Flax, optax), an int, a tuple, None (the whole array is the unit), or a function (path, shape) "
    "-> any of these"
)
_LAYOUTS = ("all_but_first", "all_but_last")


def _integers(axis: Any) -> tuple[int, ...]:
    """An int or a tuple of ints as a tuple; anything else is refused."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    try:
        if any(isinstance(a, (bool, np.bool_)) for a in axes):
            raise TypeError("a bool is no axis")
        return tuple(operator.index(a) for a in axes)
    except TypeError as error:
        raise InvalidArgumentError(
            f"axis={show(axis)}", f"it names neither axes nor a layout ({error})", _CURE
        ) from error


def _is_layout(axis: object) -> bool:
    return isinstance(axis, str) and axis in _LAYOUTS


def check_axis(axis: Axis) -> None:
    """Refuse what cannot be an axis of any array. What a function returns is seen when it is called."""
    if axis is not None and not callable(axis) and not _is_layout(axis):
        _integers(axis)


def axes_of_units(axis: Axis, path: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that the units of one array extend over; None where the whole array is one.

    Arrays of at most one axis (biases and gains) are one unit whatever ``axis`` is, as in the AGC paper.
    """
    axis = axis(path, shape) if callable(axis) else axis
    ndim = len(shape)
    if axis is None:
        return None
    if _is_layout(axis):
        if ndim <= 1:
            return None
        return tuple(range(1, ndim)) if axis == "all_but_first" else tuple(range(ndim - 1))
    _integers(axis)
    if ndim <= 1:
        return None
    axes = _integers(axis)
    reduced = {a % ndim for a in axes}
    if len(reduced) < len(axes) or not all(-ndim <= a < ndim for a in axes):
        seen = f"array '{path}' has shape {shape}, which has no such axes"
        raise InvalidArgumentError(f"axis={show(axis)}", seen, _CURE)
    return tuple(sorted(reduced))
