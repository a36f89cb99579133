"""The GPU backend: CUDA C kernels, compiled and launched by CuPy."""

from gradclip_backends.cupy_raw.launch import CupyDriver
from gradclip_backends.gpu.backend import GpuBackend

BACKEND = GpuBackend("cupy_raw", CupyDriver())

__all__ = ["BACKEND"]
