"""Kernels as PTX without a driver: Numba's own compilation, told an architecture where it would ask the device."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from gradclip_backends.gpu.layout import THREADS
from gradclip_backends.numba_cuda.kernels import KERNELS
from numba import cuda
from numba.cuda import dispatcher

ARCHITECTURES = ((7, 5), (8, 0), (8, 9), (9, 0), (12, 0))


@functools.cache
def ptx_of(name: str, architecture: tuple[int, int] = (9, 0)) -> str:
    """What NVVM makes of a kernel."""
    kernel = KERNELS[name]
    asked: Any = dispatcher.get_current_device
    # Functions of the device are compiled by their dispatcher, which asks; they do not depend on the answer.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=architecture)
    try:
        text, _ = cuda.compile(
            kernel.function.py_func,
            kernel.types(),
            cc=architecture,
            device=False,
            output="ptx",
            abi="numba",
            launch_bounds=(THREADS, kernel.function.blocks),
        )
    finally:
        dispatcher.get_current_device = asked
    return str(text)
