"""Marks for tests that need NVIDIA's wheels, or Numba's CUDA target. CI has a lane in which none may skip."""

from __future__ import annotations

import importlib.util

import pytest

from tests.gpu.toolkit.nvrtc import PACKAGES, install_root


def _has_toolkit() -> bool:
    try:
        install_root()
    except FileNotFoundError:
        return False
    return True


def _has_numba_cuda() -> bool:
    return importlib.util.find_spec("numba") is not None and importlib.util.find_spec("numba_cuda") is not None


needs_nvrtc = pytest.mark.skipif(not _has_toolkit(), reason=f"needs NVRTC: pip install {PACKAGES}")
needs_numba_cuda = pytest.mark.skipif(
    not (_has_toolkit() and _has_numba_cuda()), reason="needs Numba's CUDA target: pip install numba-cuda[cu13]"
)
