"""Which lines of a kernel's source have run: gcov's counts for a module of flavour "coverage"."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections import defaultdict
from pathlib import Path


def line_counts(module: Path) -> dict[str, dict[int, int]]:
    """File as ``#line`` names it -> line -> how often it ran, in all processes since ``forget``."""
    _write(module)
    command = ["gcov", "--json-format", "--stdout", "kernels.o"]
    done = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=True)
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for file in json.loads(done.stdout)["files"]:
        for line in file["lines"]:
            # A line has one entry for each instance of a template that it is in.
            number, of_file = line["line_number"], counts[file["file"]]
            of_file[number] = of_file.get(number, 0) + line["count"]
    return dict(counts)


def forget(module: Path) -> None:
    """Start counting anew."""
    _write(module)
    module.with_suffix(".gcda").unlink(missing_ok=True)


def _write(module: Path) -> None:
    """Add this process's counts to those on disk; it would otherwise do so when it ends."""
    ctypes.CDLL(str(module)).cuda_on_cpu_write_counts()
