"""The threads that execute an instruction together."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.gpu.ptx.types import Array

Selection = slice | Array
WARP = 32


class Lanes:
    """Some threads of the grid, by ascending number.

    ``select`` indexes an array that holds one value for each thread: a slice where the threads are neighbours, since
    NumPy then copies nothing.
    """

    def __init__(self, index: Array) -> None:
        self.count = len(index)
        self.index = index
        first, last = int(index[0]), int(index[-1])
        self.select: Selection = slice(first, last + 1) if last - first + 1 == self.count else index

    def where(self, mask: Array) -> Lanes | None:
        """Those for which the mask, one value for each of these lanes, is true."""
        count = int(np.count_nonzero(mask))
        if count == self.count:
            return self
        return Lanes(self.index[mask]) if count else None

    @functools.cached_property
    def warp(self) -> Array:
        """The warp of each."""
        result: Array = self.index >> 5
        return result


Step = Callable[[Lanes], None]
