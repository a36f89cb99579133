"""Memory that a clipped step takes beyond the gradients, a GPT-2 124M's: the peak of a process of its own.

Linux keeps the peak of a process's resident memory and lets it be set back, so that it is that of one
call: neither imports nor compilers nor the gradients themselves are in it.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradclip_core as gc
from benchmarks.bench_global_norm import CLIPPED
from benchmarks.harness import ROOT, Settings, settle
from benchmarks.shapes import elements, gpt2
from gradclip_core.cli.bench_timing import OURS, Call, Row, shrinking
from gradclip_core.cli.bench_works import Frameworks, gradients, optax_clip

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_WARM_UP, _CALLS = 2, 5
_ITEMSIZES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class MemoryCase:
    """Like ``Case``, in processes: one for each of whom it asks."""

    benchmark: str
    work: str
    data: str
    dtype: str
    whom: tuple[str, ...]
    quick: bool

    @property
    def rounds(self) -> int:
        """What the progress bar counts."""
        return len(self.whom)

    def rows(self, threads: int, after_round: Callable[[], None] = lambda: None) -> list[Row]:
        """One for each, of its peak alone."""
        made = []
        for who in self.whom:
            words = ["-m", "benchmarks.bench_memory", who, self.dtype, str(threads), str(int(self.quick))]
            same = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the code that this process has
            done = subprocess.run(
                [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=same, check=False
            )
            if done.returncode:
                raise RuntimeError(f"measuring the memory of {who} failed:\n{done.stderr}")
            shapes = _shapes(self.quick)
            moved = 3 * _ITEMSIZES[self.dtype] * elements(shapes)
            peak = float(done.stdout.split()[-1])
            made.append(
                Row(self.benchmark, self.work, self.data, who, len(shapes), moved, threads, _CALLS, peak_mb=peak)
            )
            after_round()
        return made


def cases(settings: Settings) -> list[MemoryCase]:
    """Linux alone tells."""
    if not _CLEAR.exists():
        return []
    peers = settings.peers
    theirs = ("torch",) if peers.torch is not None else ()
    compiled = ("optax, jit",) if peers.optax is not None else ()
    return [
        MemoryCase("memory", CLIPPED, f"GPT-2 124M, {dtype}", dtype, whom, settings.quick)
        for dtype, whom in (
            ("float32", (OURS, "gradclip, new arrays", *theirs, *compiled)),
            ("float16", (OURS, "gradclip, new arrays", *theirs)),
        )
    ]


def _shapes(quick: bool) -> list[tuple[int, ...]]:
    return gpt2(width=64) if quick else gpt2()


def peak(who: str, dtype: str, peers: Frameworks, quick: bool) -> float:
    """In 10^6 bytes, the median of some calls: JAX gives memory back when it likes."""
    grads = gradients(_shapes(quick), dtype, peers.torch)
    bounds = shrinking(gc.global_norm(grads.arrays))
    calls: dict[str, Callable[[], Call]] = {
        OURS: lambda: lambda: gc.clip_by_global_norm_(grads.arrays, next(bounds)),
        "gradclip, new arrays": lambda: lambda: gc.clip_by_global_norm(grads.arrays, next(bounds)),
        "torch": lambda: lambda: peers.torch.nn.utils.clip_grad_norm_(grads.params, next(bounds)),
        "optax, jit": lambda: optax_clip(peers, grads, next(bounds)),
    }
    call = calls[who]()
    for _ in range(_WARM_UP):
        call()
    return statistics.median(_peak_of(call) for _ in range(_CALLS))


def _peak_of(call: Call) -> float:
    ctypes.CDLL(None).malloc_trim(0)  # so that memory that was kept from the last call counts again
    _CLEAR.write_text(_RESET_PEAK)
    before = _kilobytes("VmRSS")
    kept = call()
    after = _kilobytes("VmHWM")
    del kept
    return 1024e-6 * max(0, after - before)


def _kilobytes(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    asked, of, processors, small = sys.argv[1:]
    settings, _ = settle(int(processors), None, small == "1")
    print(peak(asked, of, settings.peers, settings.quick))
