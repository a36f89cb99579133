"""What runs a kernel where there is no GPU: the contract between the stand-in for CuPy and its engines.

Two engines keep it: ``cpu`` (the CUDA source, built by g++) and ``ptx`` (NVRTC's own PTX, interpreted).
Device memory is host memory: an address in a kernel's arguments is an address of this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Dim3 = tuple[int, int, int]
Region = tuple[int, int]
"""An allocation on the device: its address and its size in bytes."""


class CompileFault(RuntimeError):  # noqa: N818  # what a kernel did is no error of ours
    """The source does not compile; the message is the compiler's log."""


class KernelFault(RuntimeError):  # noqa: N818
    """A launch did what is undefined, forbidden or deadlocks on a GPU. The message says where."""


@dataclass
class Traffic:
    """What a launch did, as far as its engine can tell; an engine that cannot count leaves zeros."""

    instructions: dict[str, int] = field(default_factory=dict)
    """Opcode -> how many threads executed it."""
    read: dict[Region, int] = field(default_factory=dict)
    """Region -> bytes of global memory read from it."""
    written: dict[Region, int] = field(default_factory=dict)
    """Region -> bytes of global memory written to it, atomics included."""
    requests: dict[str, int] = field(default_factory=dict)
    """``"ld"`` and ``"st"`` -> warp-wide accesses to global memory."""
    sectors: dict[str, int] = field(default_factory=dict)
    """``"ld"`` and ``"st"`` -> 32-byte sectors that those accesses touched."""
    bank_conflicts: int = 0
    """Replays of accesses to shared memory."""


class Program(Protocol):
    """Compiled kernels."""

    @property
    def parameters(self) -> Mapping[str, Sequence[int]]:
        """Kernel -> the sizes of its parameters in bytes."""
        ...

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: Sequence[bytes], memory: Sequence[Region]) -> Traffic:
        """Run a grid to its end. ``memory`` is every live allocation of the device.

        Raises ``KernelFault``; argument counts and sizes have been checked by the caller.
        """
        ...


class Engine(Protocol):
    """A way of running CUDA C."""

    name: str

    def compile(self, source: str, options: Sequence[str]) -> Program:
        """Compile with NVRTC's options, as far as they mean something here. Raises ``CompileFault``."""
        ...
