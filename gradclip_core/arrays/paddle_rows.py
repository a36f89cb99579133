"""Paddle's ``SelectedRows``, the gradients of ``nn.Embedding(sparse=True)``: the rows that one stores are docked.

The gradient is the sum of what is stored for each row. Where no row is stored twice, it is read and written where it
is. Of another one a merged copy is docked; what was written there is put at the first of a row's places, and zeros
at the others, so that a step that writes nothing leaves all as it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from gradclip_core.arrays.docked import Docked, Door, Refused
from gradclip_core.arrays.layout import view
from gradclip_core.errors import UnsupportedArrayError

paddle: Any = sys.modules["paddle"]
_CURE = "Make it dense, with nn.Embedding(sparse=False)"


@dataclass(frozen=True, slots=True)
class Rows:
    """See ``Holder``. ``stored`` has no row twice, and its values are what is docked."""

    door: Door
    stored: Any
    original: Any
    """The user's tensor; None for new memory."""
    shape: tuple[int, ...]
    key: tuple[object, ...] = ()
    lies: Docked | None = None
    kind: str = "sparse"
    shared: None = None

    def refusal(self) -> Refused:
        """See ``Holder.refusal``."""
        return Refused(UnsupportedArrayError, "it stores some rows alone (SelectedRows), and is not dense", _CURE)

    def renewed(self) -> Rows:
        """See ``Holder.renewed``."""
        return replace(self, original=None, lies=None)

    def around(self, values: Any) -> Any:
        """See ``Holder.around``. Paddle makes such a tensor only of another one: by merging it, sorted by rows."""
        with paddle.no_grad():
            made = paddle.nn.clip.merge_selected_rows(self.stored)
        places = {row: place for place, row in enumerate(self.stored.rows())}
        source = _elements(self.door, values)
        _elements(self.door, made._get_tensor_from_selected_rows())[...] = source[[places[row] for row in made.rows()]]
        return made

    def after_write(self, values: Any) -> None:
        """See ``Holder.after_write``. The rows themselves have no version that could be told of it."""
        if self.original is None or self.stored is self.original:
            return
        merged = _elements(self.door, values)
        target = _elements(self.door, self.original._get_tensor_from_selected_rows())
        places = {row: place for place, row in enumerate(self.stored.rows())}
        for here, row in enumerate(self.original.rows()):
            place = places.pop(row, None)
            target[here] = 0 if place is None else merged[place]


def dock_rows(door: Door, x: Any) -> Docked:
    """The rows of a ``SelectedRows`` tensor, as ``door`` docks a tensor of them."""
    rows, values = x.rows(), x._get_tensor_from_selected_rows()
    stored = x
    if len(set(rows)) < len(rows):
        try:
            with paddle.no_grad():
                stored = paddle.nn.clip.merge_selected_rows(x)
        except (RuntimeError, ValueError) as error:
            seen = f"it stores a row twice, and Paddle cannot merge rows of {x.dtype} on {x.place}"
            raise Refused(UnsupportedArrayError, seen, _CURE) from error
    docked = door.dock(values if stored is x else stored._get_tensor_from_selected_rows())
    shape = (x.get_selected_rows().height(), *docked.shape[1:])
    key = (values.data_ptr(), tuple(rows), shape, docked.dtype.name) if rows else (id(x),)
    docked.holder = Rows(door, stored, x, shape, key, None if stored is x else door.dock(values))
    return docked


def _elements(door: Door, values: Any) -> npt.NDArray[Any]:
    """The memory of a dense tensor of Paddle's, as opaque items."""
    return view(door.dock(values))
