"""``gradclip bench``: how fast clipping is on this machine, beside what else is installed and the memory's limit."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import gradclip_core as gc
from gradclip_core.cli import bench_machine
from gradclip_core.cli.atomic import check_target, replacing
from gradclip_core.cli.bench_csv import Context, write
from gradclip_core.cli.bench_shapes import Shapes, elements, gpt2, small
from gradclip_core.cli.bench_timing import COLUMNS, LIMIT, NUMBERS, Case, Prepared, Row, table_of
from gradclip_core.cli.bench_works import Frameworks, by_global_norm, by_value, norm_alone
from gradclip_core.cli.console import progress, say, table
from gradclip_core.errors import GradClipError

_ROUNDS = 11
_SECONDS = 0.8
"""For the rounds of each case: about as long as its gradients take to be made."""
_ROOM = 6
"""Times its float32 gradients, at most, that a case holds at once: the gradients, the limit's, JAX's in and out."""
_DATA: tuple[tuple[str, Shapes], ...] = (
    ("GPT-2 124M", gpt2()),
    ("GPT-2, 256 wide", gpt2(width=256)),
    ("GPT-2, 32 wide", gpt2(width=32)),
)


def command(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the figures here, as CSV.")] = None,
) -> None:
    """Time clipping here, beside PyTorch, optax or NumPy.

    On the gradients of a GPT-2, smaller ones where memory is short; in about a minute. Everybody
    is timed in turn, round by round, and held against the rate at which this machine reads its memory.
    """
    if out is not None:
        check_target(out)
    try:
        threads = bench_machine.threads()
    except ValueError as error:
        raise GradClipError("bench", str(error), "Then run it again") from error
    peers, missing = bench_machine.frameworks(threads)
    served = gc.plan(np.ones(1, np.float32), gc.GlobalNorm(1.0)).info.backend
    name, shapes = _fitting(served)
    rows = _timed(cases(name, shapes, peers, threads), threads)
    table("", COLUMNS, NUMBERS, table_of(rows))
    for line in (*_footer(rows, threads, served), *missing):
        say(line)
    if out is not None:
        text = io.StringIO()
        write(text, Context.now(f"gradclip-core {gc.__version__}"), rows)
        with replacing(out) as file:
            file.write(text.getvalue().encode())
        say(f"Wrote {out}")


def cases(name: str, shapes: Shapes, peers: Frameworks, threads: int) -> list[Case]:
    """What is timed, in turn."""
    made: list[Case] = []

    def add(work: str, data: str, prepare: Callable[[], Prepared]) -> None:
        made.append(Case("bench", work, data, prepare, rounds=_ROUNDS, budget=_SECONDS))

    torch_alone = Frameworks(torch=peers.torch)
    for dtype in ("float32", "bfloat16", "float16") if peers.torch is not None else ("float32", "float16"):
        whom = peers if dtype == "float32" else torch_alone
        for clips in (False, True):
            step = "by norm, clipped" if clips else "by norm, unclipped"
            add(step, f"{name}, {dtype}", partial(by_global_norm, shapes, dtype, threads, whom, clips=clips))
    for clips in (False, True):
        step = "by value, clipped" if clips else "by value, unclipped"
        add(step, f"{name}, float32", partial(by_value, shapes, "float32", threads, peers.torch, clips=clips))
    many = partial(by_global_norm, small(1000), "float32", threads, torch_alone, clips=False)
    add("by norm, unclipped", "1,000 small arrays", many)
    add("norm alone", "one array, float32", partial(norm_alone, elements(shapes), "float32", threads))
    return made


def _fitting(served: str) -> tuple[str, Shapes]:
    """The largest that memory admits; without kernels no larger than what takes a moment."""
    room = bench_machine.available_memory() / _ROOM
    fitting = [pair for pair in _DATA[served == "numpy" :] if 4 * elements(pair[1]) <= room]
    return fitting[0] if fitting else _DATA[-1]


def _timed(todo: list[Case], threads: int) -> list[Row]:
    rows = []
    with progress() as bar:
        task = bar.add_task("", total=len(todo))
        for case in todo:
            bar.update(task, description=f"{case.work}, {case.data}")
            rows += case.rows(threads)
            bar.advance(task)
    return rows


def _footer(rows: list[Row], threads: int, served: str) -> list[str]:
    rates = [row.gigabytes_per_second for row in rows if row.who == LIMIT]
    return [
        f"gradclip-core {gc.__version__} by {served}, {threads} thread{'s' * (threads != 1)} each; "
        f"medians of up to {_ROUNDS} rounds in turn",
        "times ours: the peer's time over ours in the same round. Of the limit: against the simplest loop that",
        f"moves the same bytes, timed with each row; it moved {min(rates):.3g} to {max(rates):.3g} GB/s",
        bench_machine.machine(),
        bench_machine.versions(),
    ]
