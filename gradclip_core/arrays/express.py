"""The express entrance: thousands of small arrays of one type, read in one go by compiled code.

Docking an array costs some microseconds of Python, as much as clipping ten thousand elements. A backend
whose kernels are loaded anyway may have ``read_arrays``, which looks at all of them in a tenth of a
microsecond each. Whatever is not perfectly ordinary goes by the dock, one by one, where each hazard has
its sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from gradclip_core import registry
from gradclip_core.arrays.docked import Docked, Door
from gradclip_core.protocol import DTYPES, Manifest


class Fleet(Sequence[Docked]):
    """Arrays that came in by express. One is docked when somebody looks at it."""

    def __init__(self, leaves: Sequence[Any], door: Door) -> None:
        self.leaves, self.door = leaves, door
        self._docked: dict[int, Docked] = {}

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


def manifest_of(leaves: Sequence[Any], door: Door) -> Manifest | None:
    """The leaves as one table, if all are plain dense arrays of one type in host memory, and none shares memory."""
    read = getattr(registry.loaded("numba_cpu"), "read_arrays", None)
    if read is None or len(set(map(type, leaves))) > 1:
        return None
    manifest: Manifest | None = read(leaves)
    return None if manifest is None or not door.plain(leaves) or _share_memory(manifest) else manifest


_ITEMSIZES = np.array([dtype.itemsize for dtype in DTYPES.values()], np.int64)


def _share_memory(manifest: Manifest) -> bool:
    sizes = (manifest.lengths * _ITEMSIZES[manifest.codes]).astype(np.uint64)
    order = np.argsort(manifest.pointers)
    starts, sizes = manifest.pointers[order], sizes[order]
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    return bool((starts[:-1] + sizes[:-1] > starts[1:]).any())
