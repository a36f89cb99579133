"""The table in docs/frameworks.md: what the tests have shown of each framework, never typed.

python -m tests.frameworks.table REPORT...           writes shown.json and the table, from the reports of all lanes
python -m tests.frameworks.table --check REPORT...   fails where the lanes have shown something else

A report is what pytest writes with GRADCLIP_SHOWN=FILE (tests/conftest.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "frameworks.md"
SHOWN = HERE / "shown.json"
BEGIN, END = "<!-- python -m tests.frameworks.table: begin -->", "<!-- end -->"
COLUMNS = ("new arrays", "in place", "under its compiler", "16-bit", "sparse", "sharded")
NAMES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras 3",
    "paddle": "Paddle",
    "mlx": "MLX",
    "cupy": "CuPy",
    "array-api-strict": "array-api-strict",
    "dask": "dask.array",
    "ndonnx": "ndonnx",
}

Row = tuple[str, str, str, str]
"""Framework, column, state, version."""


def read(paths: Iterable[Path]) -> list[Row]:
    """All that some reports have, each once, in the order of the table."""
    rows = {tuple(row) for path in paths for row in json.loads(path.read_text(encoding="utf-8"))}
    found: list[Row] = [(str(f), str(c), str(s), str(v)) for f, c, s, v in rows]
    return sorted(found, key=lambda row: (list(NAMES).index(row[0]), COLUMNS.index(row[1]), row[2:]))


def drawn(rows: Iterable[Row]) -> str:
    """The table."""
    rows = list(rows)
    lines = ["| | version | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for framework, name in NAMES.items():
        here = [row for row in rows if row[0] == framework]
        if not here:
            continue
        versions = ", ".join(sorted({row[3] for row in here} - {""}))
        cells = [", ".join(sorted({row[2] for row in here if row[1] == column})) or "–" for column in COLUMNS]
        lines.append(f"| {name} | {versions} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def on_page() -> str:
    """The table as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN + "\n")[2].partition(END)[0]


def main(arguments: list[str]) -> int:
    """See above."""
    check = "--check" in arguments
    rows = read(Path(argument) for argument in arguments if argument != "--check")
    if check:
        shown, known = ({row[:3] for row in some} for some in (rows, read([SHOWN])))
        for row in sorted(shown ^ known):
            sys.stderr.write(f"{'is new' if row in shown else 'was not shown'}: {', '.join(row)}\n")
        return int(shown != known)
    SHOWN.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN + "\n")
    PAGE.write_text(f"{before}{BEGIN}\n{drawn(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
