"""What Numba and CUDA raise, as errors of this library, and why CUDA cannot start."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradclip_backends.gpu.driver import Queue
from gradclip_core.errors import BackendError

_NO_DRIVER = "driver library cannot be found"


def reasons_against_start() -> list[str]:
    """Why Numba cannot use a device here, each a sentence. Asked again, it knows the answer."""
    try:
        return _reasons_against_start()
    except Exception as error:  # a broken install fails in any way it likes
        return [f"Numba's CUDA target does not start ({_first_line(error)})"]


def _reasons_against_start() -> list[str]:
    from numba import config

    if config.ENABLE_CUDASIM:
        return ["NUMBA_ENABLE_CUDASIM=1 has Numba simulate a device, which has no memory of its own"]
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.cudadrv.driver import driver

    try:
        started = driver.is_available
    except ImportError as error:  # CudaSupportError is one
        return [why_not_started(_first_line(error))]
    if not started:
        return [why_not_started(" ".join(str(driver.initialization_error).split()))]
    reasons = []
    if not driver.get_device_count():
        reasons.append("CUDA finds no device: there is none, or CUDA_VISIBLE_DEVICES hides it")
    if not nvvm.is_available():
        reasons.append("Numba does not find NVVM, its compiler: pip install 'numba-cuda[cu13]', or [cu12]")
    return reasons + _too_old(driver.get_version())


def _too_old(version: tuple[int, int]) -> list[str]:
    """Machine code of a CUDA release runs on drivers of that major version and newer ones."""
    major = int(importlib.import_module("cuda.bindings").__version__.partition(".")[0])
    if version[0] >= major:
        return []
    return [
        f"the NVIDIA driver is one for CUDA {version[0]}.{version[1]}, and the CUDA that Numba has here is {major}: "
        f"install a newer driver, or pip install 'numba-cuda[cu{version[0]}]'"
    ]


def why_not_started(said: str) -> str:
    """What CUDA's error means for somebody who has arrays on a device, or thinks so."""
    if _NO_DRIVER in said:
        return "there is no NVIDIA driver on this machine: no libcuda"
    if "NO_DEVICE" in said:
        return "CUDA finds no device: there is none, or CUDA_VISIBLE_DEVICES hides it"
    if "NUMBA_DISABLE_CUDA" in said:
        return "NUMBA_DISABLE_CUDA=1 is set, and Numba does not look for a device"
    return f"CUDA does not start ({said})"


@contextmanager
def failing_as(what: str, queue: Queue | None = None) -> Iterator[None]:
    """Whatever is raised here is a ``BackendError`` outside: Numba, NVVM, the linker and CUDA have families each."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        asked = f"numba_cuda, {what}" + (f" on cuda:{queue.device}" if queue else "")
        seen, cure = _seen_and_cure(error, what, queue)
        raise BackendError(asked, seen, cure) from error


def _seen_and_cure(error: Exception, what: str, queue: Queue | None) -> tuple[str, str]:
    said = _first_line(error)
    if _NO_DRIVER in said:
        return why_not_started(said), "Install NVIDIA's driver, or pass arrays that are in host memory"
    if "OUT_OF_MEMORY" in said:
        cure = "Free memory on the device; gradclip-core needs some 40 bytes for 4096 elements"
        return f"the device is out of memory ({said})", cure
    if "CAPTURE" in said:
        cure = "Clip once with the same gradients, on this stream, before capturing: that allocates and compiles"
        return f"CUDA says {said}", cure
    if "INVALID_HANDLE" in said or "INVALID_CONTEXT" in said or "RESOURCE_HANDLE" in said:
        device = queue.device if queue else 0
        return f"CUDA says {said}", f"The stream is not one of cuda:{device}: make the array's device the current one"
    if what.startswith("compiling"):
        cure = "This is a bug of gradclip-core or an unknown architecture: pass backend='cupy_raw', and report it"
        return f"the kernel does not compile ({said})", cure
    return f"CUDA says {said}", "An earlier kernel may have failed; CUDA_LAUNCH_BLOCKING=1 shows where"


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Numba's sentence about the driver begins with a line that says nothing.
    told = [line for line in lines if line != "Error at driver init:"] or lines or [type(error).__name__]
    return told[0].rstrip(".:")
