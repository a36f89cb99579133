"""What every benchmark shares: its settings, two processors, and where the figures go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradclip_core.cli import bench_machine
from gradclip_core.cli.bench_csv import Context, read, write
from gradclip_core.cli.bench_timing import Row
from gradclip_core.cli.bench_works import Frameworks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 21


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    peers: Frameworks
    threads: int = 2
    rounds: int = ROUNDS
    quick: bool = False
    """Small sizes and few rounds, to see that everything runs."""
    large: bool = False
    """The very large too: ``GRADCLIP_BENCH_LARGE=1``."""

    @property
    def torch(self) -> Frameworks:
        """Without the others: where JAX would compile for minutes, or does nothing else than in float32."""
        return Frameworks(torch=self.peers.torch)

    def fits(self, bytes_: int) -> bool:
        """Whether so many bytes can be taken, and some are left."""
        return 1.2 * bytes_ < bench_machine.available_memory()


def confine(threads: int, argv: Sequence[str]) -> None:
    """Leave this process no more processors than ``threads``, and begin again: libraries count them when they load.

    JAX takes no number of threads at all, and NumPy's BLAS has started its own before a line of ours runs.
    """
    if not hasattr(os, "sched_setaffinity"):  # macOS, Windows: the variables alone
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        return
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > threads:
        os.sched_setaffinity(0, allowed[:threads])
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *argv])


def settle(threads: int, rounds: int | None, quick: bool) -> tuple[Settings, list[str]]:
    """The settings of a run, and a sentence for each framework that is not there."""
    os.environ["GRADCLIP_NUM_THREADS"] = str(threads)
    peers, missing = bench_machine.frameworks(threads)
    large = os.environ.get("GRADCLIP_BENCH_LARGE") == "1"
    return Settings(peers, threads, rounds or (5 if quick else ROUNDS), quick, large), missing


def append(name: str, rows: Sequence[Row], *, machine: str = "", packages: Sequence[str] = ()) -> Path:
    """Add rows to ``results/NAME.csv``, each with its date, commit, machine and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    new = not path.exists()
    context = Context.now(commit())
    if machine:
        context = replace(context, machine=f"{machine}, {context.machine}")
    if packages:
        context = replace(context, versions=bench_machine.versions(("numpy", "numba", *packages)))
    with path.open("a", newline="", encoding="utf-8") as file:
        write(file, context, rows, header=new)
    return path


def latest(folder: Path = RESULTS) -> list[tuple[Context, Row]]:
    """Of everything that was ever timed, the last figures."""
    found: dict[object, tuple[Context, Row]] = {}
    for path in sorted(folder.glob("*.csv")):
        for context, row in read(path):
            found.pop((row.case, row.who), None)
            found[row.case, row.who] = context, row
    return list(found.values())


def commit() -> str:
    """The checkout's, with a plus where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!benchmarks/figures")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
