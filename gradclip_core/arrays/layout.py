"""Strides: what is dense, what overlaps, and the packed copies of what is neither."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.docked import Docked
from gradclip_core.device import Strided
from gradclip_core.errors import BackendError
from gradclip_core.protocol import Buffer, host_view

# Elements are moved as integers or complex pairs of the right width: no conversion, any dtype.
_MOVED_AS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
    16: np.dtype(np.complex128),
}


def size(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    return math.prod(shape)


def is_dense(docked: Docked) -> bool:
    """Whether the elements fill one aligned stretch of memory, in any order of the axes."""
    if docked.contiguous:
        return docked.pointer % docked.dtype.itemsize == 0
    if docked.pointer % docked.dtype.itemsize:
        return False
    expected = docked.itemsize
    for stride, extent in sorted((s, n) for s, n in zip(docked.strides, docked.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= extent
    return True


def overlaps_itself(docked: Docked) -> bool:
    """Whether two indices may name the same memory (a stride of 0, a sliding window)."""
    if docked.contiguous or size(docked.shape) == 0:
        return False
    reach = docked.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(docked.strides, docked.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (extent - 1) + reach
    return False


def extent(docked: Docked) -> tuple[int, int]:
    """The first byte of the array's memory, and the one after its last."""
    if docked.contiguous:
        return docked.pointer, docked.pointer + docked.itemsize * size(docked.shape)
    spans = [s * (n - 1) for s, n in zip(docked.strides, docked.shape, strict=True)]
    low = docked.pointer + sum(span for span in spans if span < 0)
    high = docked.pointer + sum(span for span in spans if span > 0) + docked.itemsize
    return low, high


def view(docked: Docked) -> npt.NDArray[Any]:
    """The elements as a strided NumPy array of opaque items. Host memory only."""
    item = _MOVED_AS[docked.itemsize]
    if size(docked.shape) == 0:
        return np.empty(docked.shape, item)
    return host_view(docked.pointer, docked.shape, item, (docked.array, docked.owner), docked.strides)


def share_elements(a: Docked, b: Docked) -> bool:
    """Whether two arrays have an element's memory in common, decided exactly where that is feasible."""
    try:
        return np.shares_memory(view(a), view(b), max_work=100_000)  # type: ignore[arg-type]  # any int is meant: numpy's own stub is too narrow
    except np.exceptions.TooHardError:
        return True


def overlapping_pair(arrays: list[Docked]) -> tuple[int, int] | None:
    """Indices of two arrays with memory in common, if there are any. No array is in the list twice."""
    spans = [(*extent(docked), i) for i, docked in enumerate(arrays) if size(docked.shape)]
    spans.sort()
    if all(a[1] <= b[0] for a, b in pairwise(spans)):  # as good as always
        return None
    open_spans: list[tuple[int, int]] = []  # (end, index) of the arrays that reach past where we are
    for start, end, i in spans:
        open_spans = [(e, j) for e, j in open_spans if e > start]
        for _, j in open_spans:
            if share_elements(arrays[j], arrays[i]):
                return min(i, j), max(i, j)
        open_spans.append((end, i))
    return None


@dataclass(slots=True)
class Flat:
    """An array as a backend reads it: its own memory, or a packed copy of it.

    ``packed`` is None where ``buffer`` is the array's own memory; otherwise it has the axes of
    ``axes_order`` of the array, in C order, and ``unpack`` puts it where it belongs.
    """

    buffer: Buffer
    packed: npt.NDArray[Any] | None = None
    axes_order: tuple[int, ...] = ()

    def unpack(self, target: Docked) -> None:
        """Copy the packed elements into ``target``, an array of the same shape."""
        if self.packed is not None:
            view(target).transpose(self.axes_order)[...] = self.packed


def dense_buffer(docked: Docked, axes: tuple[int, ...] | None) -> Buffer | None:
    """The array's own memory as one segment, or with ``axes`` as a segment per unit. None: it has to be packed.

    Dense arrays are taken in memory order; a unit's elements are taken in C order of ``axes``.
    """
    length, rows, order = _segments(docked, axes)
    if rows * length:
        if axes is None or len(axes) == len(docked.shape):
            fits = is_dense(docked)
        elif docked.pointer % docked.dtype.itemsize:
            fits = False
        elif docked.contiguous and order == tuple(range(len(order))):  # as good as always, and at once
            fits = True
        else:
            fits = bool(view(docked).transpose(order).flags.c_contiguous)
        if not fits:
            return None
    return _buffer(docked, length, rows)


