"""The tables of ``docs/frameworks.md``, from the CSV files: what the dock costs, and a clip inside ``jax.jit``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_dock import DOCK, PREPARED, STEPS
from benchmarks.bench_jit import COMPILE, RUN, SHAPES, WORKS
from benchmarks.harness import ROOT, latest
from benchmarks.readme import between
from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import OURS, Row, duration, times

PAGE = ROOT / "docs" / "frameworks.md"
MARK, JIT_MARK = "<!-- python -m benchmarks readme: the dock -->", "<!-- python -m benchmarks readme: jit -->"
HEAD = """\
| µs an array | to the dock | unclipped | its own | takes | times ours | clipped | its own takes | times ours |
|---|---|---|---|---|---|---|---|---|"""
JIT_HEAD = """\
| | | compile | optax | times ours | run | optax | times ours |
|---|---|---|---|---|---|---|---|"""
Found = list[tuple[Context, Row]]


def table(found: Found) -> str:
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
    return _finished(lines, seen)


def jit_table(found: Found) -> str:
    """In Markdown; what has not been timed is left out."""
    lines: list[str] = [JIT_HEAD]
    seen: dict[Context, None] = {}
    for data in SHAPES:
        for work in WORKS:
            cells = [work, data]
            for step in (COMPILE, RUN):
                rows = [(c, r) for c, r in found if (r.work, r.data) == (f"{step} a {work} in jax.jit", data)]
                cells += [duration(row.ms_median) for _, row in rows]
                cells += [f"**{times(row.times_ours_median)}**" for _, row in rows if row.who != OURS]
                seen |= {context: None for context, _ in rows}
            if len(cells) == JIT_HEAD.splitlines()[0].count("|") - 1:
                lines.append(f"| {' | '.join(cells)} |")
    return _finished(lines, seen)


def _finished(lines: list[str], seen: dict[Context, None]) -> str:
    contexts = sorted(seen, key=lambda context: context.date)
    about = "; ".join(dict.fromkeys(f"{context.versions}, commit {context.commit}" for context in contexts))
    return "\n".join([*lines, "", f"{contexts[-1].machine}. {about}." if contexts else ""]).rstrip()


def filled(text: str) -> str:
    """The page with the tables that the CSV files give."""
    found = latest()
    return between(between(text, table(found), MARK), jit_table(found), JIT_MARK)


def write() -> Path:
    """Put the table where the mark is."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return PAGE
