"""The two passes over gradient memory, as the core asks backends for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from gradclip_core import registry
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.express import Fleet, in_units
from gradclip_core.arrays.layout import Flat, array_buffer, dense_buffer, flatten_memory, strided
from gradclip_core.device import DeviceBackend
from gradclip_core.norms import Measured, rescaling
from gradclip_core.plan import Segments
from gradclip_core.protocol import FLOAT64, LEAVE, Actions, Backend, Buffer, DType, FloatArray, Manifest, Request, What

Axes = Sequence[tuple[int, ...] | None]


class Flats(Sequence[Flat]):
    """All arrays as a backend reads them, and their buffers alone."""

    def __init__(self, flats: list[Flat] | Manifest) -> None:
        self.manifest = flats if isinstance(flats, Manifest) else None
        self._flats = [] if isinstance(flats, Manifest) else flats
        self.buffers: Sequence[Buffer] = self.manifest or [flat.buffer for flat in self._flats]

    def __len__(self) -> int:
        return len(self.buffers)

    @overload
    def __getitem__(self, i: int) -> Flat: ...
    @overload
    def __getitem__(self, i: slice) -> list[Flat]: ...
    def __getitem__(self, i: int | slice) -> Flat | list[Flat]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        return self._flats[i] if self.manifest is None else Flat(self.manifest[i])


def readable(backend: Backend, docked: Docked, axes: tuple[int, ...] | None = None) -> Buffer:
    """The array for a read pass: its own memory, or a packed copy, made where the array is."""
    if docked.device != "cpu" and isinstance(backend, DeviceBackend):
        return dense_buffer(docked, axes) or backend.pack(strided(docked, axes))
    return flattened(backend, docked, axes).buffer


def flattened(backend: Backend, docked: Docked, axes: tuple[int, ...] | None = None) -> Flat:
    """The array for both passes of a backend whose decisions are the host's."""
    return Flat(array_buffer(docked, axes)) if _by_array(backend, docked) else flatten_memory(docked, axes)


def _by_array(backend: Backend, docked: Docked) -> bool:
    """Whether the backend works through the array itself, see ``Buffer``."""
    return docked.device != "cpu" and getattr(backend, "takes_arrays", False)


def flatten_all(backend: Backend, arrays: Sequence[Docked], axes: Axes) -> Flats:
    """All arrays for both passes, an array at a time or as the one table that they came in by."""
    table = in_units(arrays, axes)
    if table is not None:
        return Flats(table)
    return Flats([flattened(backend, docked, reduced) for docked, reduced in zip(arrays, axes, strict=True)])


def choose(name: str | None, buffers: Sequence[Buffer] | Sequence[Docked]) -> tuple[Backend, dict[str, list[str]]]:
    """The backend for this memory, and who was passed over."""
    if isinstance(buffers, Fleet):
        dtypes = frozenset(dtype.name for dtype in buffers.manifest.distinct)
        return registry.select(name, Request(frozenset({"cpu"}), dtypes))
    devices = frozenset(buffer.device for buffer in buffers) or frozenset({"cpu"})
    dtypes = frozenset(buffer.dtype.name for buffer in buffers)
    kinds = {type(docked.array) for docked in buffers if isinstance(docked, Docked) and docked.device != "cpu"}
    return registry.select(name, Request(devices, dtypes, frozenset(k.__module__.partition(".")[0] for k in kinds)))


def _dtypes(buffers: Sequence[Buffer]) -> Sequence[DType]:
    """The storage types that there are."""
    if isinstance(buffers, Manifest):
        return buffers.distinct
    return list({id(buffer.dtype): buffer.dtype for buffer in buffers}.values())


