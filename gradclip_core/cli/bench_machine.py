"""Where it is timed: processor, memory, threads, versions, and the frameworks that are there."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from pathlib import Path
from typing import Any

from gradclip_core.cli.bench_works import Frameworks

_PACKAGES = ("numpy", "numba", "torch", "jax", "optax", "timm")
_UNKNOWN = 4 << 30
"""Bytes of memory taken for available where the system does not tell."""


def machine() -> str:
    """Processor, cores and system, in one line."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions(packages: tuple[str, ...] = _PACKAGES) -> str:
    """Of Python and of what is installed, as ``name version``, separated by commas."""
    found = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def available_memory() -> int:
    """Bytes that may be taken: the machine's, or the container's where that is less."""
    room = [_UNKNOWN]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        room = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")] or room
        group = Path("/sys/fs/cgroup")
        room.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux; or no limit, which is the word "max"
        pass
    return max(0, min(room))


def threads() -> int:
    """As many as our own kernels take: ``GRADCLIP_NUM_THREADS``, or the processors of this process."""
    try:
        count: int = importlib.import_module("gradclip_backends.numba_cpu.pool").threads()
    except ImportError:
        return os.cpu_count() or 1
    return count


def frameworks(threads: int) -> tuple[Frameworks, list[str]]:
    """What can be imported here, and a sentence for whatever cannot."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX would take the accelerator, and these are the host's times
    found: dict[str, Any] = {}
    missing = []
    for name in ("torch", "jax", "optax"):
        found[name], why = imported(name)
        if why:
            missing.append(why)
    if found["torch"] is not None:
        found["torch"].set_num_threads(threads)
    if found["jax"] is None:
        found["optax"] = None
    return Frameworks(**found), missing


def imported(name: str) -> tuple[Any, str]:
    """The module; or None, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name), ""
    except Exception as error:  # a broken framework is no reason to time nothing
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None, f"without {name}, which is not installed"
        first = str(error).partition("\n")[0]
        return None, f"without {name}, which cannot be imported: {type(error).__name__}: {first}"
