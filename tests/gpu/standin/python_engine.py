"""The smallest engine: a "source" is a list of names, and a kernel a Python function on addresses.

For tests of the stand-in itself and of host code; it computes the same at any grid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.gpu.engine import CompileFault, Dim3, KernelFault, Region, Traffic
from tests.gpu.standin.log import COUNTED
from tests.gpu.standin.memory import as_bytes

Kernel = Callable[["Seen", Sequence[bytes]], None]


@dataclass
class Seen:
    """What a kernel may touch, and what it did."""

    memory: Sequence[Region]
    traffic: Traffic = field(default_factory=Traffic)

    def floats(self, argument: bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Memory behind a pointer, if it is this device's."""
        address = int.from_bytes(argument, "little")
        for region in self.memory:
            if region[0] <= address and address + 4 * count <= sum(region):
                self.traffic.read[region] = self.traffic.read.get(region, 0) + 4 * count
                return as_bytes(address, 4 * count).view(np.float32)
        raise KernelFault(f"{address:#x} is no memory of this device")


def _scale(seen: Seen, args: Sequence[bytes]) -> None:
    """scale(float* x, unsigned n, float by)"""
    x = seen.floats(args[0], int.from_bytes(args[1], "little"))
    x *= np.frombuffer(args[2], np.float32)[0]


def _add(seen: Seen, args: Sequence[bytes]) -> None:
    """add(float* to, const float* from, unsigned n)"""
    n = int.from_bytes(args[2], "little")
    to = seen.floats(args[0], n)
    to += seen.floats(args[1], n)


def _table(seen: Seen, args: Sequence[bytes]) -> None:
    """table(struct {float* x; unsigned n; float by;})"""
    address, n, by = struct.unpack("QIf", args[0])
    seen.floats(address.to_bytes(8, "little"), n)[:] *= np.float32(by)


def _overrun(seen: Seen, args: Sequence[bytes]) -> None:
    """overrun(float* x, unsigned n): writes one element too many"""
    address, n = (int.from_bytes(arg, "little") for arg in args)
    as_bytes(address + 4 * n, 4)[:] = 0


_KERNELS: dict[str, tuple[tuple[int, ...], Kernel]] = {
    "scale": ((8, 4, 4), _scale),
    "add": ((8, 8, 4), _add),
    "table": ((16,), _table),
    "overrun": ((8, 4), _overrun),
    "wide": ((5000,), lambda seen, args: None),
    "too_wide": ((33000,), lambda seen, args: None),
}


@dataclass
class PythonProgram:
    """Some of the kernels."""

    names: Sequence[str]

    @property
    def parameters(self) -> Mapping[str, Sequence[int]]:
        return {name: _KERNELS[name][0] for name in self.names}

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: Sequence[bytes], memory: Sequence[Region]) -> Traffic:
        seen = Seen(memory)
        _KERNELS[kernel][1](seen, args)
        return seen.traffic


class PythonEngine:
    """See ``Engine``."""

    name = "python"

    def __init__(self) -> None:
        self.compiled = 0

    def compile(self, source: str, options: Sequence[str]) -> PythonProgram:
        self.compiled += 1
        for name in source.split():
            if name not in _KERNELS:
                raise CompileFault(f"kernel.cu(1): error: identifier {name!r} is undefined")
        return PythonProgram(source.split())


ALL = " ".join(_KERNELS)
ZEROS = dict.fromkeys(COUNTED, 0)


def kernel(cp: Any, name: str) -> Any:
    """One of the kernels, by way of ``cupy``."""
    return cp.RawModule(code=ALL, options=("-std=c++17",)).get_function(name)
