"""The GPU backend without CuPy: the kernels of ``cupy_raw`` in Python, by Numba, with the same bits."""

from gradclip_backends.gpu.backend import GpuBackend
from gradclip_backends.numba_cuda.driver import NumbaDriver

BACKEND = GpuBackend("numba_cuda", NumbaDriver())

__all__ = ["BACKEND"]
