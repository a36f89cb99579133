"""A stand-in for CuPy where there is no GPU, so that the code that launches kernels runs unchanged.

    with install(engine, devices=2, asynchronous=False, forget=["package.that.imports_cupy"]) as standin:
        import cupy
        ...
        assert standin.log.counts() == {"launch": 2, "alloc": 1, "sync": 0, "h2d": 0, "d2h": 0, "memset": 0}

Device memory is host memory, so engines run kernels on real addresses. Where a GPU would be silently wrong, this
raises. ``standin.faults`` breaks the machine on demand; ``torch_cuda`` and ``jax_cuda`` bring arrays of others.
"""

from __future__ import annotations

from tests.gpu.standin.log import Entry, Log
from tests.gpu.standin.machine import Faults, Machine
from tests.gpu.standin.modules import install

__all__ = ["Entry", "Faults", "Log", "Machine", "install"]