def measure(
    backend: Backend,
    buffers: Sequence[Buffer],
    ord: float,
    *,
    sanitize: bool = False,
    bounds: tuple[FloatArray, FloatArray] | None = None,
) -> Measured:
    """One read pass; a second for a general ``ord``, and for float64 beyond the range of its squares."""
    power = ord if ord in (1, 2) else 2.0
    found = backend.measure(buffers, What(power, sanitize=sanitize, bounds=bounds))
    exponents = np.zeros(found.sums.size, np.int64)
    if ord not in (1, 2, math.inf):
        units = found.largest
        found = backend.measure(buffers, What(ord, units=units, sanitize=sanitize, bounds=bounds))
        return Measured(found, ord, exponents, units, sanitize)
    narrow = FLOAT64 not in _dtypes(buffers)
    again = None if narrow else rescaling(found, Segments.of(buffers).float64, ord)
    if again is not None:
        exponents = again
        found = backend.measure(buffers, What(power, exponents=exponents, sanitize=sanitize, bounds=bounds))
    return Measured(found, ord, exponents, np.ones(found.sums.size), sanitize)


def measure_carries(backend: Backend, buffers: Sequence[Buffer], measured: Measured, *, sanitize: bool) -> Measured:
    """One more read pass, for what rounding took from the sums of float64 arrays."""
    what = What(measured.ord, exponents=measured.exponents, sanitize=sanitize, carry=True)
    found = backend.measure(buffers, what)
    return Measured(found, measured.ord, measured.exponents, measured.units, sanitize, carried=True)


def write_in_place(backend: Backend, arrays: Sequence[Docked], flats: Flats, actions: Actions) -> None:
    """Write the arrays over themselves; no pass is made where every segment is left as it is."""
    if not (actions.op != LEAVE).any():
        return
    backend.apply(flats.buffers, flats.buffers, actions)
    report_written(arrays, flats, actions.op)


def report_written(arrays: Sequence[Docked], flats: Flats, op: npt.NDArray[np.uint8]) -> None:
    """Packed copies go where they belong, and each framework is told of its arrays that were not left alone."""
    changed: npt.NDArray[np.bool_] = op != LEAVE
    manifest = flats.manifest
    rows = np.array([buffer.rows for buffer in flats.buffers], np.int64) if manifest is None else manifest.rows
    if rows is not None:  # from segments to arrays
        ends, seen = np.cumsum(rows), np.concatenate([[0], np.cumsum(changed)])
        changed = seen[ends] > seen[ends - rows]
    if isinstance(arrays, Fleet) and manifest is not None:
        arrays.door.after_write([arrays.leaves[i] for i in np.flatnonzero(changed).tolist()])
        return
    written = []
    for i in np.flatnonzero(changed).tolist():
        flats[i].unpack(arrays[i])
        written.append(arrays[i])
    report_writes(written)


def write_new(
    backend: Backend,
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Flats,
    axes: Axes,
    actions: Actions,
) -> None:
    """Write into ``targets``; ``arrays`` stay as they are."""
    if flats.manifest is not None and (table := in_units(targets, axes)) is not None:
        backend.apply(flats.manifest, table, actions)
        return
    sources: list[Flat] = []
    sinks: list[Buffer] = []
    for docked, target, flat, reduced in zip(arrays, targets, flats, axes, strict=True):
        if _by_array(backend, docked):
            sources.append(flat)
            sinks.append(array_buffer(target, reduced, flat.buffer.order))
        elif flat.packed is None and (docked.strides == target.strides or docked.contiguous):
            sources.append(flat)
            sinks.append(flatten_memory(target, reduced).buffer)
        else:
            packed = flat if flat.packed is not None else flatten_memory(docked, reduced, pack=True)
            sources.append(packed)
            sinks.append(packed.buffer)
    backend.apply([flat.buffer for flat in sources], sinks, actions)
    for target, flat in zip(targets, sources, strict=True):
        flat.unpack(target)


def report_writes(written: Sequence[Docked]) -> None:
    """Tell each framework which of its arrays were written."""
    for door in {id(docked.door): docked.door for docked in written}.values():
        door.after_write([docked.array for docked in written if docked.door is door])
    for docked in written:
        if docked.holder is not None:
            docked.holder.after_write(docked.array)
