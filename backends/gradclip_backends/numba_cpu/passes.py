"""The projections' passes: tables for the kernels, blocks shared among threads. See ``gradclip_core.forms``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradclip_backends.numba_cpu import fit_kernels, form_kernels, pool, tally_kernels
from gradclip_backends.numba_cpu.backend import Table, tables
from gradclip_backends.numba_cpu.elements import TAGS
from gradclip_backends.numba_cpu.kernels import BLOCK
from gradclip_core.forms import BINS, FORMS, MOMENTS, Form, Gathered, Reading, Tally, from_keys
from gradclip_core.protocol import DTYPES, FLOAT64, Buffer, FloatArray, segments

_tally_range: Any = tally_kernels.tally_range
_gather_range: Any = tally_kernels.gather_range


class NumbaPasses:
    """See ``Passes``."""

    def map(
        self,
        buffers: Sequence[Buffer],
        out: Sequence[Buffer] | None,
        reading: Reading,
        form: Form,
        moments: Sequence[str],
        *,
        rounded: bool = True,
    ) -> FloatArray:
        """See ``Passes.map``."""
        found = np.zeros((len(moments), segments(buffers)))
        rows = np.repeat(np.arange(len(buffers)), [buffer.rows for buffer in buffers])
        for group in _alike(buffers, form.companions, out or ()):
            taken = np.zeros(len(buffers), np.bool_)
            taken[group] = True
            pick = np.flatnonzero(taken[rows])
            if not pick.size:  # arrays of no rows
                continue
            here = [buffers[i] for i in group]
            targets = None if out is None else [out[i] for i in group]
            self._map(here, targets, reading, form, group, pick, moments, rounded, found)
        return found

    @staticmethod
    def _map(
        buffers: list[Buffer],
        out: list[Buffer] | None,
        reading: Reading,
        form: Form,
        group: list[int],
        pick: Any,
        moments: Sequence[str],
        rounded: bool,
        found: FloatArray,
    ) -> None:
        (table,) = tables(buffers)
        dtype, none = table.dtype, np.zeros(0, np.uint64)
        targets, y_dtype = none, dtype
        if out is not None:
            (beneath,) = tables(out)
            targets, y_dtype = beneath.pointers, beneath.dtype
        a, b, c = form.a[pick], form.b[pick], form.c[pick]
        if form.kind == "fit" and out is not None and not moments and reading == Reading():
            _fit(table, beneath, a, b, c)
            return
        companions, w_dtype = none, FLOAT64
        if form.companions:
            (beside,) = tables([form.companions[i] for i in group])
            companions, w_dtype = beside.pointers, beside.dtype
        values, given = none, []
        if form.kind == "given":
            given = [np.ascontiguousarray(form.values[i], np.float64) for i in group]
            owned = [Buffer(v.ctypes.data, b.length, FLOAT64, b.rows) for v, b in zip(given, buffers, strict=True)]
            values = tables(owned)[0].pointers
        codes = np.array([list(MOMENTS).index(name) for name in moments], np.int64)
        kind = list(FORMS).index(form.kind)
        blocks = np.zeros((codes.size, table.blocks))

        def work(start: int, stop: int) -> None:
            form_kernels.map_range(
                TAGS[dtype], dtype.itemsize, dtype.largest,
                TAGS[w_dtype], w_dtype.itemsize, list(DTYPES).index(y_dtype.name), y_dtype.itemsize,
                table.pointers, targets, companions, values, table.lengths, table.first,
                reading.inverse, reading.exponent, reading.sanitize,
                kind, a, b, c, form.e, codes, rounded, start, stop, blocks,
            )  # fmt: skip

        result = np.tile(form_kernels.START[codes][:, None], (1, pick.size))
        with np.errstate(all="ignore"):  # for the kernels as plain Python
            if table.blocks:
                pool.run(work, table.blocks, table.bytes)
            form_kernels.finish_moments(table.first, codes, blocks, result)
        found[:, pick] = result
        del given  # its memory was read until here

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        """See ``Passes.tally``."""
        total, lock, kept = np.zeros((BINS, 3), np.int64), threading.Lock(), threading.local()
        every: list[Any] = []

        def bins() -> Any:
            if not hasattr(kept, "bins"):  # one histogram for each thread
                kept.bins = np.zeros((BINS, 3), np.int64)
                with lock:
                    every.append(kept.bins)
            return kept.bins

        def kernel(table: Table) -> Callable[[int, int], None]:
            def work(start: int, stop: int) -> None:
                ask: Any = (*_read(table, reading), signed, np.uint64(prefix), used)
                _tally_range(*ask, start, stop, bins())

            return work

        _over_all(buffers, kernel)
        for part in every:
            total += part
        return Tally(*(np.ascontiguousarray(column) for column in total.T))

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        """See ``Passes.gather``. In the order of memory within each dtype."""
        found: list[tuple[int, int, int, FloatArray, FloatArray]] = []
        ends = from_keys(np.array([low, high], np.uint64))
        ends = np.where(np.isnan(ends), [-np.inf, np.inf], ends)  # keys beyond the infinities

        def kernel(table: Table, number: int) -> Callable[[int, int], None]:
            ask: Any = (*_read(table, reading), signed, ends[0], ends[1])

            def work(start: int, stop: int) -> None:
                # Room for all of them, and one behind; pages that are not written to cost nothing.
                out = np.empty((stop - start) * BLOCK + 1)
                sums = np.empty(stop - start)
                count, above = _gather_range(*ask, start, stop, out, sums)
                found.append((number, start, above, out[:count].copy(), sums))

            return work

        for number, table in enumerate(tables(buffers)):
            if table.blocks:
                pool.run(kernel(table, number), table.blocks, table.bytes)
        found.sort(key=lambda part: part[:2])
        none = np.zeros(0)
        values, sums = (np.concatenate([none, *(part[column] for part in found)]) for column in (3, 4))
        return Gathered(values, sum(int(part[2]) for part in found), sums)


def _fit(source: Table, target: Table, factors: FloatArray, lows: FloatArray, highs: FloatArray) -> None:
    """Form "fit" where nothing but the result is wanted."""

    def work(start: int, stop: int) -> None:
        fit_kernels.fit_range(
            TAGS[source.dtype], source.dtype.itemsize, TAGS[target.dtype], target.dtype.itemsize,
            source.pointers, target.pointers, source.lengths, source.first, factors, lows, highs, start, stop,
        )  # fmt: skip

    if source.blocks:
        with np.errstate(all="ignore"):
            pool.run(work, source.blocks, source.bytes, backwards=True)


def _alike(buffers: Sequence[Buffer], companions: Sequence[Buffer], targets: Sequence[Buffer]) -> list[list[int]]:
    """The buffers by their dtype, their companion's and their target's: a kernel is compiled for one of each."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, buffer in enumerate(buffers):
        beside = (others[i].dtype.name for others in (companions, targets) if others)
        groups.setdefault((buffer.dtype.name, *beside), []).append(i)
    return list(groups.values())


def _read(table: Table, reading: Reading) -> Any:
    """What every kernel of ``tally_kernels`` reads by."""
    dtype = table.dtype
    return (
        TAGS[dtype], dtype.itemsize, dtype.largest, table.pointers, table.lengths, table.first,
        reading.inverse, reading.exponent, reading.sanitize,
    )  # fmt: skip


def _over_all(buffers: Sequence[Buffer], kernel: Callable[[Table], Callable[[int, int], None]]) -> None:
    for table in tables(buffers):
        if table.blocks:
            pool.run(kernel(table), table.blocks, table.bytes)


PASSES = NumbaPasses()
