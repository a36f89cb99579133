"""What a factor does to the elements of a narrow type: which become zero, and which become infinite.

Multiplying by a positive factor and rounding keeps the order of magnitudes, so there is one number
below which everything vanishes and one above which everything overflows. Both are found by
bisection over the codes of the storage type, with the reference's own arithmetic; how many
elements lie beyond is what ``What.bounds`` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import FLOAT64, SCALE, ZERO, Actions, Backend, BoolArray, Buffer, DType, FloatArray, What
from gradclip_core.reference import narrow, widen

Holds = Callable[[npt.NDArray[Any], DType, npt.NDArray[np.int64]], BoolArray]
"""Whether it does for one magnitude of each of some segments of one storage type, given with their places."""


@dataclass(frozen=True, slots=True)
class Table:
    """For each segment its storage type, and the buffer that it is of."""

    buffers: Sequence[Buffer]
    dtypes: list[DType]
    owners: npt.NDArray[np.int64]

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> Table:
        """The segments of these buffers."""
        owners = np.repeat(np.arange(len(buffers)), [buffer.rows for buffer in buffers])
        return cls(buffers, [buffers[i].dtype for i in owners.tolist()], owners)


def underflows(backend: Backend, buffers: Sequence[Buffer], actions: Actions) -> int:
    """How many elements that are not zero become zero. Two read passes over the arrays in which any could."""
    table = Table.of(buffers)
    shrunk = (actions.op == SCALE) & (actions.factor < 1)
    return _underflows(
        backend, table, actions, shrunk, lambda x, dtype, here: _multiplied(x, dtype, actions, here) == 0
    )


def underflows_into(
    backend: Backend, buffers: Sequence[Buffer], actions: Actions, factor: FloatArray, targets: Sequence[DType]
) -> int:
    """The same, where the product with ``factor`` is made in float64 and rounded to other types, one for each array."""
    table = Table.of(buffers)
    # Half the smallest subnormal is a tie, and rounds to the even neighbour, 0.
    least = np.array([targets[i].smallest / 2 for i in table.owners])

    def vanishes(x: npt.NDArray[Any], dtype: DType, here: npt.NDArray[np.int64]) -> BoolArray:
        return x.astype(np.float64) * factor[here] <= least[here]

    return _underflows(backend, table, actions, actions.op != ZERO, vanishes)


def _underflows(backend: Backend, table: Table, actions: Actions, picked: BoolArray, vanishes: Holds) -> int:
    clamped = (actions.low > 0) | (actions.high < 0)  # to what is not zero
    ends = _ends(table, picked & ~clamped, vanishes)
    ends = np.where(actions.op == ZERO, np.inf, ends)  # a factor of 0 is carried out by assignment
    picked = ends > 0
    return int(_outside(backend, table, picked, np.zeros(ends.size)) - _outside(backend, table, picked, ends))


def overflowing(buffers: Sequence[Buffer], actions: Actions, largest: FloatArray) -> BoolArray:
    """The segments whose largest finite element becomes infinite (NaN, in a type without infinity), whatever its sign.

    Where one side is clamped, ``overflows`` knows whether it was on the other.
    """
    table = Table.of(buffers)
    found = np.zeros(largest.size, np.bool_)
    grown = (actions.op == SCALE) & (actions.factor > 1)
    grown &= np.isinf(actions.low) | np.isinf(actions.high)
    for dtype, here in _by_dtype(table, grown):
        x = widen(narrow(_as_wide(largest[here], dtype), dtype), dtype)
        found[here] = ~np.isfinite(_multiplied(x, dtype, actions, here))
    return found


def overflows(backend: Backend, buffers: Sequence[Buffer], actions: Actions, picked: BoolArray) -> int:
    """How many finite elements of some segments become infinite. Two read passes over their arrays."""
    table = Table.of(buffers)
    ends = _ends(table, picked, lambda x, dtype, here: np.isfinite(_multiplied(x, dtype, actions, here)))
    tops = np.array([dtype.largest for dtype in table.dtypes])
    low, high = (np.where(np.isinf(bound), ends, tops) for bound in (actions.low, actions.high))
    return int(_outside(backend, table, picked, low, high) - _outside(backend, table, picked, tops))


def saturated(buffers: Sequence[Buffer], actions: Actions, picked: BoolArray) -> Actions:
    """The same actions, with the largest finite value where some segments would overflow."""
    tops = np.array([buffer.dtype.largest for buffer in buffers for _ in range(buffer.rows)])
    low, high = np.maximum(actions.low, -tops), np.minimum(actions.high, tops)
    return replace(actions, low=np.where(picked, low, actions.low), high=np.where(picked, high, actions.high))


def _ends(table: Table, picked: BoolArray, holds: Holds) -> FloatArray:
    """For each picked segment the largest magnitude for which it ``holds``; 0 for the others."""
    ends = np.zeros(picked.size)
    for dtype, here in _by_dtype(table, picked):
        code = np.dtype(f"u{dtype.itemsize}")
        top = narrow(_as_wide(np.array([dtype.largest]), dtype), dtype).view(code)[0]
        low, high = np.zeros(here.size, np.uint64), np.full(here.size, top, np.uint64)
        while (low < high).any():
            middle = low + (high - low + np.uint64(1)) // np.uint64(2)
            x = widen(middle.astype(code).view(dtype.view), dtype)
            true = holds(x, dtype, here)
            low, high = np.where(true, middle, low), np.where(true, high, middle - np.uint64(1))
        ends[here] = widen(low.astype(code).view(dtype.view), dtype)
    return ends


def _multiplied(x: npt.NDArray[Any], dtype: DType, actions: Actions, here: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """What ``apply`` makes of one element of each segment, as it is stored and read again."""
    with np.errstate(all="ignore"):
        for factor in (actions.factor,) if dtype is FLOAT64 else (actions.coarse, actions.fine):
            x = x * factor[here]
        return widen(narrow(x, dtype), dtype)


def _as_wide(v: FloatArray, dtype: DType) -> npt.NDArray[Any]:
    return v if dtype is FLOAT64 else v.astype(np.float32)


def _by_dtype(table: Table, picked: BoolArray) -> list[tuple[DType, npt.NDArray[np.int64]]]:
    names = np.array([dtype.name for dtype in table.dtypes])
    kinds = {dtype.name: dtype for dtype in table.dtypes}
    found = [(dtype, np.flatnonzero(picked & (names == name))) for name, dtype in kinds.items()]
    return [(dtype, here) for dtype, here in found if here.size]


def _outside(
    backend: Backend, table: Table, picked: BoolArray, ends: FloatArray, high: FloatArray | None = None
) -> int:
    """How many elements of the picked segments are beyond ± their ends, or under minus these and over ``high``."""
    arrays = np.unique(table.owners[picked])
    if not arrays.size:
        return 0
    here = np.flatnonzero(np.isin(table.owners, arrays))
    bounds = -ends[here], (ends if high is None else high)[here]
    found = backend.measure([table.buffers[i] for i in arrays], What(bounds=bounds))
    return int(found.outside[picked[here]].sum())
