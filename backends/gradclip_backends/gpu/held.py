"""Memory that is lent: kept alive until the work on it has run.

A producer that gave its memory by DLPack does not know of the work that is still queued, and would
use the memory again as soon as nobody holds the capsule.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from typing import Any

from gradclip_backends.gpu.driver import Driver, Queue
from gradclip_core.protocol import Buffer


class Held:
    """What is held, and until when. Each call looks what can be let go."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._waiting: list[tuple[Any, list[object]]] = []
        self._captured: list[object] = []
        # While the frameworks that lent it are still there to take it back.
        atexit.register(self._waiting.clear)
        atexit.register(self._captured.clear)

    def __len__(self) -> int:
        return len(self._waiting)

    def until_done(self, queue: Queue, buffers: Sequence[Buffer]) -> None:
        """Keep the owners of those buffers that are lent until the queue has come past this point."""
        owners = [buffer.owner for buffer in buffers if buffer.lent]
        if not owners and not self._waiting:
            return
        if self._driver.capturing(queue):
            # A graph reads the memory at each replay, for as long as it lives; and nothing may be asked now.
            self._captured.extend(owners)
            return
        with self._lock:
            self._waiting[:] = [(mark, held) for mark, held in self._waiting if not self._driver.passed(mark)]
            if owners:
                self._waiting.append((self._driver.mark(queue), owners))
