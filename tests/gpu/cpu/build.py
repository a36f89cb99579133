"""Builds CUDA C with g++: finds the kernels, adds the entries that Python calls, and keeps what it has built."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.gpu.cpu.flavours import FLAVOURS
from tests.gpu.engine import CompileFault

HEADERS = Path(__file__).with_name("headers")

# No contraction: a fused multiply-add has other bits. No GNU_UNIQUE: two modules would share the shared memory of
# their templates. Hidden: so would two modules with the same names.
_FLAGS = (
    "-ffp-contract=off",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-fPIC",
    "-w",
    "-DCUDA_ON_CPU=1",
    "-iquote",
    str(HEADERS),
)

_NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_BOUNDS = rf"(?:__launch_bounds__\s*\(((?:[^(),]|{_NESTED})+)(?:,(?:[^()]|{_NESTED})*)?\)\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')


def cache_folder() -> Path:
    """Where modules are kept, from one run to the next."""
    chosen = os.environ.get("GRADCLIP_GPU_CACHE")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"gradclip-gpu-{os.getuid()}"


def build(source: str, options: Sequence[str], flavour: str) -> Path:
    """A module with the source's kernels; an old one if nothing has changed."""
    flags = (*_compiler_options(options), *_FLAGS, *FLAVOURS[flavour].flags)
    text = f'#line 1 "kernel.cu"\n{source}\n'
    expanded = _gxx([*flags, "-E", "-x", "c++", "-"], text)  # for the sake of what it includes
    key = hashlib.sha256(repr((_tools(), flags, text, expanded)).encode()).hexdigest()[:24]
    folder = cache_folder() / f"{flavour}-{key}"
    module = folder / "kernels.so"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    import fcntl  # not everywhere; the tests that come here know

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed; a second process finds the module made
        if not module.exists():
            _build_in(folder, text, _kernels(expanded), flags)
    return module


def _build_in(folder: Path, text: str, kernels: list[tuple[str, str]], flags: tuple[str, ...]) -> None:
    main, unit, unfinished = folder / "kernels.cpp", folder / "kernels.o", folder / "unfinished.so"
    entries = "".join(f"    KERNEL_ENTRY({name}, {bound}),\n" for name, bound in kernels)
    main.write_text(
        f'#include "cuda.h"\n{text}#line 1 "entries"\n'
        f"static const cuda_on_cpu::Kernel kernel_table[] = {{\n{entries}    {{}}}};\nEXPORT_KERNELS(kernel_table)\n"
    )
    # In two steps, so that gcov's notes and counts lie beside the unit under its name.
    _gxx([*flags, "-c", str(main), "-o", str(unit)])
    _gxx([*flags, "-shared", str(unit), "-o", str(unfinished), "-lpthread"])
    unfinished.replace(folder / "kernels.so")


def _kernels(expanded: str) -> list[tuple[str, str]]:
    """The kernels' names and the most threads a block may have, where macros are expanded."""
    without_lines = re.sub(r"^# .*$", "", expanded, flags=re.MULTILINE)
    return [(match[3], match[1] or match[2] or "1024") for match in _KERNEL.finditer(without_lines)]


def _compiler_options(options: Sequence[str]) -> list[str]:
    """NVRTC's options that mean the same to g++: definitions, folders of headers, the standard."""
    chosen = ["-std=c++17"]
    for option in options:
        name, _, value = option.lstrip("-").partition("=")
        if name == "std":
            chosen.append(f"-std={value}")
        elif name in ("define-macro", "include-path"):
            chosen.append(("-D" if name == "define-macro" else "-I") + value)
        elif re.match(r"-[DUI]\S", option):
            chosen.append(option)
    return chosen


def _gxx(arguments: list[str], text: str = "") -> str:
    done = subprocess.run(["g++", *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise CompileFault(done.stderr)
    return done.stdout


@cache
def _tools() -> str:
    """What else a module depends on: the headers, the compiler, this file."""
    parts = [_gxx(["--version"])]
    parts += [path.read_text() for path in (*sorted(HEADERS.glob("*.h")), Path(__file__))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
