"""Why there is no device for these tests, in a sentence. Nothing of CUDA is started before a test asks."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import pytest


@functools.cache
def _against_cupy() -> str:
    try:
        cupy = importlib.import_module("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # whatever a broken install or driver raises
        return f"CuPy finds no CUDA device: {type(error).__name__}: {error}"
    return "" if count else "CuPy finds no CUDA device"


@functools.cache
def _against_torch() -> str:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    torch = importlib.import_module("torch")
    return "" if torch.cuda.is_available() else "PyTorch finds no CUDA device"


@functools.cache
def _against_numba() -> str:
    backend = importlib.import_module("gradclip_backends.numba_cuda").BACKEND
    return "; ".join(backend.driver.unavailable())


def cupy_with_device() -> Any:
    """CuPy, or the test is skipped."""
    return _or_skip(_against_cupy, "cupy")


def torch_with_device() -> Any:
    """PyTorch, or the test is skipped."""
    return _or_skip(_against_torch, "torch")


def numba_backend() -> Any:
    """The backend ``numba_cuda``, or the test is skipped."""
    return _or_skip(_against_numba, "gradclip_backends.numba_cuda").BACKEND


def several_devices(cupy: Any) -> None:
    """Skip where there is one."""
    count = cupy.cuda.runtime.getDeviceCount()
    if count < 2:
        pytest.skip(f"needs two devices, and there is {count}")


def memory(cupy: Any, nbytes: int) -> None:
    """Skip where a device has not so much to spare."""
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < nbytes:
        pytest.skip(f"needs {nbytes / 2**30:.1f} GiB of device memory, and {free / 2**30:.1f} GiB are free")


def sanitizer() -> str:
    """The path of compute-sanitizer, or the test is skipped."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        pytest.skip("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    return path


def _or_skip(against: Callable[[], str], module: str) -> Any:
    if reason := against():
        pytest.skip(reason)
    return importlib.import_module(module)
