"""The simulated devices' memory: host memory with an owner, poison and guards.

A kernel is shown only the allocations of its own device, and its writes just outside of one are found.
"""

from __future__ import annotations

import bisect
import ctypes
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.engine import KernelFault, Region

FRESH = 0xAB
"""What memory holds before anything is written: a wrong, finite number in every dtype."""
FREED = 0xDD
ALIGNMENT = 512
"""CuPy's pool hands out multiples of it."""
_GUARD = 64
_KEPT = 16 << 20
_UNTOUCHED = bytes([0xFD]) * _GUARD
HOST = -1
"""The "device" of page-locked host memory."""


class Block:
    """An allocation. ``owner`` keeps the memory behind it alive."""

    def __init__(self, address: int, size: int, device: int, owner: Any, stream: int, guarded: bool) -> None:
        self.address = address
        self.size = size
        self.device = device
        self.owner = owner
        self.stream = stream
        """The stream that was current when it was allocated: CuPy's pool recycles in that stream's order."""
        self.guarded = guarded

    def intact(self) -> bool:
        """Nobody has written just before or behind it."""
        if not self.guarded:
            return True
        before, after = self.address - _GUARD, self.address + self.size
        return ctypes.string_at(before, _GUARD) == _UNTOUCHED == ctypes.string_at(after, _GUARD)


class Memory:
    """Every live allocation of every device, sorted by address."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._addresses: list[int] = []
        self._graveyard: deque[tuple[int, Any]] = deque()

    def allocate(self, size: int, device: int, stream: int) -> Block:
        """Fresh, poisoned, guarded memory."""
        buffer = np.full(size + ALIGNMENT + 2 * _GUARD, 0xFD, np.uint8)
        first = buffer.ctypes.data + _GUARD
        address = first + -first % ALIGNMENT
        block = Block(address, size, device, buffer, stream, guarded=True)
        as_bytes(address, size)[:] = FRESH
        self.adopt(block)
        return block

    def adopt(self, block: Block) -> None:
        """Make memory known, whoever owns it."""
        place = bisect.bisect(self._addresses, block.address)
        self._addresses.insert(place, block.address)
        self._blocks.insert(place, block)

    def disown(self, block: Block) -> None:
        """Forget memory, and keep it from being reused by this process while work may be queued on it."""
        if block in self._blocks:
            place = self._blocks.index(block)
            del self._blocks[place], self._addresses[place]
            self._graveyard.append((block.size, block.owner))

    def retire(self, block: Block) -> None:
        """Poison an allocation that CuPy's pool takes back, so that reading it afterwards shows."""
        self.check(block, "before this allocation was freed, something")
        as_bytes(block.address, block.size)[:] = FREED
        self.disown(block)

    def find(self, address: int, size: int = 1) -> Block | None:
        """The allocation that holds all of these bytes."""
        place = bisect.bisect(self._addresses, address)
        # Foreign memory may be registered twice, and in part: look further than at the nearest.
        for block in reversed(self._blocks[:place]):
            if block.address <= address and address + size <= block.address + block.size:
                return block
            if block.guarded:  # nothing that starts before our own allocation reaches behind it
                break
        return None

    def regions(self, device: int) -> list[Region]:
        """What a kernel on this device may see."""
        return list(dict.fromkeys((b.address, b.size) for b in self._blocks if b.device == device and b.size))

    def bury(self, pending: int) -> None:
        """Let go of freed memory, late: queued work may still touch it, and a new address shows who uses an old one."""
        while not pending and sum(size for size, _ in self._graveyard) > _KEPT:
            self._graveyard.popleft()

    def owners(self) -> list[Any]:
        """What keeps the memory alive that is live or was freed lately."""
        return [block.owner for block in self._blocks] + [owner for _, owner in self._graveyard]

    def used(self, device: int) -> int:
        """The bytes allocated on a device."""
        return sum(block.size for block in self._blocks if block.device == device)

    def check(self, only: Block | None, who: str) -> None:
        """Raise where something wrote outside of an allocation."""
        for block in self._blocks if only is None else [only]:
            if not block.intact():
                block.guarded = False  # once is enough
                raise KernelFault(
                    f"{who} wrote outside of the {block.size} bytes at {block.address:#x} on device {block.device}"
                )


def as_bytes(address: int, size: int) -> NDArray[np.uint8]:
    """Memory by its address, writable."""
    if size == 0:
        return np.empty(0, np.uint8)
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, np.uint8)
