"""Short ways to run a kernel, here or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.gpu.cpu.engine import CpuEngine, CpuProgram, FlavourName
from tests.gpu.cpu.flavours import sanitizer_environment

ROOT = Path(__file__).parents[3]


def compile_here(source: str, **engine: Any) -> CpuProgram:
    return CpuEngine(**engine).compile(source, ())


def run(program: CpuProgram, kernel: str, blocks: int, threads: int, *args: Any) -> None:
    """Launch in one dimension; an array is passed as its address, a scalar as its bytes, bytes as they are."""
    packed = [_pack(arg) for arg in args]
    program.launch(kernel, (blocks, 1, 1), (threads, 1, 1), packed, [])


def _pack(arg: Any) -> bytes:
    if isinstance(arg, bytes):
        return arg
    return (np.uint64(arg.ctypes.data) if isinstance(arg, np.ndarray) else arg).tobytes()


def run_elsewhere(flavour: FlavourName, source: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that has the flavour's runtimes; ``program`` there holds the source's kernels."""
    text = (
        "import numpy as np\nfrom tests.gpu.cpu.helpers import compile_here, run\n"
        f"program = compile_here({source!r}, flavour={flavour!r})\n{code}\n"
    )
    environment = {**os.environ, **sanitizer_environment(flavour), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", text], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
