"""Every file of kernels as NVRTC compiles it for every architecture, with the options that it has in production.

Compiling all of them takes minutes of a core, so that what has been compiled is kept, like g++'s modules.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import gradclip_backends

from tests.gpu.cpu.build import cache_folder
from tests.gpu.toolkit import nvrtc
from tests.gpu.toolkit.sass import Kernel, Usage, disassemble, kernels, usage

PRINCIPAL = (75, 80, 86, 89, 90, 100, 120)
"""Turing to Blackwell, in data centres and outside: those whose machine code is worth comparing."""
OLDEST = 75


@dataclass(frozen=True)
class Compiled:
    """What the compiler said, and the disassembly."""

    log: str
    text: str

    def usage(self) -> dict[str, Usage]:
        return usage(self.log)

    def kernels(self) -> dict[str, Kernel]:
        return kernels(self.text)


def kernel_folder() -> Path:
    """The kernels' sources."""
    return Path(gradclip_backends.__path__[0]) / "cupy_raw" / "kernels"


@functools.cache
def sources() -> ModuleType:
    """``cupy_raw/sources.py`` without its package, whose import needs CuPy."""
    folder = kernel_folder().parent
    spec = importlib.util.spec_from_file_location(
        "gradclip_sources_alone", folder / "sources.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # it looks for its files through its own name
    spec.loader.exec_module(module)
    return module


def files() -> list[str]:
    """measure.cu, apply.cu, ..."""
    return sorted(set(sources().FILES.values()))


def architectures() -> list[int]:
    """All that this NVRTC compiles for where nothing may be left out, as in CI; otherwise the principal ones."""
    known = [arch for arch in nvrtc.architectures() if arch >= OLDEST]
    return known if os.environ.get("GRADCLIP_NO_SKIPS") else [arch for arch in PRINCIPAL if arch in known]


def options() -> list[str]:
    """The backend's, and what CuPy appends to them."""
    return [*sources().OPTIONS, "-ftz=true", "--device-as-default-execution-space"]


def compiled(file: str, arch: int) -> Compiled:
    """Machine code for an architecture, as CuPy has it compiled."""
    return _start(file, arch).result()


def start(pairs: Iterable[tuple[str, int]]) -> None:
    """Begin to compile what ``compiled`` will be asked for, on every core.

    Not where pytest-xdist has a process for each: every one of them would compile everything.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for file, arch in pairs:
            _start(file, arch)


def ptx(file: str, arch: int) -> str:
    """The compiler's output before the assembler."""
    return assembly(sources().source(file), (*options(), f"-arch=compute_{arch}"))


@functools.cache
def assembly(source: str, given: tuple[str, ...]) -> str:
    """PTX, compiled or found. Raises ``CompileFault``."""

    def make(source: str, given: Sequence[str], folder: Path) -> None:
        (folder / "ptx").write_bytes(nvrtc.compile(source, given, "ptx")[0])

    return (_made(source, given, make) / "ptx").read_text(encoding="utf-8")


@functools.cache
def _start(file: str, arch: int) -> Future[Compiled]:
    return _pool().submit(assemble, sources().source(file), (*options(), f"-arch=sm_{arch}"))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())  # NVRTC and nvdisasm run outside of Python's lock


def assemble(source: str, given: Sequence[str]) -> Compiled:
    """Compile and disassemble, or find what an earlier run has left."""

    def make(source: str, given: Sequence[str], folder: Path) -> None:
        cubin, log = nvrtc.compile(source, given, "cubin")
        (folder / "log").write_text(log, encoding="utf-8")
        (folder / "text").write_text(disassemble(cubin), encoding="utf-8")

    folder = _made(source, (*given, "--ptxas-options=-v"), make)
    return Compiled((folder / "log").read_text(encoding="utf-8"), (folder / "text").read_text(encoding="utf-8"))


def _made(source: str, given: Sequence[str], make: Callable[[str, Sequence[str], Path], None]) -> Path:
    """The folder that ``make`` has filled, now or in an earlier run."""
    import fcntl  # not everywhere; the tests that come here have NVIDIA's tools for Linux

    key = hashlib.sha256(repr((nvrtc.version(), list(given), source)).encode()).hexdigest()[:24]
    folder = cache_folder() / f"nvrtc-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed; a second process finds it made
        if not (folder / "made").exists():
            make(source, given, folder)
            (folder / "made").touch()
    return folder
