"""One bug in one lane: ``python -m tests.gpu.bugs.trial ptx gate_ignored`` in a process of its own.

The last line is CLEAN, or CAUGHT and why. A bug that ends the process is caught too, see ``verdict``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

from tests.gpu.bugs.bench import open_bench
from tests.gpu.bugs.compiled import complaints
from tests.gpu.bugs.matrix import BUGS, EQUIVALENT
from tests.gpu.bugs.mutant import Bug, Lane, MutantEngine
from tests.gpu.bugs.small import run
from tests.gpu.cpu.engine import CpuEngine
from tests.gpu.cpu.flavours import sanitizer_environment
from tests.gpu.engine import Engine, KernelFault

ROOT = Path(__file__).parents[3]
_REPORT = re.compile(r"^(?:SUMMARY: .*|.*runtime error: .*)$", re.MULTILINE)
_SECONDS = 300


def engines(lane: Lane) -> list[Engine]:
    """What a lane runs the scenarios on, one after the other."""
    if lane == "order":
        return [
            CpuEngine("quick", order="reverse"),
            CpuEngine("quick", order="random", seed=3),
            CpuEngine("quick", order="jitter", seed=5),
        ]
    if lane == "ptx":
        from tests.gpu.ptx.engine import PtxEngine  # it needs NVRTC

        return [PtxEngine(90, seed=1)]
    if lane in ("asan", "tsan"):
        return [CpuEngine(lane)]
    return [CpuEngine("quick")]


def try_out(lane: Lane, bug: Bug | None, names: list[str]) -> str | None:
    """What the lane says of the bug; None if it is content."""
    if lane == "compiled":
        return next(complaints(bug, names if bug is None else [bug.unit]), None)
    for engine in engines(lane):
        bare = lane in ("asan", "tsan")
        try:
            with open_bench(MutantEngine(engine, bug), host_memory=bare, multiprocessors=1 if bare else 4) as bench:
                run(bench, names)
        except (AssertionError, KernelFault) as error:
            return f"{type(error).__name__}: {error}"
    return None


def start(lane: Lane, bug: str, names: str = "") -> str:
    """Run ``main`` in a process with what the lane needs. What it says: see ``verdict``."""
    environment = {**os.environ, **sanitizer_environment(lane if lane in ("asan", "tsan") else "plain")}
    paths = f"{ROOT}{os.pathsep}{ROOT / 'backends'}"
    command = [sys.executable, "-m", "tests.gpu.bugs.trial", lane, bug, *names.split()]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": paths}, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS
    )
    return verdict(done)


def verdict(done: subprocess.CompletedProcess[str]) -> str:
    """CLEAN, CAUGHT and by what, or ERROR: something that is not the lane's business."""
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith(("CLEAN", "CAUGHT ")):
        return last
    report = _REPORT.search(done.stderr)
    if report:
        return f"CAUGHT {report[0]}"
    if done.returncode in (-signal.SIGSEGV, -signal.SIGBUS):
        return "CAUGHT it ends the process: a signal"
    return f"ERROR status {done.returncode}: {done.stderr[-2000:]}"


def main(lane: str, name: str, *names: str) -> None:
    """``name`` "none": the kernels as they are."""
    bug = next((bug for bug in (*BUGS, *EQUIVALENT) if bug.name == name), None)
    if bug is None and name != "none":
        raise SystemExit(f"there is no bug {name}")
    said = try_out(cast(Lane, lane), bug, list(names) if bug is None else bug.scenarios.split())
    print("CLEAN" if said is None else "CAUGHT " + " ".join(said.split())[:400])


if __name__ == "__main__":
    main(*sys.argv[1:])
