"""Memory that is kept from call to call: nodes and tables for each queue, and records that come back.

A queue's work runs in order, so what one call has left another may use without waiting. Two queues
share nothing. A call holds its queue's lock from its first launch to its last.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field

import numpy as np

from gradclip_backends.gpu.driver import Allocation, Bytes, Driver, Queue
from gradclip_backends.gpu.layout import NODES, nodes_bytes, record_bytes


class Kept:
    """Memory that grows when it is too small. What was there is not copied."""

    def __init__(self) -> None:
        self.memory: Allocation | None = None
        self.size = 0

    def at_least(self, driver: Driver, queue: Queue, size: int) -> tuple[int, bool]:
        """The address, and whether it is new."""
        if self.memory is not None and size <= self.size:
            return self.memory.pointer, False
        # Sizes go up by half, so that gradients that grow a little do not allocate each time.
        size = max(size + 64, self.size + self.size // 2, 4096)
        self.memory = driver.allocate(queue, size)
        self.size = size
        return self.memory.pointer, True


@dataclass
class Table:
    """A table in device memory, and what was put there last: gradients often stay where they are."""

    kept: Kept = field(default_factory=Kept)
    contents: bytes = b""

    def holding(self, driver: Driver, queue: Queue, data: Bytes) -> int:
        """The address of memory that holds ``data``."""
        contents = data.tobytes()
        address, new = self.kept.at_least(driver, queue, data.nbytes)
        if new or contents != self.contents:
            self.contents = b""  # if the upload fails, nothing is known
            driver.upload(queue, address, data)
            self.contents = contents
        return address


class Workspace:
    """What the calls on one queue share."""

    def __init__(self, driver: Driver, queue: Queue) -> None:
        self.driver = driver
        self.queue = queue
        self.lock = threading.RLock()
        self.nodes = Kept()
        self.tables: dict[str, Table] = {}
        self.free_records: dict[int, list[Allocation]] = {}

    def nodes_for(self, blocks: int) -> np.ndarray:
        """Nodes for so many blocks. Their counters are zero, as every launch leaves them."""
        address, new = self.nodes.at_least(self.driver, self.queue, nodes_bytes(blocks))
        capacity = self.nodes.size // nodes_bytes(1) // 2 * 2  # even: sums are 8-byte aligned
        if new:
            self.driver.clear(self.queue, address, 4 * capacity)
        return np.array([(address, blocks, capacity)], NODES)

    def table(self, name: str, data: np.ndarray) -> int:
        """The address of a table with these contents."""
        words = np.zeros(-(-data.nbytes // 8) * 8, np.uint8)
        words[: data.nbytes] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return self.tables.setdefault(name, Table()).holding(self.driver, self.queue, words)

    def record(self, segments: int) -> Lease:
        """A record of zeros. It comes back when its lease is dropped."""
        size = record_bytes(segments)
        rounded = 1 << (size - 1).bit_length()  # few sizes, so that records are found again
        with self.lock:
            free = self.free_records.setdefault(rounded, [])
            if not free:
                # Two at a time: a loop that reads its info a step later, and a capture after one
                # warm-up call whose info is still held, find one.
                free.extend(self.driver.allocate(self.queue, rounded) for _ in range(2))
            lease = Lease(self, free.pop(), rounded)
        memory = lease.memory
        self.driver.clear(self.queue, memory.pointer, size)
        return lease


class Lease:
    """A record in use. Dropping it gives it back to the workspace, whose queue orders its next use."""

    def __init__(self, workspace: Workspace, memory: Allocation, size: int) -> None:
        self.workspace = workspace
        self.memory = memory
        self.size = size
        # Not by __del__: in a cycle of garbage the memory's own finaliser may run before it.
        weakref.finalize(self, _give_back, workspace.free_records, size, memory).atexit = False

    @property
    def address(self) -> int:
        """Of the record."""
        return self.memory.pointer


def _give_back(free: dict[int, list[Allocation]], size: int, memory: Allocation) -> None:
    # list.append is atomic: a collection may run inside somebody's lock.
    free.setdefault(size, []).append(memory)


class Workspaces:
    """A workspace for each queue, made when it is first used."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._lock = threading.Lock()
        self._known: dict[Queue, Workspace] = {}
        self._capturing: dict[Queue, Workspace] = {}
        self._captured: list[Workspace] = []

    def on(self, queue: Queue) -> Workspace:
        """The queue's own.

        A CUDA graph holds the addresses that it was captured with, and its replays are nobody's
        calls: so it takes the queue's workspace along, for good, and later calls get another.
        """
        capturing = self.driver.capturing(queue)
        with self._lock:
            if capturing:
                if queue not in self._capturing:
                    known = self._known.pop(queue) if queue in self._known else Workspace(self.driver, queue)
                    self._capturing[queue] = known
                return self._capturing[queue]
            if queue in self._capturing:
                self._captured.append(self._capturing.pop(queue))
            return self._known.setdefault(queue, Workspace(self.driver, queue))
