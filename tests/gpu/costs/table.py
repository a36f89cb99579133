"""The tables of docs/gpu.md, made anew: ``python -m tests.gpu.costs`` prints them."""

from __future__ import annotations

import contextlib
import io
import runpy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.gpu.costs.count import DTYPES, RULES, Cost, costs
from tests.gpu.costs.extras import extras
from tests.gpu.costs.model import PREDICTED, predictions
from tests.gpu.costs.refused import refusals

DOCUMENT = Path(__file__).parents[3] / "docs" / "gpu.md"
UNITS_OF = ("float16", "bfloat16", "float32", "float64")
PIPES = Path(__file__).parents[1] / "toolkit" / "pipes.py"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def passes() -> str:
    """A row for each rule, and for those dtypes that cost alike."""
    found = costs()
    rows = []
    for rule in RULES:
        alike: dict[tuple[Cost, Cost], list[str]] = {}
        for dtype in DTYPES:
            alike.setdefault((found[rule, dtype, False], found[rule, dtype, True]), []).append(dtype)
        for (unclipped, clipped), names in alike.items():
            assert unclipped.kernels == clipped.kernels, "what is launched must not depend on values"
            read = f"{unclipped.read:g}" + (f", weights {unclipped.weights:g}" if unclipped.weights else "")
            workspace = f"{unclipped.workspace:,} / {clipped.workspace:,}"
            moved = [read, f"{unclipped.written:g}", f"{clipped.read:g}", f"{clipped.written:g}", workspace]
            asked = [unclipped.launches, unclipped.memsets, unclipped.waits, unclipped.allocations]
            rows.append([rule, ", ".join(names), *moved, *asked])
    header = ["rule", "dtype", "read, unclipped", "written", "read, clipped", "written", "workspace bytes"]
    return markdown([*header, "launches", "memsets", "waits", "allocations"], rows)


def others() -> str:
    """A row for each situation."""
    kinds = ("launch", "memset", "sync", "d2h", "h2d", "alloc")
    rows = [[name, *(counts[kind] for kind in kinds)] for name, counts in extras().items()]
    header = ["float32, once warm", "launches", "memsets", "waits", "copies to the host", "from it", "allocations"]
    return markdown(header, rows)


def predicted() -> str:
    """A row for each way of clipping, and for those dtypes that cost alike."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for dtype, *cells in predictions():
        alike.setdefault(tuple(cells), []).append(str(dtype))
    return markdown(PREDICTED, ([", ".join(dtypes), *cells] for cells, dtypes in alike.items()))


def refused() -> str:
    """A row for each situation that is refused."""
    return markdown(["situation", "error", "what it says"], ([s, f"`{kind}`", said] for s, kind, said in refusals()))


def units() -> str:
    """The second table that ``python -m tests.gpu.toolkit.pipes`` prints, a row for each card."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(PIPES), run_name="__main__")
    _, table = printed.getvalue().strip().split("\n\n")
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    cards: dict[str, dict[str, list[str]]] = {}
    for card, dtype, *shares in rows:
        cards.setdefault(card, {})[dtype] = shares
    for of in cards.values():
        assert tuple(of) == UNITS_OF, "the document says what a cell is for"
    joined = ([card, *map(" / ".join, zip(*of.values(), strict=True))] for card, of in cards.items())
    return markdown([header[0], *header[2:]], joined)


TABLES: dict[str, Callable[[], str]] = {
    "counted: passes": passes,
    "counted: others": others,
    "predicted": predicted,
    "computed: units": units,
    "said: refusals": refused,
}
"""Name of a table, as it stands in the document's marks -> what makes it."""


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table in the document."""
    return f"<!-- {name}; python -m tests.gpu.costs --write -->", f"<!-- {name}; end -->"


def documented(name: str) -> str:
    """The table as the document has it."""
    return _parts(name)[1].strip()


def write(name: str, table: str) -> None:
    """Put a table between its marks."""
    before, after = marks(name)
    head, _, tail = _parts(name)
    DOCUMENT.write_text(f"{head}{before}\n\n{table}\n\n{after}{tail}", encoding="utf-8")


def _parts(name: str) -> tuple[str, str, str]:
    """The document before the marks, between them, and after."""
    before, after = marks(name)
    head, found, rest = DOCUMENT.read_text(encoding="utf-8").partition(before)
    between, ended, tail = rest.partition(after)
    assert found, f"{DOCUMENT.name} has no place for {name!r}"
    assert ended, f"{DOCUMENT.name} has no end to {name!r}"
    return head, between, tail
