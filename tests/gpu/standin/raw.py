"""``cupy.RawModule``, and kernels that refuse the arguments with which a real one computes garbage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.gpu.engine import CompileFault, Dim3, Program
from tests.gpu.standin.array import ndarray
from tests.gpu.standin.devices import get_current_stream
from tests.gpu.standin.errors import CompileException, CUDADriverError
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import machine
from tests.gpu.standin.pointers import MemoryPointer

_SMALL, _LARGE, _LARGE_SINCE = 4096, 32764, 12010
"""Bytes of parameters that every driver takes, and those that newer ones take."""


class RawModule:
    """CUDA source, compiled when a kernel is asked for."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        if code is None or path is not None or backend != "nvrtc" or enable_cooperative_groups or jitify:
            raise NotImplementedError("the stand-in takes source code for NVRTC, without cooperative groups")
        self.code = code
        self.options = options
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)

    def compile(self, log_stream: Any = None) -> None:
        """Compile, and load on the current device."""
        self._load()

    def get_function(self, name: str) -> RawKernel:
        """A kernel; a template's by one of the ``name_expressions``."""
        kernel = RawKernel.__new__(RawKernel)
        kernel.name, kernel.options, kernel._module = name, self.options, self
        kernel._program()
        return kernel

    def _load(self) -> Program:
        here = machine()
        here.check_driver()
        key = (self.code, self.options)
        if key not in here.programs:
            if here.faults.compile_log is not None:
                raise CompileException(here.faults.compile_log, self.code, "kernel.cu", self.options)
            try:
                here.programs[key] = here.engine.compile(self.code, self.options)
            except CompileFault as fault:
                raise CompileException(str(fault), self.code, "kernel.cu", self.options) from fault
        program = here.programs[key]
        if (id(program), here.device) not in here.loaded:
            here.work.refuse_capture()
            here.log.add(Entry("load", here.device))
            here.loaded.add((id(program), here.device))
        return program


class RawKernel:
    """A kernel, on whichever device is current."""

    name: str
    options: tuple[str, ...]
    _module: RawModule

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        self.name, self.options = name, options
        self._module = RawModule(code, options=options, backend=backend)

    def compile(self, log_stream: Any = None) -> None:
        """Compile, and load on the current device."""
        self._program()

    def _program(self) -> Program:
        program = self._module._load()
        if self.name not in program.parameters:
            raise CUDADriverError(500)
        total = sum(program.parameters[self.name])
        if total > _LARGE:
            text = f"{self.name}: {total} bytes of parameters, and the limit is {_LARGE}"
            raise CompileException(text, self._module.code, "kernel.cu", self.options)
        if total > _SMALL and machine().faults.driver_version < _LARGE_SINCE:
            raise CUDADriverError(1)
        return program

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        """Launch. CuPy packs whatever it gets; here the arguments are held against the kernel's declaration."""
        if type(grid) is not tuple or type(block) is not tuple:
            raise TypeError(f"{self.name}: grid and block are tuples in CuPy, not {grid!r} and {block!r}")
        if shared_mem or enable_cooperative_groups:
            raise NotImplementedError("the stand-in has no dynamic shared memory and no cooperative launches")
        program = self._program()
        sizes = program.parameters[self.name]
        if len(args) != len(sizes):
            raise TypeError(f"{self.name}: {len(args)} arguments given, the kernel declares {len(sizes)}")
        packed = []
        for position, (arg, size) in enumerate(zip(args, sizes, strict=True)):
            data = self._pack(position, arg)
            if len(data) != size:
                raise TypeError(
                    f"{self.name}: argument {position} has {len(data)} bytes, and the kernel declares {size}: "
                    f"it would read garbage (a {type(arg).__module__}.{type(arg).__name__} was given)"
                )
            packed.append(data)
        grid3, block3 = _three(grid), _three(block)
        threads = block3[0] * block3[1] * block3[2]
        if threads > 1024 or block3[2] > 64 or grid3[0] >= 2**31 or max(grid3[1:]) > 65535:
            raise CUDADriverError(1)
        queue = machine().queue((get_current_stream() if stream is None else stream).ptr)
        machine().launch(queue, program, self.name, grid3, block3, packed)

    def _pack(self, position: int, arg: Any) -> bytes:
        if arg is None:
            return bytes(8)
        if isinstance(arg, (ndarray, MemoryPointer)):
            pointer = arg.data if isinstance(arg, ndarray) else arg
            if pointer.device_id != machine().device:
                raise ValueError(
                    f"{self.name}: argument {position} is on device {pointer.device_id}, "
                    f"and the launch on device {machine().device}"
                )
            return int(pointer.ptr).to_bytes(8, "little")
        if isinstance(arg, np.ndarray):
            if arg.size != 1:
                raise TypeError(
                    f"You are trying to pass a numpy.ndarray of shape {arg.shape} as a kernel parameter. Only "
                    "numpy.ndarrays of size one can be passed by value. If you meant to pass a pointer to "
                    "__global__ memory, you need to pass a cupy.ndarray instead."
                )
            return arg.tobytes()
        if isinstance(arg, np.generic):
            return arg.tobytes()
        if isinstance(arg, (bool, int, float, complex)):
            raise TypeError(
                f"{self.name}: argument {position} is a Python {type(arg).__name__}, which CuPy packs by its own "
                "type whatever the kernel declares; pass a NumPy scalar"
            )
        raise TypeError(f"Unsupported type {type(arg)}")


def _three(size: tuple[int, ...]) -> Dim3:
    x, y, z = (*(max(1, int(n)) for n in size), 1, 1)[:3]  # CuPy makes one of zero
    return x, y, z
