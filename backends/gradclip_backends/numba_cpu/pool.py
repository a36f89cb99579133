"""Threads: a small pool of our own, safe under fork and when several Python threads clip at once.

The caller works too. Chunks are taken from a shared counter, so that a thread that the machine
holds up delays nobody; which thread takes which chunk changes no bit of the result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# Until another thread has woken up and its end is known, one core has read 2 to 8 MB (150 µs on a virtual machine).
SMALLEST_SHARED_BYTES = 8 << 20
LEAST_CHUNK_BYTES = 1 << 18

_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def threads() -> int:
    """How many threads a large call uses: GRADCLIP_NUM_THREADS, or the processors of this process."""
    asked = os.environ.get("GRADCLIP_NUM_THREADS")
    if asked:
        if not asked.isdigit() or int(asked) == 0:
            raise ValueError(
                f"GRADCLIP_NUM_THREADS={asked!r} is no number of threads: set it to 1 or more, or unset it"
            )
        return int(asked)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def run(work: Callable[[int, int], None], blocks: int, bytes_: int, *, backwards: bool = False) -> None:
    """Call ``work(start, stop)`` over chunks of ``range(blocks)``, all of them; ``backwards``: the last one first."""
    count = 1 if bytes_ < SMALLEST_SHARED_BYTES else threads()
    if count == 1:
        work(0, blocks)
        return
    chunks = iter(_chunks(blocks, bytes_, count, backwards))  # next() on a list's iterator is atomic

    def take() -> None:
        for start, stop in chunks:
            work(start, stop)

    helpers = _submit(take, count - 1)
    try:
        take()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun has nothing left to do
                helper.result()


def _chunks(blocks: int, bytes_: int, threads: int, backwards: bool) -> list[tuple[int, int]]:
    """Each a part of what is left, so that there are few of them and the last ones end together."""
    least = max(1, blocks * LEAST_CHUNK_BYTES // bytes_)
    chunks, done = [], 0
    while done < blocks:
        stop = min(blocks, done + max(least, (blocks - done) // (4 * threads)))
        chunks.append((blocks - stop, blocks - done) if backwards else (done, stop))
        done = stop
    return chunks


def _submit(take: Callable[[], None], helpers: int) -> list[Future[None]]:
    global _executor
    try:
        with _lock:
            if _executor is None or _executor._max_workers < helpers:
                _executor = ThreadPoolExecutor(helpers, thread_name_prefix="gradclip")
            return [_executor.submit(take) for _ in range(helpers)]
    except RuntimeError:  # the interpreter is shutting down and starts no threads: the caller works alone
        return []


def _forget() -> None:
    """After a fork the child has the executor's object and none of its threads."""
    global _executor, _lock
    _executor = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
