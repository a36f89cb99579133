"""The CPU backend: Numba kernels over a table of pointers, on a small thread pool of our own."""

from gradclip_backends.numba_cpu.backend import BACKEND

__all__ = ["BACKEND"]
