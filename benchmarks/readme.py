"""Write the tables of the README and of docs/optimizers.md from the CSV files. Nobody types a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import ROOT, latest
from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import LIMIT, OURS, Row, duration, percent, times

README, OPTIMIZERS = ROOT / "README.md", ROOT / "docs" / "optimizers.md"
BEGIN, END = "<!-- python -m benchmarks readme: begin -->", "<!-- end -->"
GPT2, DTYPES = "GPT-2 124M", ("float32", "bfloat16", "float16")
Wanted = Sequence[tuple[str, str, str]]
WANTED: Wanted = (
    *(("global_norm", f"global norm, {step}", f"{GPT2}, {d}") for d in DTYPES for step in ("unclipped", "clipped")),
    ("amp", "mixed precision, scale 1 unclipped", f"{GPT2}, float32"),
    ("amp", "mixed precision, scale 2 clipped", f"{GPT2}, float32"),
    ("optim", "AdamW, clipped", f"{GPT2}, float32"),
    ("value", "by value, none beyond", f"{GPT2}, float32"),
    ("value", "by value, a third beyond", f"{GPT2}, float32"),
    ("agc", "AGC, clipped", "ResNet-50, float32"),
    ("small", "global norm, unclipped", "1,000 arrays of 64 to 1,024, float32"),
    ("small", "global norm, unclipped", "10,000 tiny arrays, float32"),
    ("norm", "norm alone", "one array of 10^8, float32"),
)
"""Benchmark, work and data of each row; those that have not been timed are left out."""
UPDATES = tuple(
    ("optim", f"{name}, {step}", f"{GPT2}, float32")
    for name in ("AdamW", "SGD with momentum", "Lion")
    for step in ("unclipped", "clipped")
)
PAGES = {README: WANTED, OPTIMIZERS: UPDATES}
HEAD = """\
| work | gradients | gradclip | of the memory's limit | peer | takes | times ours | quartiles |
|---|---|---|---|---|---|---|---|"""


def write() -> list[Path]:
    """Put the tables where the marks are."""
    for path, wanted in PAGES.items():
        path.write_text(filled(path.read_text(encoding="utf-8"), wanted), encoding="utf-8")
    return list(PAGES)


def filled(text: str, wanted: Wanted = WANTED) -> str:
    """The page with the table that the CSV files give."""
    return between(text, table(latest(), wanted))


def between(text: str, lines: str, mark: str = BEGIN) -> str:
    """A page with these lines between its marks."""
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no table between {mark} and {END}")
    return f"{before}{mark}\n{lines}\n{END}{after}"


def table(found: Sequence[tuple[Context, Row]], wanted: Wanted = WANTED) -> str:
    """In Markdown, with a line on where it was measured."""
    lines, contexts = [HEAD], []
    for benchmark, work, data in wanted:
        members = {r.who: (c, r) for c, r in found if (r.benchmark, r.work, r.data) == (benchmark, work, data)}
        if OURS not in members:
            continue
        context, ours = members[OURS]
        contexts.append(context)
        first: tuple[str, ...] = (work, data, duration(ours.ms_median), percent(ours.percent_of_limit))
        peers = {who: row for who, (_, row) in members.items() if who != LIMIT and not who.startswith(OURS)}
        if not peers:
            lines.append(f"| {' | '.join(first)} | none | | | |")
        for who, row in peers.items():
            ratio, low, high = (times(q) for q in (row.times_ours_median, row.times_ours_q25, row.times_ours_q75))
            cells = (*first, who, duration(row.ms_median), f"**{ratio}**", f"{low} to {high}")
            lines.append(f"| {' | '.join(cells)} |")
            first = ("",) * len(first)
    return "\n".join(lines) + f"\n\n{_where(contexts)}"


def _where(contexts: Sequence[Context]) -> str:
    machines, versions, commits, dates = (
        "; ".join(dict.fromkeys(getattr(context, name) for context in contexts))
        for name in ("machine", "versions", "commit", "date")
    )
    changed = " (+: and changes to it)" if "+" in commits else ""
    return f"{machines}. {versions[:1].upper()}{versions[1:]}. Commit {commits}{changed}, {dates}."
