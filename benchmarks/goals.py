"""The goals beside what was measured, and beside the most that there is to have: the table of ``docs/speed.md``.

The most is the peer's time over that of the memory's limit, of the same run: what a clip would reach that did
nothing but move the bytes that it has to move.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth
from benchmarks.harness import ROOT, latest
from benchmarks.readme import GPT2, between
from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import LIMIT, OURS, READING, Row, percent, times

PAGE = ROOT / "docs" / "speed.md"
GROWTH = "<!-- python -m benchmarks readme: how cost grows -->"
GOALS: tuple[tuple[str, str, str, str, float], ...] = (
    ("global_norm", "global norm, unclipped", f"{GPT2}, float32", "torch", 2.8),
    ("global_norm", "global norm, unclipped", f"{GPT2}, float32", "optax, jit", 6.0),
    ("global_norm", "global norm, clipped", f"{GPT2}, float32", "torch", 1.15),
    ("global_norm", "global norm, unclipped", f"{GPT2}, bfloat16", "torch", 2.8),
    ("global_norm", "global norm, unclipped", f"{GPT2}, float16", "torch", 8.0),
    ("global_norm", "global norm, clipped", f"{GPT2}, bfloat16", "torch", 1.3),
    ("global_norm", "global norm, clipped", f"{GPT2}, float16", "torch", 4.0),
    ("amp", "mixed precision, scale 1 unclipped", f"{GPT2}, float32", "torch", 4.0),
    ("amp", "mixed precision, scale 2 unclipped", f"{GPT2}, float32", "torch", 1.5),
    ("amp", "mixed precision, scale 2 clipped", f"{GPT2}, float32", "torch", 1.5),
    ("value", "by value, none beyond", f"{GPT2}, float32", "torch", 1.4),
    ("value", "by value, none beyond", f"{GPT2}, float16", "torch", 4.0),
    ("value", "by value, a third beyond", f"{GPT2}, float32", "torch", 1.0),
    ("value", "by value, a third beyond", f"{GPT2}, float16", "torch", 3.0),
    ("agc", "AGC, clipped", "ResNet-50, float32", "timm", 5.0),
    ("agc", "AGC, clipped", "ResNet-50, float32", "optax, jit", 5.0),
    ("small", "global norm, unclipped", "1,000 arrays of 64 to 1,024, float32", "torch", 5.0),
    ("small", "global norm, unclipped", "10,000 tiny arrays, float32", "torch", 5.0),
    ("norm", "norm alone", "one array of 10^8, float32", "np.linalg.norm", 1.0),
    ("norm", "norm alone", "one array of 10^8, float16", "np.linalg.norm", 10.0),
    ("optim", "AdamW, unclipped", f"{GPT2}, float32", "torch", 1.25),
    ("optim", "AdamW, clipped", f"{GPT2}, float32", "torch", 1.25),
)
"""Benchmark, work, data, peer, and how many times as fast it was meant to be."""
HEAD = """\
| work | gradients | peer | goal | times ours | the most there is | of the memory's limit | of reading them alone |
|---|---|---|---|---|---|---|---|"""


def write(path: Path = PAGE) -> Path:
    """Put the tables where the marks are."""
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def filled(text: str) -> str:
    """The page with the tables that the CSV files give."""
    found = latest()
    return between(between(text, table(found)), growth.table(found), GROWTH)


def table(found: Sequence[tuple[Context, Row]]) -> str:
    """In Markdown; a goal that is reached is in bold."""
    rows = {(row.benchmark, row.work, row.data, row.who): row for _, row in found}
    lines = [HEAD]
    for benchmark, work, data, peer, goal in GOALS:
        ours, theirs, limit = (rows.get((benchmark, work, data, who)) for who in (OURS, peer, LIMIT))
        reading = rows.get((benchmark, work, data, READING))
        if ours is None or theirs is None or limit is None:
            continue
        ratio = theirs.times_ours_median
        shown = times(ratio)
        lines.append(
            f"| {work} | {data} | {peer} | {goal:g} | {f'**{shown}**' if float(shown) >= goal else shown} "
            f"| {times(theirs.ms_median / limit.ms_median)} | {percent(ours.percent_of_limit)} "
            f"| {'' if reading is None else percent(100 * reading.times_ours_median)} |"
        )
    return "\n".join(lines)
