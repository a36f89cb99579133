"""``cupy.cuda``'s memory: what owns device memory, pointers into it, and the allocator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tests.gpu.standin import runtime
from tests.gpu.standin.devices import Device, get_current_stream
from tests.gpu.standin.errors import CUDARuntimeError
from tests.gpu.standin.machine import machine
from tests.gpu.standin.memory import HOST, as_bytes


class BaseMemory:
    """Device memory."""

    ptr: int
    size: int
    device_id: int

    @property
    def device(self) -> Device:
        return Device(self.device_id)


class Memory(BaseMemory):
    """An allocation of the current device, freed when this object dies."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.device_id = machine().device
        # CuPy allocates nothing for nothing: the pointer is NULL.
        self.ptr = 0 if size == 0 else machine().allocate(size, get_current_stream().ptr, self).address


class UnownedMemory(BaseMemory):
    """Memory that somebody else owns."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        if device_id < 0:
            device_id = runtime.pointerGetAttributes(ptr).device
            if device_id < 0:
                raise CUDARuntimeError(101)
        self.ptr = ptr
        self.size = size
        self.device_id = device_id
        self._owner = owner


class MemoryPointer:
    """A place in device memory."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    @property
    def device(self) -> Device:
        return self.mem.device

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def memset(self, value: int, size: int) -> None:
        runtime.memset(self.ptr, value, size)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        runtime.memsetAsync(self.ptr, value, size, (stream or get_current_stream()).ptr)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        ptr = (stream or get_current_stream()).ptr
        runtime.memcpyAsync(self.ptr, src.ptr, size, runtime.memcpyDeviceToDevice, ptr)

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        ptr = (stream or get_current_stream()).ptr
        runtime.memcpyAsync(self.ptr, _address(mem), size, runtime.memcpyHostToDevice, ptr)

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        ptr = (stream or get_current_stream()).ptr
        runtime.memcpyAsync(_address(mem), self.ptr, size, runtime.memcpyDeviceToHost, ptr)


def _address(mem: Any) -> int:
    value = getattr(mem, "value", mem)  # a ctypes.c_void_p, as CuPy takes it, or a number
    return int(value)


def _allocate(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size), 0)


_allocator: list[Callable[[int], MemoryPointer]] = [_allocate]


def alloc(size: int) -> MemoryPointer:
    """Memory of the current device, by the current allocator."""
    return _allocator[0](size)


def get_allocator() -> Callable[[int], MemoryPointer]:
    return _allocator[0]


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    # CuPy's ``None`` means plain ``cudaMalloc``.
    _allocator[0] = _allocate if allocator is None else allocator


class PinnedMemoryPointer:
    """Page-locked host memory. An instance is a ctypes array too: what ``numpy.frombuffer`` takes."""

    ptr: int
    mem: Any

    def size(self) -> int:
        return int(self.mem.size)


class PinnedMemory:
    """The owner of page-locked host memory."""

    def __init__(self, size: int, flags: int = 0) -> None:
        self.ptr = machine().allocate(size, 0, self, HOST).address
        self.size = size


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Page-locked host memory: copies from and to it are asynchronous, and may be captured."""
    kind: Any = type("PinnedMemoryPointer", (ctypes.c_uint8 * size, PinnedMemoryPointer), {})
    mem = PinnedMemory(size)
    made: Any = kind.from_address(mem.ptr)
    made.ptr, made.mem = mem.ptr, mem
    as_bytes(mem.ptr, size)[:] = 0xAB
    result: PinnedMemoryPointer = made
    return result
