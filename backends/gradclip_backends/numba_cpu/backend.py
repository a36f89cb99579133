"""The backend: tables for the kernels, a kernel call per dtype, blocks shared among threads."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.numba_cpu import carries, clamp_kernels, exchange, kernels, pool
from gradclip_backends.numba_cpu.elements import TAGS, code_tag
from gradclip_backends.numba_cpu.folds import LANES, LINE
from gradclip_core.protocol import (
    DTYPES,
    FLOAT64,
    Actions,
    Buffer,
    DType,
    FloatArray,
    IntArray,
    Manifest,
    Measurements,
    Request,
    What,
    by_rows,
    segments,
)

_NONE: tuple[Any, ...] = (np.zeros(1, np.int64), np.ones(1), np.full(1, -math.inf), np.full(1, math.inf))
"""No exponents, units and bounds, for all segments alike."""
_CODES = {name: code for code, name in enumerate(DTYPES)}


@dataclass(slots=True)
class Table:
    """The segments of one dtype, as the kernels read them."""

    dtype: DType
    index: IntArray
    """Their places among all segments."""
    pointers: npt.NDArray[np.uint64]
    lengths: IntArray
    first: IntArray
    """The first block of each segment, and behind the last one the number of blocks."""

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries of this table's segments, out of those of all segments."""
        return values if values.size == self.index.size else values[self.index]

    @property
    def blocks(self) -> int:
        """Blocks of all segments."""
        return int(self.first[-1])

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        return int(self.lengths.sum()) * self.dtype.itemsize


def tables(buffers: Sequence[Buffer]) -> list[Table]:
    """The buffers' segments, a table for each dtype."""
    if isinstance(buffers, Manifest):
        return _split(buffers.pointers, buffers.lengths, buffers.codes, buffers.distinct)
    rows = np.array([buffer.rows for buffer in buffers], np.int64)
    pointers = np.array([buffer.pointer for buffer in buffers], np.uint64)
    lengths = np.array([buffer.length for buffer in buffers], np.int64)
    codes = np.array([_CODES[buffer.dtype.name] for buffer in buffers], np.int64)
    if (rows != 1).any():
        pointers, lengths, codes = by_rows(pointers, lengths, codes, rows)
    there = {buffer.dtype.name for buffer in buffers if buffer.rows}
    return _split(pointers, lengths, codes, [dtype for name, dtype in DTYPES.items() if name in there])


def _split(
    pointers: npt.NDArray[np.uint64], lengths: IntArray, codes: IntArray, dtypes: Sequence[DType]
) -> list[Table]:
    if len(dtypes) == 1:
        return [_table(dtypes[0], np.arange(codes.size), pointers, lengths)]
    tables = []
    for dtype in dtypes:
        index = np.flatnonzero(codes == _CODES[dtype.name])
        tables.append(_table(dtype, index, pointers[index], lengths[index]))
    return tables


