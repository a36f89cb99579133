"""The engine: compiles CUDA C for the CPU and launches it there.

>>> engine = CpuEngine(order="random", seed=3)
>>> program = engine.compile(source, options=())
>>> program.launch("scale", grid=(2, 1, 1), block=(64, 1, 1), args=[...], memory=[])

The sanitizers' flavours need a process with their runtimes: see ``sanitizer_environment``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tests.gpu.cpu.build import build
from tests.gpu.cpu.flavours import FLAVOURS
from tests.gpu.engine import Dim3, KernelFault, Region, Traffic

FlavourName = Literal["plain", "quick", "asan", "tsan", "coverage"]
Order = Literal["forward", "reverse", "random", "jitter"]

_ORDERS: dict[Order, int] = {"forward": 0, "reverse": 1, "random": 2, "jitter": 3}
_ROOM = 1000
_SIZES_ROOM = 20_000


class _Launch(ctypes.Structure):  # headers/grid.h
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("order", ctypes.c_uint),
        ("seed", ctypes.c_uint),
        ("os_threads", ctypes.c_uint),
        ("flush_subnormals", ctypes.c_uint),
    )


class CpuProgram:
    """Kernels in a module built by g++."""

    def __init__(self, module: Path, engine: CpuEngine) -> None:
        self.module = module
        self._engine = engine
        self._library = ctypes.CDLL(str(module))
        self._library.cuda_on_cpu_kernel.restype = ctypes.c_char_p
        kernels = list(self._describe())
        self._numbers = {name: number for number, (name, _) in enumerate(kernels)}
        self._parameters = dict(kernels)

    @property
    def parameters(self) -> Mapping[str, Sequence[int]]:
        return self._parameters

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: Sequence[bytes], memory: Sequence[Region]) -> Traffic:
        """Run a grid to its end; what it touches is for the sanitizers to judge, not for ``memory``."""
        values = [ctypes.create_string_buffer(arg, max(1, len(arg))) for arg in args]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        message = ctypes.create_string_buffer(_ROOM)
        launch = self._engine.next_launch(grid, block)
        failed = self._library.cuda_on_cpu_launch(
            self._numbers[kernel], ctypes.byref(launch), pointers, message, ctypes.c_size_t(_ROOM)
        )
        if failed:
            raise KernelFault(f"{kernel}: {message.value.decode()}")
        return Traffic()

    def _describe(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        sizes = ctypes.create_string_buffer(_SIZES_ROOM)
        number = 0
        while name := self._library.cuda_on_cpu_kernel(number, sizes, ctypes.c_size_t(_SIZES_ROOM)):
            yield name.decode(), tuple(map(int, sizes.value.split()))
            number += 1


class CpuEngine:
    """Runs kernels on the CPU.

    ``order`` is that of blocks and of threads in a block; "random" draws anew at every turn, from ``seed`` and the
    number of the launch; "jitter" also lets others go first at atomics. ``threads`` OS threads run blocks at a time.
    ``ftz`` flushes subnormals, those of float64 too: a CPU has one switch for both.
    """

    name = "cpu"

    def __init__(
        self,
        flavour: FlavourName = "plain",
        order: Order = "forward",
        seed: int = 1,
        threads: int = 1,
        ftz: bool = False,
    ) -> None:
        self.flavour = flavour
        self.order = order
        self.seed = seed
        self.threads = threads
        self.ftz = ftz
        self._launches = 0

    def compile(self, source: str, options: Sequence[str]) -> CpuProgram:
        """Build the source's ``extern "C" __global__`` kernels; ``#line`` is followed in every message."""
        self._check_process()
        return CpuProgram(build(source, options, self.flavour), self)

    def next_launch(self, grid: Dim3, block: Dim3) -> _Launch:
        self._launches += 1
        seed = (self.seed * 1_000_003 + self._launches) % 2**32
        # A dimension that is no unsigned int would come out of ctypes as another number.
        dims = [(ctypes.c_uint * 3)(*(d if 0 <= d < 2**32 else 0 for d in dim)) for dim in (grid, block)]
        return _Launch(*dims, _ORDERS[self.order], seed, self.threads, self.ftz)

    def _check_process(self) -> None:
        entry = FLAVOURS[self.flavour].entry
        if entry and not hasattr(ctypes.CDLL(None), entry):
            # To load the module would end the process.
            raise RuntimeError(
                f"kernels of flavour {self.flavour!r} need the sanitizer's runtime: "
                f"start a process with sanitizer_environment({self.flavour!r})"
            )
