"""The write pass over one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.array_api.floats import Floats, floats_for
from gradclip_backends.array_api.measure import CHUNK, column, sanitized
from gradclip_backends.array_api.rows import Rows
from gradclip_core.protocol import FLOAT64, LEAVE, SCALE, ZERO, Actions, DType


def write(source: Rows, target: Rows, actions: Actions, first: int) -> None:
    """Write a buffer's segments, the first of which is ``first`` of all. In place where both are one."""
    count, length = source.values.shape
    ops = actions.op[first : first + count]
    for start, stop in runs(np.flatnonzero(ops == ZERO)):
        target.values[start:stop, :] = 0
    if target is not source:
        for start, stop in runs(np.flatnonzero(ops == LEAVE)):
            target.values[start:stop, :] = source.values[start:stop, :]
    scaled = np.flatnonzero(ops == SCALE)
    step = max(1, CHUNK // length)
    for i in range(0, scaled.size, step):
        _scale(source, target, actions, first, scaled[i : i + step])
    target.commit()


def _scale(source: Rows, target: Rows, actions: Actions, first: int, rows: npt.NDArray[np.intp]) -> None:
    """Rows that are not next to each other are computed together, and written run by run."""
    xp, values = source.framework.xp, source.values
    floats = floats_for(source.framework, source.dtype)
    factors = _Factors(floats, values, source.dtype, actions, first + rows)
    pieces = list(runs(rows))
    index = None if len(pieces) == 1 else xp.asarray(rows, device=values.device)
    for start in range(0, values.shape[1], CHUNK):
        columns = slice(start, min(start + CHUNK, values.shape[1]))
        together = values[slice(*pieces[0]), :] if index is None else xp.take(values, index, axis=0)
        x = together[:, columns]
        y = floats.narrow(factors.applied(xp, floats.widen(x)), target.values.dtype)
        done = 0
        for begin, end in pieces:
            target.values[begin:end, columns] = y[done : done + end - begin, :]
            done += end - begin


class _Factors:
    """``Actions`` for some segments, the numbers where the framework wants them."""

    def __init__(
        self, floats: Floats, like: Any, dtype: DType, actions: Actions, segments: npt.NDArray[np.intp]
    ) -> None:
        self.floats, self.dtype, self.sanitize = floats, dtype, actions.sanitize

        def put(values: npt.NDArray[Any]) -> Any:
            return column(floats.xp, values[segments], floats.wide, like)

        if dtype is FLOAT64:
            self.multipliers = [put(actions.factor)]
        else:
            self.multipliers = [put(actions.coarse), put(actions.fine)]
        self.multipliers = [m for m in self.multipliers if not (isinstance(m, float) and m == 1.0)]
        self.low = put(actions.low) if (actions.low[segments] > -np.inf).any() else None
        self.high = put(actions.high) if (actions.high[segments] < np.inf).any() else None

    def applied(self, xp: Any, y: Any) -> Any:
        """``clamp(x · factor, low, high)``."""
        if self.sanitize:
            y = sanitized(xp, y, self.dtype)
        for multiplier in self.multipliers:
            y = self.floats.rounded(y * multiplier)
        # By choice, not by minimum and maximum: NaN stays NaN, and so does the sign of a zero.
        if self.low is not None:
            y = xp.where(y < self.low, self._bound(xp, self.low, y), y)
        if self.high is not None:
            y = xp.where(y > self.high, self._bound(xp, self.high, y), y)
        return y

    @staticmethod
    def _bound(xp: Any, bound: Any, like: Any) -> Any:
        return xp.full((), bound, dtype=like.dtype, device=like.device) if isinstance(bound, float) else bound


def runs(rows: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Rows that follow each other, as (first, one after the last)."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