def strided(docked: Docked, axes: tuple[int, ...] | None) -> Strided:
    """The array as memory on a device that has to be packed, in the order in which its segments are summed."""
    length, rows, order = _segments(docked, axes)
    shape, strides = (tuple(values[axis] for axis in order) for values in (docked.shape, docked.strides))
    return Strided(docked.pointer, shape, strides, docked.itemsize, _buffer(docked, length, rows))


def flatten_memory(docked: Docked, axes: tuple[int, ...] | None = None, *, pack: bool = False) -> Flat:
    """The array in host memory as a backend reads it. ``pack`` asks for a packed copy in any case."""
    buffer = None if pack else dense_buffer(docked, axes)
    if buffer is not None:
        return Flat(buffer)
    if docked.device != "cpu":
        raise BackendError(
            f"an array on {docked.device}",
            "it is strided, and the backend that serves it takes dense memory alone",
            "Pass a contiguous copy, or leave backend=None",
        )
    length, rows, order = _segments(docked, axes)
    packed = view(docked).transpose(order).copy(order="C")
    at = Buffer(packed.ctypes.data, length, docked.dtype, rows, docked.device, packed, shared=_shared(docked))
    return Flat(at, packed, order)


def array_buffer(docked: Docked, axes: tuple[int, ...] | None, order: tuple[int, ...] | None = None) -> Buffer:
    """The array for a backend that works through the array itself, whatever its strides.

    Its elements come in the order of ``flatten_memory``, or in another array's ``order``.
    """
    itemsize = docked.dtype.itemsize
    if docked.pointer % itemsize or any(stride % itemsize for stride in docked.strides):
        raise BackendError(f"an array on {docked.device}", "it is not aligned to its dtype", "Pass a contiguous copy")
    length, rows, _ = _segments(docked, axes)
    if order is None:
        order = lying(docked, axes)
    expected, dense = docked.itemsize, True
    for axis in reversed(order):
        if docked.shape[axis] != 1:
            dense = dense and docked.strides[axis] == expected
            expected *= docked.shape[axis]
    return replace(_buffer(docked, length, rows), order=order, dense=dense)


def lying(docked: Docked, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes in the order in which ``flatten_memory`` has the elements: memory order where that is dense."""
    _, _, order = _segments(docked, axes)
    if (axes is None or len(axes) == len(docked.shape)) and is_dense(docked):
        return tuple(sorted(order, key=lambda axis: -docked.strides[axis]))
    return order


def lies_in(docked: Docked, axes: tuple[int, ...] | None, order: tuple[int, ...]) -> bool:
    """Whether the array's own memory has its elements in that order."""
    return dense_buffer(docked, axes) is not None and lying(docked, axes) == order


def flatten_in(docked: Docked, axes: tuple[int, ...] | None, order: tuple[int, ...], *, pack: bool = False) -> Flat:
    """The array in host memory with its elements in a given order: its own memory where that is so, or a copy."""
    if not pack and lies_in(docked, axes, order):
        return flatten_memory(docked, axes)
    length, rows, _ = _segments(docked, axes)
    packed = view(docked).transpose(order).copy(order="C")
    return Flat(Buffer(packed.ctypes.data, length, docked.dtype, rows, docked.device, packed), packed, order)


def _segments(docked: Docked, axes: tuple[int, ...] | None) -> tuple[int, int, tuple[int, ...]]:
    """Elements of a segment, number of segments, and the axes in the order in which they are summed."""
    parts = 2 if docked.is_complex else 1
    if axes is None or len(axes) == len(docked.shape):
        return size(docked.shape) * parts, 1, tuple(range(len(docked.shape)))
    kept = tuple(axis for axis in range(len(docked.shape)) if axis not in axes)
    length = math.prod(docked.shape[axis] for axis in axes) * parts
    return length, math.prod(docked.shape[axis] for axis in kept), kept + axes


def _buffer(docked: Docked, length: int, rows: int) -> Buffer:
    buffer = Buffer(docked.pointer, length, docked.dtype, rows, docked.device, docked, docked.stream, docked.lent)
    return buffer if docked.holder is None else replace(buffer, shared=_shared(docked))


def _shared(docked: Docked) -> object:
    return None if docked.holder is None else docked.holder.shared
