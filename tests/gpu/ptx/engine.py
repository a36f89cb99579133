"""The engine that runs NVRTC's own PTX: ``tests.gpu.engine``'s contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.gpu.engine import Dim3, KernelFault, Region, Traffic
from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.link import Kernel, link
from tests.gpu.ptx.machine import STEPS, Machine
from tests.gpu.ptx.parse import parse
from tests.gpu.ptx.syntax import Variable
from tests.gpu.ptx.types import Array
from tests.gpu.toolkit import archs


class PtxProgram:
    """Kernels in PTX, NVRTC's or Numba's. Module-scope arrays live as long as the program, as on a device."""

    def __init__(self, ptx_text: str, seed: int | None = None, steps: int = STEPS) -> None:
        self.module, self.steps = parse(ptx_text), steps
        self.random = None if seed is None else np.random.default_rng(seed)
        self._arrays: dict[Variable, Array] = {}
        self._kernels: dict[str, Kernel] = {}
        for variable in self.module.variables.values():
            if variable.space in ("global", "const"):
                self._arrays[variable] = _aligned(variable)

    @property
    def parameters(self) -> Mapping[str, Sequence[int]]:
        """Kernel -> the sizes of its parameters in bytes."""
        kernels = (function for function in self.module.functions.values() if function.is_kernel)
        return {kernel.name: [variable.size for variable in kernel.parameters] for kernel in kernels}

    def launch(
        self,
        kernel: str,
        grid: Dim3,
        block: Dim3,
        args: Sequence[bytes],
        memory: Sequence[Region],
        shared: int = 0,
    ) -> Traffic:
        """Run a grid to its end. ``shared`` is the dynamic shared memory in bytes."""
        if kernel not in self.parameters:
            raise KernelFault(f"no kernel {kernel!r} among {sorted(self.parameters)}")
        if kernel not in self._kernels:
            self._kernels[kernel] = link(self.module, kernel)
        addresses = {variable: array.ctypes.data for variable, array in self._arrays.items()}
        regions = [*memory, *((array.ctypes.data, array.nbytes) for array in self._arrays.values())]
        state = Grid(self._kernels[kernel], addresses, grid, block, args, regions, shared, self.random)
        return Machine(state, self.steps).run()

    def symbol(self, name: str) -> Array:
        """The bytes of a module-scope array: they can be read and written between launches."""
        return self._arrays[self.module.variables[name]]


def _aligned(variable: Variable) -> Array:
    room = np.zeros(variable.size + 256, np.uint8)
    start = -room.ctypes.data % 256
    array: Array = room[start : start + variable.size]
    array[: len(variable.content)] = np.frombuffer(variable.content, np.uint8)
    return array


class PtxEngine:
    """Compiles for one architecture, and interprets; with a seed the warps advance in a random order."""

    name = "ptx"

    def __init__(self, arch: int = 90, seed: int | None = None, steps: int = STEPS) -> None:
        self.arch, self.seed, self.steps = arch, seed, steps

    def compile(self, source: str, options: Sequence[str]) -> PtxProgram:
        """Compile as CuPy does, which adds ``-ftz=true``. Raises ``CompileFault``."""
        own = [option for option in options if not option.startswith(("-arch", "--gpu-architecture"))]
        text = archs.assembly(source, (*own, f"-arch=compute_{self.arch}", "-ftz=true"))
        return PtxProgram(text, self.seed, self.steps)
