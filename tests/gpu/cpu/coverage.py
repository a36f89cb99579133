"""Which lines and branches of a kernel's source have run: gcov's counts for a module of flavour "coverage"."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

Branches = dict[str, dict[int, dict[int, list[int]]]]
"""File -> line -> how many branches it compiles to -> how often each was taken."""


def line_counts(module: Path) -> dict[str, dict[int, int]]:
    """File as ``#line`` names it -> line -> how often it ran, in all processes since ``forget``."""
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for file in _report(module):
        for line in file["lines"]:
            # A line has one entry for each instance of a template that it is in.
            number, of_file = line["line_number"], counts[file["file"]]
            of_file[number] = of_file.get(number, 0) + line["count"]
    return dict(counts)


def branch_counts(module: Path) -> Branches:
    """What became of each condition; the instances of a template count together where they have as many branches.

    Branches to where exceptions are handled are left out.
    """
    counts: Branches = defaultdict(lambda: defaultdict(dict))
    for file in _report(module):
        for line in file["lines"]:
            taken = [branch["count"] for branch in line["branches"] if not branch["throw"]]
            # gcov gives functions of a template one by one, but lambdas in it as one, end to end.
            instances = 1 if "function_name" in line else _innermost(file["functions"], line["line_number"])
            width = len(taken) // instances if len(taken) % instances == 0 else len(taken)
            if not width:
                continue
            known = counts[file["file"]][line["line_number"]].setdefault(width, [0] * width)
            for i, count in enumerate(taken):
                known[i % width] += count
    return counts


def _innermost(functions: list[dict[str, Any]], line: int) -> int:
    """How many functions begin at the last place, up to this line, from which one reaches over it."""
    around = [
        (function["start_line"], function["start_column"])
        for function in functions
        if function["start_line"] <= line <= function["end_line"]
    ]
    return max(1, around.count(max(around))) if around else 1


def _report(module: Path) -> list[dict[str, Any]]:
    _write(module)
    command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", "kernels.o"]
    done = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=True)
    files: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    return files


def forget(module: Path) -> None:
    """Start counting anew."""
    _write(module)
    module.with_suffix(".gcda").unlink(missing_ok=True)


def _write(module: Path) -> None:
    """Add this process's counts to those on disk; it would otherwise do so when it ends."""
    ctypes.CDLL(str(module)).cuda_on_cpu_write_counts()
