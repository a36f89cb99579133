"""The table of ``docs/frameworks.md`` that says what the dock costs, from the CSV file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_dock import DOCK, PREPARED, STEPS
from benchmarks.harness import ROOT, latest
from benchmarks.readme import between
from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import OURS, Row, times

PAGE = ROOT / "docs" / "frameworks.md"
MARK = "<!-- python -m benchmarks readme: the dock -->"
HEAD = """\
| µs an array | to the dock | unclipped | its own | takes | times ours | clipped | its own takes | times ours |
|---|---|---|---|---|---|---|---|---|"""


def table(found: list[tuple[Context, Row]]) -> str:
    """In Markdown; those that have not been timed are left out."""
    lines: list[str] = [HEAD]
    seen: dict[Context, None] = {}
    for name in PREPARED:
        cells = [name]
        for step in STEPS:
            rows = {
                row.who: row
                for _, row in found
                if row.benchmark == "dock" and row.data == name and row.work == f"global norm, {step}"
            }
            seen |= {context: None for context, row in found if row in rows.values()}
            if OURS not in rows:
                break
            peer = next(row for who, row in rows.items() if who not in (OURS, DOCK))
            each = {who: f"{1000 * row.ms_median / row.arrays:.2g}" for who, row in rows.items()}
            own = [peer.who] if step == STEPS[0] else []
            cells += [each[DOCK]] * (step == STEPS[0])
            cells += [each[OURS], *own, each[peer.who], f"**{times(peer.times_ours_median)}**"]
        else:
            lines.append(f"| {' | '.join(cells)} |")
    contexts = sorted(seen, key=lambda context: context.date)
    about = "; ".join(dict.fromkeys(f"{context.versions}, commit {context.commit}" for context in contexts))
    return "\n".join([*lines, "", f"{contexts[-1].machine}. {about}." if contexts else ""]).rstrip()


def filled(text: str) -> str:
    """The page with the table that the CSV file gives."""
    return between(text, table(latest()), MARK)


def write() -> Path:
    """Put the table where the mark is."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return PAGE
