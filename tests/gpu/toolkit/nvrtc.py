"""NVRTC from its pip wheel, through ctypes: CUDA C to PTX or to machine code, without a driver and without CuPy.

CuPy's own way to NVRTC asks the device for its architecture even where one is given, so that it cannot be used here.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.gpu.engine import CompileFault

PACKAGES = "nvidia-cuda-nvrtc, nvidia-cuda-runtime and nvidia-cuda-cccl"
"""The pip packages of CUDA 13 that hold the library and the headers."""


def install_root() -> Path:
    """The folder with ``lib`` and ``include``, as CUDA 13's wheels lay it out. ``FileNotFoundError`` without them."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        root = Path(folder) / "cu13"
        if any(root.glob("lib/libnvrtc.so.*")) and (root / "include" / "cuda_fp16.h").is_file():
            return root
    raise FileNotFoundError(f"no CUDA 13 toolkit among the installed wheels: pip install {PACKAGES}")


def include_dirs() -> list[Path]:
    """Where CUDA's headers are: those of the runtime, and those of CUB and cooperative groups if installed."""
    include = install_root() / "include"
    return [folder for folder in (include, include / "cccl") if folder.is_dir()]


@functools.cache
def _library() -> ctypes.CDLL:
    other = os.environ.get("GRADCLIP_NVRTC")  # a folder with another version's library
    folder = Path(other) if other else install_root() / "lib"
    for builtins in sorted(folder.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC opens it by its bare name, on no path
    return ctypes.CDLL(str(min(folder.glob("libnvrtc.so.*"))))


def version() -> tuple[int, int]:
    """Of the compiler."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


def architectures() -> list[int]:
    """What this NVRTC compiles for: 75, 80, ..."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    archs = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(archs), "nvrtcGetSupportedArchs")
    return sorted(archs)


def compile(source: str, options: Sequence[str], kind: Literal["ptx", "cubin"]) -> tuple[bytes, str]:
    """What the compiler made of ``source``, and its log. Raises ``CompileFault`` with the log.

    The include folders are added to ``options``. ``kind`` "cubin" needs ``-arch=sm_..`` among them, "ptx"
    ``-arch=compute_..``. PTX comes without C's closing zero byte.
    """
    lib = _library()
    program = ctypes.c_void_p()
    status = lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    _check(status, "nvrtcCreateProgram")
    try:
        given = [*options, *(f"-I{folder}" for folder in include_dirs())]
        array = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        status = lib.nvrtcCompileProgram(program, len(given), array)
        log = _fetch(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if status:
            raise CompileFault(log or f"NVRTC gave status {status} and no log, options {given}")
        if kind == "ptx":
            return _fetch(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX, program).rstrip(b"\0"), log
        return _fetch(lib.nvrtcGetCUBINSize, lib.nvrtcGetCUBIN, program), log
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(get_size: ctypes._NamedFuncPointer, get: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(get_size(program, ctypes.byref(size)), "the size of an output")
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer), "an output")
    return buffer.raw


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"NVRTC: {what} gave status {status}")
