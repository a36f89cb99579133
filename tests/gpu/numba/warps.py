"""What Numba's simulator lacks of a warp: exchanges, votes and its barrier. For tests alone.

The simulator runs a thread of Python for each of the device; here 32 of them meet at a barrier, leave their
values, and meet again. Who is missing, or waits elsewhere, breaks the barrier: that is an error, not a hang.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

_PATIENCE = 60.0
_lock = threading.Lock()


class _Warp:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(32)
        self.values: list[Any] = [None] * 32


def _meet(value: Any) -> tuple[list[Any], int]:
    """All values of the warp, and which one is this thread's."""
    thread: Any = threading.current_thread()
    number, block = thread.thread_id >> 5, thread._manager
    with _lock:
        warps = block.__dict__.setdefault("_warps", {})
        warp = warps.setdefault(number, _Warp())
    lane = thread.thread_id & 31
    warp.values[lane] = value
    warp.barrier.wait(_PATIENCE)
    values = list(warp.values)
    warp.barrier.wait(_PATIENCE)
    return values, lane


def _shfl_xor_sync(_module: Any, mask: int, value: Any, lane_mask: int) -> Any:
    assert mask == 0xFFFFFFFF
    values, lane = _meet(value)
    return values[lane ^ lane_mask]


def _shfl_sync(_module: Any, mask: int, value: Any, source: int) -> Any:
    assert mask == 0xFFFFFFFF
    return _meet(value)[0][source]


def _all_sync(_module: Any, mask: int, predicate: Any) -> bool:
    assert mask == 0xFFFFFFFF
    return all(_meet(bool(predicate))[0])


def _syncwarp(_module: Any, _mask: int = 0xFFFFFFFF) -> None:
    _meet(None)


def install() -> None:
    """Add them, and give each thread the device's floating point: division by zero is no warning there."""
    from numba.cuda.simulator import kernel, kernelapi

    for function in (_shfl_xor_sync, _shfl_sync, _all_sync, _syncwarp):
        setattr(kernelapi.FakeCUDAModule, function.__name__[1:], function)
    run = kernel.BlockThread.run

    def run_quietly(thread: Any) -> None:
        with np.errstate(all="ignore"):
            run(thread)

    kernel.BlockThread.run = run_quietly
