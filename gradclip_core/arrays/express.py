"""The express entrance: thousands of small arrays of one type, read in one go by compiled code.

Docking an array costs some microseconds of Python, as much as clipping ten thousand elements. A backend
whose kernels are loaded anyway may have ``read_arrays``, which looks at all of them in a tenth of a
microsecond each. Whatever is not perfectly ordinary goes by the dock, one by one, where each hazard has
its sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast, overload

import numpy as np

from gradclip_core import registry
from gradclip_core.arrays.docked import Docked, Door, DoorWithViews, PlainDoor
from gradclip_core.arrays.numpy_door import DOOR as NUMPY
from gradclip_core.protocol import DTYPES, Manifest, by_rows


class Fleet(Sequence[Docked]):
    """Arrays that came in by express, and all of them as one table. One is docked when somebody looks at it."""

    def __init__(
        self, leaves: Sequence[Any], door: Door, manifest: Manifest, views: Sequence[Any] | None = None
    ) -> None:
        self.leaves, self.door, self.manifest = leaves, door, manifest
        self.read_only = views is not None
        """Whether these are arrays that nobody may write; what is made for them is NumPy's until ``finished``."""
        self._views = leaves if views is None else views
        self._docked: dict[int, Docked] = {}

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The arrays' shapes; none is docked for it."""
        return [tuple(view.shape) for view in self._views]

    @property
    def row_major(self) -> list[bool]:
        """Whether each array's elements lie in C order; none is docked for it."""
        return [x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous() for x in self._views]

    def alike(self) -> Fleet | None:
        """New arrays like these, not initialised; None where they would not come in by express."""
        if self.read_only:
            memory = cast(DoorWithViews, self.door).memory
            made = [
                memory(x.shape, x.dtype) if x.nbytes >= LARGE and x.flags.c_contiguous else np.empty_like(x)
                for x in self._views
            ]
            return fleet_of(made, NUMPY)
        door = cast(PlainDoor, self.door)
        return fleet_of([door.empty_like(leaf) for leaf in self.leaves], door)

    def finished(self, like: Sequence[Docked]) -> Sequence[Any]:
        """The arrays to hand to the user, in place of ``like``."""
        if self is not like and isinstance(like, Fleet) and like.read_only:
            return cast(DoorWithViews, like.door).make(self.leaves, like.leaves)
        return self.leaves

    def __len__(self) -> int:
        return len(self.leaves)

    @overload
    def __getitem__(self, i: int) -> Docked: ...
    @overload
    def __getitem__(self, i: slice) -> list[Docked]: ...
    def __getitem__(self, i: int | slice) -> Docked | list[Docked]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        if i not in self._docked:
            self._docked[i] = self.door.dock(self.leaves[i])
        return self._docked[i]


def fleet_of(leaves: Sequence[Any], door: Door | None) -> Fleet | None:
    """The leaves, if all are plain dense arrays of one type in host memory, and none shares memory."""
    read = getattr(registry.loaded("numba_cpu"), "read_arrays", None)
    if read is None or door is None or len(set(map(type, leaves))) > 1:
        return None
    plain = getattr(door, "plain", None)  # of a PlainDoor; isinstance() of a protocol costs 15 µs
    plain_first = getattr(door, "plain_first", False)
    views = None
    if plain is None:
        look = getattr(door, "views", None)
        views = None if look is None else look(leaves)
        if views is None:
            return None
    elif plain_first and not plain(leaves):
        return None
    manifest: Manifest | None = read(leaves) if views is None else read(views, only_read=True)
    # Reading asks for the objects' memory ahead, so that whoever looks at them next finds it.
    if manifest is None or (plain is not None and not plain_first and not plain(leaves)):
        return None
    if views is None and _share_memory(manifest):  # of what nobody writes, nothing is scaled twice
        return None
    return Fleet(leaves, door, manifest, views)


def new_alike(arrays: Sequence[Docked]) -> Sequence[Docked]:
    """New memory like that of each array, not initialised."""
    if isinstance(arrays, Fleet) and (made := arrays.alike()) is not None:
        return made
    return [docked.door.new_like(docked) for docked in arrays]


def in_units(arrays: Sequence[Docked], axes: Sequence[tuple[int, ...] | None]) -> Manifest | None:
    """The table with a segment for each unit, where all units lie one after the other in their array's memory.

    None where they do not, and where the arrays did not come in by express.
    """
    if not isinstance(arrays, Fleet):
        return None
    manifest = arrays.manifest
    if axes.count(None) == len(axes):
        return manifest
    counts = []
    for shape, reduced, row_major in zip(arrays.shapes, axes, arrays.row_major, strict=True):
        ndim = len(shape)
        kept = 0 if reduced is None else ndim - len(reduced)
        if kept and not (row_major and reduced == tuple(range(kept, ndim))):
            return None
        counts.append(math.prod(shape[:kept]))
    rows = np.array(counts, np.int64)
    if not rows.all():
        return None
    units = by_rows(manifest.pointers, manifest.lengths // rows, manifest.codes, rows)
    return Manifest(*units, manifest.owners, rows)


LARGE = 1 << 14
"""Bytes from which it may matter to a framework where new memory begins."""
_ITEMSIZES = np.array([dtype.itemsize for dtype in DTYPES.values()], np.int64)


def _share_memory(manifest: Manifest) -> bool:
    if len(manifest) == 1:
        return False
    sizes = (manifest.lengths * _ITEMSIZES[manifest.codes]).astype(np.uint64)
    pointers = manifest.pointers
    if not manifest.lengths.all():  # an array without elements may lie anywhere
        pointers, sizes = pointers[sizes > 0], sizes[sizes > 0]
    order = np.argsort(pointers)
    starts, ends = pointers[order], (pointers + sizes)[order]
    return bool((ends[:-1] > starts[1:]).any())
