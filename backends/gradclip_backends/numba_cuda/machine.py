"""What a thread knows of the others: who it is, what its warp holds, fences and atomics."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from llvmlite import ir
from numba import cuda

from gradclip_backends.numba_cuda.jit import I32, I64, hardware, primitive

FULL_WARP = 0xFFFFFFFF


@hardware
def lane() -> Any:
    """The thread's number in its warp."""
    return cuda.threadIdx.x & 31


@hardware
def warp_number() -> Any:
    """The warp's number among all warps of the grid."""
    return (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) >> 5


@hardware
def warps() -> Any:
    """How many the grid has."""
    return (cuda.gridDim.x * cuda.blockDim.x) >> 5


@hardware
def thread_number() -> Any:
    """The thread's number among all threads of the grid."""
    return cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x


@hardware
def threads() -> Any:
    """How many the grid has."""
    return cuda.gridDim.x * cuda.blockDim.x


@hardware
def thread_of_block() -> Any:
    """The thread's number in its block."""
    return cuda.threadIdx.x


@hardware
def threads_of_block() -> Any:
    """How many a block has."""
    return cuda.blockDim.x


@hardware
def exchange(x: Any, mask: Any) -> Any:
    """The value of the thread whose number differs in the bits of ``mask``."""
    return cuda.shfl_xor_sync(FULL_WARP, x, mask)


@hardware
def broadcast(x: Any) -> Any:
    """The value of the warp's first thread."""
    return cuda.shfl_sync(FULL_WARP, x, 0)


@hardware
def all_of_warp(condition: Any) -> Any:
    """Whether it holds in every thread of the warp."""
    return cuda.all_sync(FULL_WARP, condition)


@hardware
def any_of_block(condition: Any) -> Any:
    """Whether it holds in any thread of the block. A barrier."""
    return cuda.syncthreads_or(1 if condition else 0) != 0


@hardware
def sync_warp() -> None:
    """Wait for the warp's threads, and see what they have written."""
    cuda.syncwarp()


@hardware
def fence() -> None:
    """What was written before is seen, by whoever sees what is written after."""
    cuda.threadfence()


_lock = threading.Lock()


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, 1))


def _atomic(operation: str, kind: Any) -> Any:
    def emit(builder: Any, address: Any, value: Any) -> Any:
        value = builder.trunc(value, kind) if kind != value.type else value
        old = builder.atomic_rmw(operation, _pointer(builder, address, kind), value, "monotonic")
        return builder.zext(old, I64) if kind != I64 else old

    return emit


@primitive("int64(int64, int64)", _atomic("add", I32))
def add_to_32(address: Any, value: Any) -> Any:
    """Atomically; what was there before."""
    with _lock:
        item = ctypes.c_uint32.from_address(address)
        old = item.value
        item.value = (old + int(value)) & FULL_WARP
    return old


@primitive("int64(int64, int64)", _atomic("add", I64))
def add_to_64(address: Any, value: Any) -> Any:
    """Atomically; what was there before."""
    with _lock:
        item = ctypes.c_int64.from_address(address)
        old = item.value
        item.value = old + int(value)
    return old


@primitive("int64(int64, int64)", _atomic("xchg", I32))
def set_32(address: Any, value: Any) -> Any:
    """Atomically; what was there before."""
    with _lock:
        item = ctypes.c_uint32.from_address(address)
        old = item.value
        item.value = int(value)
    return old
