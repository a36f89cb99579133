"""The machine's limit: the simplest loops that reach it, in NumPy, over memory of their own.

Timed in the same rounds as what is held against it. What it took to reach it, measured on two cores
with 498 MB: memory that begins at a cache line (NumPy's large arrays begin 16 bytes behind one, so
that every wide load touches two: 18.9 ms instead of 16.7), and chunks that are taken from a counter
instead of a half for each thread (15.8 ms). Several accumulators, several streams or floats instead
of integers change nothing, and neither does a compiled loop: this one takes 15.5 ms.

NumPy asks the system for huge pages, and PyTorch does not: its gradients take a quarter longer to read.
``Reading`` is the same loop over the very arrays that are clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

_LINE = 64
_CHUNKS_PER_THREAD = 8
_SMALLEST_SHARED_BYTES = 16 << 20
"""Below this one thread is done before another is awake: a virtual machine takes 150 µs for that."""
_FACTOR = np.float32(0.9999)


class Memory:
    """``bytes_`` of memory that ``threads`` threads read, or read and write, and do as little else as can be."""

    def __init__(self, bytes_: int, threads: int) -> None:
        self.bytes = max(8, bytes_ // 8 * 8)
        block = np.empty(self.bytes + _LINE, np.uint8)
        start = -block.ctypes.data % _LINE
        self._values = block[start : start + self.bytes].view(np.float32)
        self._values[:] = 1
        self._helpers = threads - 1 if self.bytes >= _SMALLEST_SHARED_BYTES else 0
        self._pool = ThreadPoolExecutor(max(1, self._helpers))

    def read(self) -> None:
        """One read of everything."""
        self._share(_read)

    def scale(self) -> None:
        """One read and one write of everything."""
        self._share(_scale)

    def read_then_scale(self) -> None:
        """What a clipped step cannot avoid: nobody knows the norm before the last element is read."""
        self.read()
        self.scale()

    def _share(self, work: Callable[[npt.NDArray[Any]], object]) -> None:
        if not self._helpers:
            work(self._values)
            return
        _over(_parts(self._values, self._helpers + 1), work, self._pool, self._helpers)


class Reading:
    """One read of NumPy arrays, wherever they are, by ``threads`` threads."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], threads: int) -> None:
        flat = [array.reshape(-1).view(f"u{array.itemsize}") for array in arrays]
        self._helpers = threads - 1 if sum(array.nbytes for array in flat) >= _SMALLEST_SHARED_BYTES else 0
        self._parts = [part for array in flat for part in _parts(array, self._helpers + 1)]
        self._pool = ThreadPoolExecutor(max(1, self._helpers))

    def __call__(self) -> None:
        """Read everything."""
        _over(self._parts, np.bitwise_or.reduce, self._pool, self._helpers)


def _parts(values: npt.NDArray[Any], threads: int) -> list[npt.NDArray[Any]]:
    """Whole cache lines, unless it is small."""
    step = max(-(-values.size // (threads * _CHUNKS_PER_THREAD) // 16) * 16, 1 << 16)
    return [values[start : start + step] for start in range(0, values.size, step)]


def _over(
    parts: Sequence[npt.NDArray[Any]],
    work: Callable[[npt.NDArray[Any]], object],
    pool: ThreadPoolExecutor,
    helpers: int,
) -> None:
    left = iter(parts)  # next() on it is atomic under the GIL

    def take() -> None:
        for part in left:
            work(part)

    futures = [pool.submit(take) for _ in range(helpers)]
    take()
    for future in futures:
        future.result()


def _read(values: npt.NDArray[Any]) -> object:
    return np.bitwise_or.reduce(values.view(np.uint64))


def _scale(values: npt.NDArray[Any]) -> object:
    return np.multiply(values, _FACTOR, out=values)
