"""The reference: the NumPy backend, and the specification of every other.

Shaped like docs/numerics.md, which derives the error bounds. A backend that differs from this
file in one bit is wrong. It imports NumPy and the protocol, so that it can share no bug with
what it judges.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import (
    BFLOAT16,
    FLOAT64,
    LEAVE,
    ZERO,
    Actions,
    Buffer,
    DType,
    FloatArray,
    Measurements,
    Request,
    What,
)

ROWS, LANES = 16, 256
BLOCK = ROWS * LANES
# The memory is read a few blocks at a time, so that the float64 copies stay in cache. The result
# does not depend on it: a block's sum depends on its own elements alone.
_CHUNK = 64 * BLOCK


# ---- the sum ------------------------------------------------------------------------------------


def block_sums(v: FloatArray) -> FloatArray:
    """One number per block of 4096: the 16 rows in order, then the 256 lanes folded in halves."""
    blocks = max(1, -(-v.size // BLOCK))
    padded = np.zeros(blocks * BLOCK)
    padded[: v.size] = v
    rows = padded.reshape(blocks, ROWS, LANES)
    lanes = rows[:, 0]
    for r in range(1, ROWS):
        lanes = lanes + rows[:, r]
    width = LANES // 2
    while width:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    return lanes[:, 0]


def tree_sum(v: FloatArray) -> float:
    """The sum of a float64 vector, in the one order that every backend keeps."""
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            v = block_sums(v)
            if v.size == 1:
                return float(v[0])


# ---- the storage types --------------------------------------------------------------------------


def widen(x: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """Stored values as float32 (float64 for float64), exactly."""
    if dtype is FLOAT64:
        return x
    if dtype is BFLOAT16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def narrow(y: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """Float32 (float64 for float64) values as stored ones, rounded to nearest, ties to even."""
    if dtype is not BFLOAT16:
        return y.astype(dtype.view)
    bits = y.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) & 0x8000 | 0x7FC0  # rounding a NaN's payload could carry into an infinity
    return np.where(np.isnan(y), quiet_nan, rounded).astype(np.uint16)


def sanitized(x: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """NaN becomes 0, ±inf becomes ± the largest finite value of the storage type."""
    return np.clip(np.where(np.isnan(x), x.dtype.type(0), x), -dtype.largest, dtype.largest)


# ---- measure ------------------------------------------------------------------------------------


def terms(x: npt.NDArray[Any], power: float, exponent: int, unit: float) -> FloatArray:
    """What is summed: x², abs(x) or (abs(x)/unit)^power, in float64, of x·2^-exponent."""
    v: FloatArray = x.astype(np.float64)
    if exponent:
        v = np.ldexp(v, -exponent)
    if power == 2:
        return v * v
    magnitudes: FloatArray = np.abs(v)
    return magnitudes if power == 1 else (magnitudes / unit) ** power


def measure_segment(x: npt.NDArray[Any], dtype: DType, what: What, segment: int, found: Measurements) -> None:
    """Fill in one segment's entry of ``found``."""
    exponent = 0 if what.exponents is None else int(what.exponents[segment])
    unit = 1.0 if what.units is None else float(what.units[segment]) or 1.0
    sums = []
    for start in range(0, x.size, _CHUNK):
        v = widen(x[start : start + _CHUNK], dtype)
        found.infs[segment] += np.count_nonzero(np.isinf(v))
        found.nans[segment] += np.count_nonzero(np.isnan(v))
        if what.bounds is not None:
            low, high = (float(bound[segment]) for bound in what.bounds)
            found.outside[segment] += np.count_nonzero((v < low) | (v > high))
        if what.sanitize:
            v = sanitized(v, dtype)
        largest = float(np.max(np.abs(v), initial=0.0, where=np.isfinite(v)))
        found.largest[segment] = max(found.largest[segment], largest)
        sums.append(block_sums(terms(v, what.power, exponent, unit)))
    if sums:
        level = np.concatenate(sums)
        found.sums[segment] = level[0] if level.size == 1 else tree_sum(level)


# ---- apply --------------------------------------------------------------------------------------


def apply_segment(x: npt.NDArray[Any], out: npt.NDArray[Any], dtype: DType, actions: Actions, segment: int) -> None:
    """Write one segment."""
    op = actions.op[segment]
    if op == LEAVE:
        if out.ctypes.data != x.ctypes.data:
            out[:] = x
        return
    if op == ZERO:
        out[:] = 0
        return
    low, high = actions.low[segment], actions.high[segment]
    for start in range(0, x.size, _CHUNK):
        here = slice(start, start + _CHUNK)
        y = widen(x[here], dtype)
        if actions.sanitize:
            y = sanitized(y, dtype)
        factors = (actions.factor,) if dtype is FLOAT64 else (actions.coarse, actions.fine)
        for multiplier in factors:
            y = y * multiplier[segment]
        # By assignment, not by minimum and maximum: NaN stays NaN, and so does the sign of a zero.
        y = np.where(y < low, y.dtype.type(low), y)
        y = np.where(y > high, y.dtype.type(high), y)
        out[here] = narrow(y, dtype)


# ---- the backend --------------------------------------------------------------------------------


def rows_of(buffers: Sequence[Buffer]) -> Iterator[tuple[npt.NDArray[Any], DType]]:
    """The segments, one by one."""
    for buffer in buffers:
        for row in buffer.as_numpy():
            yield row, buffer.dtype


class NumpyBackend:
    """Serves the host's memory, on every machine, in one thread."""

    name = "numpy"

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Host memory of the four storage types, on little-endian machines."""
        reasons = []
        if foreign := sorted(request.devices - {"cpu"}):
            reasons.append(f"it reads host memory, and these arrays are on {', '.join(foreign)}")
        if unknown := sorted(request.dtypes - {"float16", "bfloat16", "float32", "float64"}):
            reasons.append(f"it has no {', '.join(unknown)}")
        if sys.byteorder != "little":
            reasons.append("this machine is big-endian")
        return reasons

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """See ``Backend.measure``."""
        found = Measurements.empty(sum(buffer.rows for buffer in buffers))
        with np.errstate(all="ignore"):
            for segment, (row, dtype) in enumerate(rows_of(buffers)):
                measure_segment(row, dtype, what, segment, found)
        return found

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """See ``Backend.apply``."""
        pairs = zip(rows_of(buffers), rows_of(out), strict=True)
        with np.errstate(all="ignore"):
            for segment, ((row, dtype), (target, _)) in enumerate(pairs):
                apply_segment(row, target, dtype, actions, segment)


BACKEND = NumpyBackend()
