"""The doors for arrays that are never in memory here: dask's, in pieces that are computed later, and ndonnx's, a graph.

Their frameworks' own operations work on them, and what comes of it is as lazy as they are: nothing is computed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.immutable_door import ImmutableDoor
from gradclip_core.errors import UnsupportedArrayError


class LazyDoor(ImmutableDoor):
    """See ``Door``. ``module`` has ``asarray``."""

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self.module = module

    def dock(self, x: Any) -> Docked:
        """An array that its framework alone can work on."""
        self.check(x)
        return self.symbol(x, x.shape, str(x.dtype))

    def check(self, x: Any) -> None:
        """``Refused`` where the framework cannot work on it either."""

    def traced(self, x: Any) -> bool:
        """All are."""
        return True

    def constant(self, x: Any) -> Docked:
        """A concrete array beside lazy ones."""
        return self.dock(sys.modules[self.module].asarray(x))

    def refusal(self, x: Any) -> str:
        """Why the array may not be written."""
        return "it is lazy: its values are not there yet, and nobody can write them"


class DaskDoor(LazyDoor):
    """Dask: pieces of NumPy's arrays."""

    def check(self, x: Any) -> None:
        """See ``LazyDoor.check``."""
        if type(x._meta) is not np.ndarray:  # masked ones are of a subclass
            kind = type(x._meta)
            raise Refused(
                UnsupportedArrayError,
                f"its pieces are of {kind.__module__}.{kind.__name__}, and dask arrays of numpy.ndarray are served",
                "Pass x.map_blocks(numpy.asarray) if that keeps its values; of masked ones, dask.array.ma.filled(x, 0)",
            )

    def symbol(self, x: Any, shape: Any, dtype: str, place: str = "") -> Docked:
        """See ``ImmutableDoor.symbol``."""
        if any(n != n for n in shape):
            raise Refused(
                UnsupportedArrayError,
                f"its shape {tuple(shape)} is not known yet: it has chunks of unknown size",
                "Call x.compute_chunk_sizes() first, or pass x.compute()",
            )
        return super().symbol(x, tuple(int(n) for n in shape), dtype, place)


DASK = DaskDoor("dask", "dask.array")
NDONNX = LazyDoor("ndonnx", "ndonnx")