def _table(dtype: DType, index: IntArray, pointers: npt.NDArray[np.uint64], lengths: IntArray) -> Table:
    first = np.zeros(index.size + 1, np.int64)
    np.cumsum((lengths + (kernels.BLOCK - 1)) // kernels.BLOCK, out=first[1:])
    return Table(dtype, index, pointers, lengths, first)


class NumbaCpuBackend:
    """Serves host memory of all storage types, on all processors."""

    name = "numba_cpu"
    projections = "gradclip_backends.numba_cpu.passes:PASSES"
    optimizers = "gradclip_backends.numba_cpu.optim:UPDATES"

    def not_supported_reasons(self, request: Request) -> list[str]:
        """See ``Backend.not_supported_reasons``."""
        reasons = []
        if foreign := sorted(request.devices - {"cpu"}):
            reasons.append(f"it reads host memory, and these arrays are on {', '.join(foreign)}")
        if unknown := sorted(request.dtypes - set(DTYPES)):
            reasons.append(f"it has no {', '.join(unknown)}")
        if sys.byteorder != "little":
            reasons.append("this machine is big-endian")
        try:
            pool.threads()
        except ValueError as error:
            reasons.append(str(error))
        return reasons

    @staticmethod
    def read_arrays(leaves: Sequence[Any], *, only_read: bool = False) -> Manifest | None:
        """See ``gradclip_core.arrays.express``."""
        return exchange.read_arrays(leaves, only_read=only_read)

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """See ``Backend.measure``."""
        total = Measurements.empty(segments(buffers))
        for table in tables(buffers):
            self._measure_table(table, what, total)
        return total

    def _measure_table(self, table: Table, what: What, total: Measurements) -> None:
        index, dtype = table.index, table.dtype
        exponents, units, lows, highs = _NONE
        if what.exponents is not None or what.units is not None or what.bounds is not None or what.carry:
            exponents, units, lows, highs = (np.repeat(value, index.size) for value in _NONE)
        if what.exponents is not None:
            exponents = what.exponents[index]
        if what.units is not None:
            units = np.where(what.units[index] == 0, 1.0, what.units[index])
        if what.bounds is not None:
            lows, highs = (bound[index] for bound in what.bounds)
        careful = what.bounds is not None or bool(exponents.any()) or what.power not in (1, 2)
        absolute = True if what.power == 1 else None
        tag, zero, infinity = _tags(dtype)
        sums, found = np.empty(table.blocks), np.zeros((table.blocks, 4))

        def work(start: int, stop: int) -> None:
            lanes, codes = _scratch.arrays(zero.dtype)
            kernels.measure_range(
                tag, dtype.itemsize, zero, infinity, dtype.largest, table.pointers, table.lengths, table.first,
                absolute, float(what.power), exponents, units, what.sanitize, lows, highs, careful, start, stop,
                lanes, codes, sums, found,
            )  # fmt: skip

        with np.errstate(all="ignore"):  # for the kernels as plain Python
            if table.blocks:
                pool.run(work, table.blocks, table.bytes)
            _finish(table, sums, found, total)
            if what.carry and dtype is FLOAT64:
                total.carries[index] = self._carries(table, what, exponents, sums)

    @staticmethod
    def _carries(table: Table, what: What, exponents: IntArray, sums: FloatArray) -> FloatArray:
        """What rounding took from each segment's sum; a pass of its own, over what is clipped alone."""
        tag, of_blocks, out = TAGS[FLOAT64], np.empty(table.blocks), np.zeros(table.index.size)

        def work(start: int, stop: int) -> None:
            carries.carry_range(
                tag, FLOAT64.itemsize, FLOAT64.largest, table.pointers, table.lengths, table.first,
                float(what.power), exponents, what.sanitize, start, stop, of_blocks,
            )  # fmt: skip

        if table.blocks:
            pool.run(work, table.blocks, table.bytes)
        carries.finish_carries(table.first, sums, of_blocks, out)
        return out

    def clamp(
        self, buffers: Sequence[Buffer], low: FloatArray, high: FloatArray, coarse: np.float32, fine: np.float32
    ) -> tuple[Measurements, FloatArray]:
        """See ``gradclip_core.one_pass.Clamps``."""
        total, after = Measurements.empty(segments(buffers)), np.zeros(segments(buffers))
        for table in tables(buffers):
            self._clamp_table(table, low, high, coarse, fine, total, after)
        return total, after

    @staticmethod
    def _clamp_table(
        table: Table,
        low: FloatArray,
        high: FloatArray,
        coarse: np.float32,
        fine: np.float32,
        total: Measurements,
        after: FloatArray,
    ) -> None:
        dtype, index = table.dtype, table.index
        tag, zero, infinity = _tags(dtype)
        lows, highs = low[index].astype(np.float32), high[index].astype(np.float32)
        symmetric = bool((lows == -highs).all())
        sums, written, found = np.empty(table.blocks), np.empty(table.blocks), np.zeros((table.blocks, 4))

        def work(start: int, stop: int) -> None:
            lanes, codes = _scratch.arrays(zero.dtype)
            clamp_kernels.clamp_range(
                tag, dtype.itemsize, zero, infinity, np.float32(dtype.largest), table.pointers, table.lengths,
                table.first, coarse, fine, lows, highs, symmetric, start, stop,
                lanes, _scratch.later, codes, sums, found, written,
            )  # fmt: skip

        with np.errstate(all="ignore"):
            if table.blocks:
                pool.run(work, table.blocks, table.bytes)
            _finish(table, sums, found, total)
            after[index] = _finish(table, written, found, Measurements.empty(after.size))

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """See ``Backend.apply``."""
        sources = tables(buffers)
        for source, target in zip(sources, sources if out is buffers else tables(out), strict=True):
            self._apply_table(source, target, actions)

    def _apply_table(self, source: Table, target: Table, actions: Actions) -> None:
        dtype = source.dtype
        tag: Any = TAGS[dtype]
        wide = np.float64 if dtype is FLOAT64 else np.float32
        factors: npt.NDArray[Any]
        fines: npt.NDArray[Any]
        if dtype is FLOAT64:
            factors, fines = source.of(actions.factor), np.ones(source.index.size)
        else:
            factors, fines = source.of(actions.coarse), source.of(actions.fine)
        lows, highs = source.of(actions.low).astype(wide), source.of(actions.high).astype(wide)
        ops, top = source.of(actions.op), wide(dtype.largest)

        def work(start: int, stop: int) -> None:
            kernels.apply_range(
                tag, dtype.itemsize, source.pointers, target.pointers, source.lengths, source.first,
                ops, factors, fines, lows, highs, top, actions.sanitize, start, stop,
            )  # fmt: skip

        if source.blocks:
            with np.errstate(all="ignore"):
                pool.run(work, source.blocks, source.bytes, backwards=True)


def _finish(table: Table, sums: FloatArray, found: FloatArray, total: Measurements) -> FloatArray:
    """From blocks to segments. Returns the sums."""
    kernels.finish_segments(
        table.first, sums, found, table.index, total.sums, total.largest, total.infs, total.nans, total.outside
    )
    return table.of(total.sums)


def _tags(dtype: DType) -> tuple[Any, Any, Any]:
    """A zero of its elements, one of the integers of their width, and the code of what is no longer finite."""
    tag = TAGS[dtype]
    zero = code_tag(tag)
    return tag, zero, zero.dtype.type(_FIRST_BEYOND[dtype.name])


class _Scratch(threading.local):
    """Memory that the kernels of a thread add in: the lanes, others for a second sum, a line for the largest codes.

    All start where a cache line does: a vector across two lines is twice as slow to store and load again.
    """

    def __init__(self) -> None:
        memory = np.empty(2 * LANES * 8 + 2 * LINE, np.uint8)
        aligned = memory[-memory.ctypes.data % LINE :]
        self._lanes, self.later = aligned[: 2 * LANES * 8].view(np.float64).reshape(2, LANES)
        self._line = aligned[2 * LANES * 8 :][:LINE]

    def arrays(self, code: np.dtype[Any]) -> tuple[FloatArray, npt.NDArray[Any]]:
        """256 lanes, and a line of ``code``."""
        return self._lanes, self._line.view(code)


_scratch = _Scratch()

_FIRST_BEYOND = {
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float32": 0x7F800000,
    "float64": 0x7FF0 << 48,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7C,
}
"""The bits after those of the largest finite value: +inf, or NaN where there is none."""


BACKEND = NumbaCpuBackend()
