"""How everything is timed: interleaved, warmed up, with quantiles, beside the memory's limit."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np

RESULTS = Path(__file__).parent / "results"


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Seconds of each call, ``repeats`` times in turn, after one round that is not counted."""
    seconds = np.empty((repeats, len(calls)))
    for call in calls.values():
        call()
    for repeat in range(repeats):
        for column, call in enumerate(calls.values()):
            start = time.perf_counter()
            call()
            seconds[repeat, column] = time.perf_counter() - start
    return {name: seconds[:, column] for column, name in enumerate(calls)}


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _read(x: Any) -> Any:
    """The simplest loop that reads memory: integers added up."""
    total = np.uint64(0)
    for i in range(x.size):
        total += x[i]
    return total


class ReadLimit:
    """Reads ``bytes_`` of memory with ``threads`` threads and does as little else as can be done."""

    def __init__(self, bytes_: int, threads: int) -> None:
        words = np.ones(bytes_ // 8, np.uint64)
        self.parts = np.array_split(words, threads)
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self) -> object:
        """One read of everything."""
        return sum(int(total) for total in self.pool.map(_read, self.parts))


def append(name: str, rows: list[dict[str, Any]]) -> Path:
    """Add rows to ``results/NAME.csv``, each with its machine, versions, commit and date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    context = {
        "date": datetime.date.today().isoformat(),
        "commit": commit + ("+" if dirty else ""),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*context, *rows[0]])
        if new:
            writer.writeheader()
        writer.writerows({**context, **row} for row in rows)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
