"""The memories of one launch, and what may be done in them.

Global memory is the memory of this process, seen as one array, once every address has been found in a region. The
other spaces are tables with a row for each block (shared), for each thread (local, frame) or one row (param).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.gpu.engine import Region, Traffic
from tests.gpu.ptx import traffic
from tests.gpu.ptx.lanes import Lanes
from tests.gpu.ptx.types import UNSIGNED, Array

POISON = 0xFF
"""What uninitialised memory and registers hold: NaN as a float, and large as an integer."""
_LOWEST = 4096
_PROCESS = np.frombuffer(memoryview((ctypes.c_ubyte * (2**47 - _LOWEST)).from_address(_LOWEST)), np.uint8)
_PROCESS_BY_WIDTH = {width: _PROCESS.view(dtype) for width, dtype in UNSIGNED.items()}

WINDOWS = {"shared": 0x71 << 56, "local": 0x72 << 56, "param": 0x73 << 56, "frame": 0x74 << 56}
"""Where the other spaces lie among generic addresses."""

Fault = Callable[[str, int], Exception]
"""Makes an exception from what happened and the thread to which it did."""


@dataclass(frozen=True)
class Place:
    """Where the threads of an access go: a view of memory by width, and the element there."""

    elements: Array
    index: Array


class Global:
    """Device memory: the regions that a launch may touch."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = sorted({region for region in regions if region[1]})
        self.bases = np.array([base for base, _ in self.regions], np.uint64)
        self.ends = np.array([base + size for base, size in self.regions], np.uint64)
        self.bytes = {kind: np.zeros(len(self.regions), np.int64) for kind in ("ld", "st")}
        self.sectors = {"ld": 0, "st": 0}
        self.requests = {"ld": 0, "st": 0}
        self.last = 0

    def place(self, kind: str, addresses: Array, size: int, width: int, lanes: Lanes, fault: Fault) -> Place:
        """Checked and counted; ``kind`` is "ld" or "st"."""
        check_alignment(addresses, size, lanes, fault)
        self._locate(kind, addresses, size, lanes, fault)
        self.sectors[kind] += traffic.distinct_sectors(lanes.warp, addresses)
        self.requests[kind] += traffic.distinct_warps(lanes.warp)
        shift = np.uint64(width.bit_length() - 1)
        return Place(_PROCESS_BY_WIDTH[width], ((addresses - np.uint64(_LOWEST)) >> shift).astype(np.intp))

    def _locate(self, kind: str, addresses: Array, size: int, lanes: Lanes, fault: Fault) -> None:
        lowest, highest = int(addresses.min()), int(addresses.max()) + size
        if self.regions:
            for candidate in (self.last, int(np.searchsorted(self.bases, np.uint64(lowest), "right")) - 1):
                base, extent = self.regions[candidate]
                if base <= lowest and highest <= base + extent:
                    self.last = candidate
                    self.bytes[kind][candidate] += size * lanes.count
                    return
        found = np.searchsorted(self.bases, addresses, "right") - 1
        outside = found < 0
        if self.regions:
            outside |= addresses + np.uint64(size) > self.ends[np.maximum(found, 0)]
        if outside.any():
            first = int(np.argmax(outside))
            verb = "reads" if kind == "ld" else "writes"
            raise fault(
                f"{verb} {size} bytes outside every allocation, at {self._near(int(addresses[first]))}",
                lanes.index[first],
            )
        self.bytes[kind] += size * np.bincount(found, minlength=len(self.regions))

    def _near(self, address: int) -> str:
        before = [region for region in self.regions if region[0] <= address]
        if not before:
            return f"0x{address:x}"
        base, size = before[-1]
        return f"0x{address:x}, which is {address - base} bytes into an allocation of {size}"

    def report(self, traffic: Traffic) -> None:
        """Put the counts there."""
        for kind, into in (("ld", traffic.read), ("st", traffic.written)):
            into.update({region: int(n) for region, n in zip(self.regions, self.bytes[kind], strict=True) if n})
        traffic.requests, traffic.sectors = dict(self.requests), dict(self.sectors)


class Table:
    """A space with rows; addresses in it are offsets into the thread's row."""

    def __init__(self, space: str, rows: int, size: int, row_of: Callable[[Lanes], Array]) -> None:
        self.space, self.size, self.row_of = space, size, row_of
        self.stride = -(-max(size, 1) // 16) * 16
        self.data = np.full(rows * self.stride, POISON, np.uint8)
        self.by_width = {width: self.data.view(dtype) for width, dtype in UNSIGNED.items()}
        self.conflicts = 0

    def place(self, kind: str, offsets: Array, size: int, width: int, lanes: Lanes, fault: Fault) -> Place:
        """Checked; of shared memory the bank conflicts are counted."""
        check_alignment(offsets, size, lanes, fault)
        outside = offsets + np.uint64(size) > np.uint64(self.size)
        if outside.any():
            first = int(np.argmax(outside))
            verb = "reads" if kind == "ld" else "writes"
            what = f"{verb} {size} bytes at {int(offsets[first])} of {self.size} bytes of {self.space} memory"
            raise fault(what, lanes.index[first])
        if self.space == "shared":
            self.conflicts += traffic.bank_conflicts(lanes.index, offsets, size)
        index = (self.row_of(lanes) * self.stride + offsets.astype(np.intp)) >> (width.bit_length() - 1)
        return Place(self.by_width[width], index)


def check_alignment(addresses: Array, size: int, lanes: Lanes, fault: Fault) -> None:
    """To the size of the whole access, vectors included."""
    crooked = addresses & np.uint64(size - 1)
    if crooked.any():
        first = int(np.argmax(crooked != 0))
        raise fault(f"misaligned access: {size} bytes at 0x{int(addresses[first]):x}", lanes.index[first])
