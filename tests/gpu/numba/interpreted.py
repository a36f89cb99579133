"""The kernels' PTX, run by the interpreter in ``tests/gpu/ptx`` over host memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from gradclip_backends.gpu.driver import Queue
from gradclip_backends.gpu.layout import THREADS
from gradclip_backends.numba_cuda.structs import argument

from tests.gpu.engine import Traffic
from tests.gpu.numba.compiled import ptx_of
from tests.gpu.numba.fake import HostDriver
from tests.gpu.ptx.engine import PtxProgram


class PtxDriver(HostDriver):
    """``architecture`` as of ``cuda.compile``; with a seed the warps advance in a random order."""

    def __init__(self, architecture: tuple[int, int] = (9, 0), seed: int | None = None, processors: int = 1) -> None:
        super().__init__(processors)
        self.architecture, self.seed = architecture, seed
        self.traffic: list[Traffic] = []
        self._programs: dict[str, PtxProgram] = {}

    def program(self, kernel: str) -> PtxProgram:
        if kernel not in self._programs:
            self._programs[kernel] = PtxProgram(ptx_of(kernel, self.architecture), self.seed)
        return self._programs[kernel]

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        program = self.program(kernel)
        [entry] = program.parameters
        leaves = [
            struct.pack("<d" if isinstance(x, float) else "<q", x) for arg in args for x in _leaves(argument(arg))
        ]
        self.launched.append((kernel, grid))
        self.traffic.append(program.launch(entry, (grid, 1, 1), (THREADS, 1, 1), leaves, list(self.regions())))


def _leaves(value: Any) -> Iterator[int | float]:
    if isinstance(value, tuple):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value
