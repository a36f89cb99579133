"""The ways of building: plain, quickly for what runs once, with sanitizers, and counting the lines that run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Flavour:
    flags: tuple[str, ...]
    runtimes: tuple[str, ...] = ()
    """Libraries that have to be in the process before Python is."""
    entry: str = ""
    """A function of the first runtime, to tell whether it is there."""


FLAVOURS = {
    "plain": Flavour(("-O2", "-g1")),
    "quick": Flavour(("-O0",)),
    "asan": Flavour(
        ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
        ("libasan.so", "libubsan.so"),
        "__asan_init",
    ),
    "tsan": Flavour(("-O0", "-g1", "-fsanitize=thread"), ("libtsan.so",), "__tsan_init"),
    "coverage": Flavour(("-O0", "-g", "--coverage", "-fprofile-update=atomic", "-DCUDA_ON_CPU_COVERAGE")),
}


@cache
def _library(name: str) -> str:
    asked = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def has_runtimes(flavour: str) -> bool:
    """Whether g++ brings the libraries that this flavour needs."""
    # g++ answers with the bare name where it has no such file.
    return all(Path(_library(name)).is_absolute() for name in FLAVOURS[flavour].runtimes)


def sanitizer_environment(flavour: str) -> dict[str, str]:
    """What to add to the environment of a Python that runs kernels of this flavour: a process of its own.

    The first finding ends the process, with its report on stderr.
    """
    runtimes = FLAVOURS[flavour].runtimes
    if not runtimes:
        return {}
    return {
        "LD_PRELOAD": " ".join(_library(name) for name in runtimes),
        # Else small objects share one block of malloc's, without red zones between them.
        "PYTHONMALLOC": "malloc",
        # Threads that TSan would have to follow, for nothing.
        "OPENBLAS_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:report_thread_leaks=0",
    }
