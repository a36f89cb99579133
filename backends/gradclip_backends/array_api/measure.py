"""The read pass over one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gradclip_backends.array_api.floats import Floats, floats_for
from gradclip_backends.array_api.rows import Rows
from gradclip_backends.array_api.sums import BLOCK, Parts, block_sums, lost_in_squaring, tree_sum
from gradclip_core.protocol import FLOAT64, DType, FloatArray, What

FIELDS = ("sums", "largest", "infs", "nans", "outside", "carries")
"""The rows of what ``measured`` returns."""
CHUNK = 1024 * BLOCK
"""Elements looked at together: they bound the float64 copies. No result depends on it."""


def groups(rows: int, length: int) -> Iterator[tuple[slice, list[slice]]]:
    """Rows to be taken together, and the columns to be taken one after the other."""
    step = max(1, CHUNK // length)
    columns = [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows)), columns


def measured(rows: Rows, what: What, first: int) -> Any:
    """A float64 matrix in the framework: ``FIELDS``, and for each a number a segment. ``first``: of all segments."""
    xp, values = rows.framework.xp, rows.values
    count, length = values.shape
    floats = floats_for(rows.framework, rows.dtype)
    found = []
    for here, columns in groups(count, length):
        asked = _Asked(floats, values, rows.dtype, what, slice(first + here.start, first + here.stop))
        found.append(_measured_group(xp, [values[here, there] for there in columns], asked))
    return found[0] if len(found) == 1 else xp.concat(found, axis=1)


class _Asked:
    """``What`` for some segments, the numbers where the framework wants them."""

    def __init__(self, floats: Floats, like: Any, dtype: DType, what: What, segments: slice) -> None:
        self.floats, self.dtype, self.what = floats, dtype, what
        self.carry = what.carry and dtype is FLOAT64
        self.scales: list[Any] = []
        xp = floats.xp
        if what.exponents is not None and what.exponents[segments].any():
            # Down in one step, which rounds once; up in two, the first of which is exact.
            up = -what.exponents[segments]
            once = np.minimum(up, 1000)
            self.scales = [
                column(xp, np.ldexp(1.0, part), xp.float64, like) for part in (once, up - once) if part.any()
            ]
        self.units = None
        if what.units is not None:
            units = np.where(what.units[segments] == 0, 1.0, what.units[segments])
            # Never a Python number: PyTorch multiplies by the reciprocal of that, which may overflow.
            self.units = xp.asarray(units[:, None], dtype=xp.float64, device=like.device)
        self.bounds = None
        if what.bounds is not None:
            kind = np.float64 if dtype is FLOAT64 else np.float32
            low, high = (bound[segments].astype(kind) for bound in what.bounds)
            self.bounds = column(xp, low, floats.wide, like), column(xp, high, floats.wide, like)


def _measured_group(xp: Any, chunks: list[Any], asked: _Asked) -> Any:
    counts: list[Any] = []
    largest: list[Any] = []
    sums: list[Parts] = []
    for chunk in chunks:
        v = asked.floats.widen(chunk)
        outside = None if asked.bounds is None else (v < asked.bounds[0]) | (v > asked.bounds[1])
        infs, nans = xp.isinf(v), xp.isnan(v)
        zeros = xp.zeros((chunk.shape[0],), dtype=xp.float64, device=chunk.device)
        counts.append([_count(xp, infs), _count(xp, nans), zeros if outside is None else _count(xp, outside)])
        if asked.what.sanitize:
            v = sanitized(xp, v, asked.dtype)
            infs = nans = None
        magnitudes = xp.abs(v)
        finite = magnitudes if infs is None else xp.where(infs | nans, xp.zeros_like(magnitudes), magnitudes)
        largest.append(xp.astype(xp.max(finite, axis=1), xp.float64))
        sums.append(block_sums(xp, _terms(xp, v, asked)))
    whole = tuple(parts[0] if len(sums) == 1 else xp.concat(parts, axis=1) for parts in zip(*sums, strict=True))
    # One block is its own sum, see ``tree_sum``.
    total = tuple(part[:, 0] for part in whole) if whole[0].shape[1] == 1 else tree_sum(xp, whole)
    infs, nans, outside = (sum(parts[1:], start=parts[0]) for parts in zip(*counts, strict=True))
    carries = total[1] if asked.carry else xp.zeros_like(total[0])
    most = largest[0] if len(largest) == 1 else xp.max(xp.stack(largest), axis=0)
    return xp.stack([total[0], most, infs, nans, outside, carries])


def _terms(xp: Any, v: Any, asked: _Asked) -> Parts:
    """What is summed: x², abs(x) or (abs(x)/unit)^power; with carries also what rounding took from it."""
    v = xp.astype(v, xp.float64, copy=False)
    for scale in asked.scales:
        v = v * scale
    power = asked.what.power
    if power == 2:
        return (v * v, lost_in_squaring(v)) if asked.carry else (v * v,)
    magnitudes = xp.abs(v)
    if power == 1:
        return (magnitudes, xp.zeros_like(magnitudes)) if asked.carry else (magnitudes,)
    return ((magnitudes if asked.units is None else magnitudes / asked.units) ** float(power),)


def _count(xp: Any, mask: Any) -> Any:
    """How many in each row. In float64, whose sums of ones are exact in any order."""
    return xp.sum(xp.astype(mask, xp.float64), axis=1)


def sanitized(xp: Any, v: Any, dtype: DType) -> Any:
    """NaN becomes 0, ±inf becomes ± the largest finite value of the storage type."""
    top = xp.full((), dtype.largest, dtype=v.dtype, device=v.device)
    v = xp.where(xp.isnan(v), xp.zeros_like(v), v)
    v = xp.where(v > top, top, v)
    return xp.where(v < -top, -top, v)


def column(xp: Any, values: FloatArray | np.ndarray[Any, Any], kind: Any, like: Any) -> Any:
    """A number for each row, or one for all of them: then nothing has to be sent to the device."""
    if (values == values[0]).all():
        return float(values[0])
    return xp.asarray(values[:, None], dtype=kind, device=like.device)
