"""What a GPU backend needs of its driver: memory, streams, and launches by name. CuPy is one, numba.cuda another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Queue:
    """Where work is put: a stream of a device. ``stream`` is its address; 1 is the default stream."""

    device: int
    stream: int


class Allocation(Protocol):
    """Device memory that is freed when nobody holds it any more."""

    @property
    def pointer(self) -> int:
        """Its address."""
        ...


class Driver(Protocol):
    """Everything is put on a queue and returns at once, but ``read``.

    What fails raises ``BackendError``, with what the driver said.
    """

    name: str
    inline_rows: int
    """How many rows of a table a launch can take by value; 0: none."""

    def unavailable(self) -> list[str]:
        """Why there is no device to be used here, each a sentence. Empty: there is one."""
        ...

    def devices(self) -> int:
        """How many there are."""
        ...

    def processors(self, device: int) -> int:
        """Multiprocessors of a device."""
        ...

    def prepare(self, device: int, kernels: Sequence[str]) -> None:
        """Compile and load kernels, so that no later launch can fail for that."""
        ...

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        """Launch ``grid`` blocks of 256 threads. ``args``: NumPy scalars, and structs as arrays of size 1."""
        ...

    def allocate(self, queue: Queue, size: int) -> Allocation:
        """New memory, uninitialised, 256-byte aligned; work on this queue alone may use it."""
        ...

    def clear(self, queue: Queue, pointer: int, size: int) -> None:
        """Set bytes to zero."""
        ...

    def upload(self, queue: Queue, pointer: int, data: Bytes) -> None:
        """Copy to the device; ``data``, whole 8-byte words, may change as soon as this returns."""
        ...

    def read(self, queue: Queue, pointer: int, size: int) -> Bytes:
        """Copy to the host. Waits for all that is on the queue."""
        ...

    def capturing(self, queue: Queue) -> bool:
        """Whether the stream is being captured into a CUDA graph."""
        ...

    def order(self, first: Queue, then: Queue) -> None:
        """Let what is put on ``then`` from now on wait for what is on ``first`` now."""
        ...

    def mark(self, queue: Queue) -> Any:
        """Something that ``passed`` can be asked about: a point in the queue's work."""
        ...

    def passed(self, mark: Any) -> bool:
        """Whether the device has come past that point."""
        ...

    def device_of(self, pointer: int) -> int | None:
        """The device whose memory this address is in. None: no device's, or freed."""
        ...
