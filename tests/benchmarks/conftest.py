"""The benchmarks need more than the library does: where it is not installed, nothing here is collected."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = ("matplotlib", "numba", "rich", "typer")

collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
