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
    DTYPES,
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
    blocks, used, width = _extent(v.size)
    padded = np.zeros(blocks * used * LANES)
    padded[: v.size] = v
    rows = padded.reshape(blocks, used, LANES)
    lanes = rows[:, 0]
    for r in range(1, used):
        lanes = lanes + rows[:, r]
    while width:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    return lanes[:, 0]


def _extent(size: int) -> tuple[int, int, int]:
    """Blocks, the rows of each, and half of the lanes that are folded.

    A short vector's block ends a row of zeros after its last element, and is folded from where its lanes are no
    zeros: that row has made -0 of the elements 0, and then zeros change nothing.
    """
    rows = min(ROWS, -(-size // LANES) + 1)
    return max(1, -(-size // BLOCK)), rows, min(LANES, 1 << max(0, size - 1).bit_length()) // 2


def tree_sum(v: FloatArray) -> float:
    """The sum of a float64 vector, in the one order that every backend keeps."""
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            v = block_sums(v)
            if v.size == 1:
                return float(v[0])


# ---- the sum, with what rounding takes from it ---------------------------------------------------
# For float64, whose squares and sums are rounded. The same tree, over pairs (sum, carry).


def two_sum(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``a + b`` rounded, and what rounding took from it, exactly (Knuth, TAOCP 2, 4.2.2 theorem B)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``a · b`` rounded, and what rounding took from it, exactly (Dekker 1971), without fused operations."""
    p = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two numbers of 26 bits whose sum is ``a`` (Veltkamp's splitting)."""
    t = a * 134217729.0  # 2^27 + 1
    high = t - (t - a)
    return high, a - high


def add_pairs(a: tuple[FloatArray, FloatArray], b: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """The sum of two (sum, carry) pairs. The first component is what plain addition gives."""
    s, error = two_sum(a[0], b[0])
    return s, (a[1] + b[1]) + error


def block_sums_carried(v: FloatArray, carry: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``block_sums``, with a carry for each element and each block."""
    blocks, used, width = _extent(v.size)
    padded = np.zeros((2, blocks * used * LANES))
    padded[0, : v.size], padded[1, : v.size] = v, carry
    rows = padded.reshape(2, blocks, used, LANES)
    lanes = rows[0, :, 0], rows[1, :, 0]
    for r in range(1, used):
        lanes = add_pairs(lanes, (rows[0, :, r], rows[1, :, r]))
    while width:
        left = lanes[0][:, :width], lanes[1][:, :width]
        right = lanes[0][:, width : 2 * width], lanes[1][:, width : 2 * width]
        lanes = add_pairs(left, right)
        width //= 2
    return lanes[0][:, 0], lanes[1][:, 0]


def tree_sum_carried(v: FloatArray, carry: FloatArray) -> tuple[float, float]:
    """``tree_sum``, and the carry of the whole."""
    while True:
        v, carry = block_sums_carried(v, carry)
        if v.size == 1:
            return float(v[0]), float(carry[0])


# ---- the storage types --------------------------------------------------------------------------


def widen(x: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """Stored values as float32 (float64 for float64), exactly."""
    if dtype is FLOAT64:
        return x
    if dtype is BFLOAT16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return _VALUES[dtype][x] if dtype.coded else x.astype(np.float32)


def narrow(y: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """Float32 (float64 for float64) values as stored ones, rounded to nearest, ties to even."""
    if not dtype.coded:
        return y.astype(dtype.view)
    if dtype is not BFLOAT16:
        return _codes(y, dtype)
    bits = y.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) & 0x8000 | 0x7FC0  # rounding a NaN's payload could carry into an infinity
    return np.where(np.isnan(y), quiet_nan, rounded).astype(np.uint16)


def _codes(y: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """The bits of float8 values: sign, exponent, fraction.

    A magnitude is ``steps · 2^(exponent - p)``, ``steps`` an integer of p bits. That rounding up to
    p + 1 bits is the next exponent, and that subnormals have no leading bit, comes out of one sum.
    """
    p, lowest, top = _shape(dtype)
    magnitude = np.where(np.isfinite(y), np.abs(y), np.float32(0)).astype(np.float64)
    exponent = np.frexp(np.maximum(magnitude, 2.0 ** (lowest - 1)))[1]
    steps = np.rint(np.ldexp(magnitude, p - exponent)).astype(np.int64)
    code = np.minimum(((exponent - lowest) << (p - 1)) + steps, top + 1)
    code = np.where(np.isinf(y), top + 1, np.where(np.isnan(y), _QUIET_NAN[dtype], code))
    signed: npt.NDArray[np.uint8] = (code | np.signbit(y) << 7).astype(np.uint8)
    return signed


def _shape(dtype: DType) -> tuple[int, int, int]:
    """Bits of a significand, the exponent e of the subnormals (all are < 2^e), and the largest finite code."""
    p = 1 - int(np.frexp(dtype.roundoff)[1])
    lowest = int(np.frexp(dtype.smallest)[1]) - 1 + p
    fraction, exponent = np.frexp(dtype.largest)
    return p, lowest, ((int(exponent) - lowest) << (p - 1)) + int(fraction * 2**p)


def _values(dtype: DType) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes of a float8 type."""
    p, lowest, top = _shape(dtype)
    code = np.arange(128)
    field, fraction = code >> (p - 1), code & ((1 << (p - 1)) - 1)
    steps = np.where(field > 0, fraction + (1 << (p - 1)), fraction)
    values = np.ldexp(steps.astype(np.float32), np.maximum(field, 1) - 1 + lowest - p)
    values[top + 1 :] = np.nan
    if dtype.has_infinity:
        values[top + 1] = np.inf
    return np.concatenate([values, -values])


_VALUES = {dtype: _values(dtype) for dtype in DTYPES.values() if dtype.itemsize == 1}
_QUIET_NAN = {dtype: 0x7E if dtype.has_infinity else 0x7F for dtype in _VALUES}


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


def lost_in_squaring(x: FloatArray, power: float, exponent: int) -> FloatArray:
    """What rounding took from each of the ``terms``: from the squares; magnitudes are exact."""
    v = np.ldexp(x, -exponent) if exponent else x
    return two_product(v, v)[1] if power == 2 else np.zeros_like(v)


def measure_segment(x: npt.NDArray[Any], dtype: DType, what: What, segment: int, found: Measurements) -> None:
    """Fill in one segment's entry of ``found``."""
    exponent = 0 if what.exponents is None else int(what.exponents[segment])
    unit = 1.0 if what.units is None else float(what.units[segment]) or 1.0
    carried = what.carry and dtype is FLOAT64
    sums, carries = [], []
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
        summands = terms(v, what.power, exponent, unit)
        sums.append(block_sums(summands))
        if carried:
            carries.append(block_sums_carried(summands, lost_in_squaring(v, what.power, exponent))[1])
    if sums:
        found.sums[segment] = tree_sum(np.concatenate(sums))
    if carries:
        found.carries[segment] = tree_sum_carried(np.concatenate(sums), np.concatenate(carries))[1]


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
    projections = "gradclip_core.reference_forms:PASSES"
    optimizers = "gradclip_core.optim.reference:UPDATES_IN_NUMPY"

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Host memory of all storage types, on little-endian machines."""
        reasons = []
        if foreign := sorted(request.devices - {"cpu"}):
            reasons.append(f"it reads host memory, and these arrays are on {', '.join(foreign)}")
        if unknown := sorted(request.dtypes - set(DTYPES)):
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
