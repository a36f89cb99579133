"""Many small arrays on the CPU: what counts is the time that is spent on each of them."""

from __future__ import annotations

from functools import partial

from benchmarks.bench_global_norm import CLIPPED, UNCLIPPED
from benchmarks.harness import Settings
from benchmarks.shapes import densenet_like, small
from gradclip_core.cli.bench_timing import Case
from gradclip_core.cli.bench_works import by_global_norm

COUNTS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


def cases(settings: Settings) -> list[Case]:
    """1,000 arrays of 64 to 1,024 elements, and 10,000 tiny ones."""
    part = 10 if settings.quick else 1
    data = (("1,000 arrays of 64 to 1,024", small(1000 // part)), ("10,000 tiny arrays", densenet_like(10_000 // part)))
    return [
        Case(
            "small",
            CLIPPED if clips else UNCLIPPED,
            f"{name}, float32",
            partial(by_global_norm, shapes, "float32", settings.threads, settings.torch, clips=clips),
            settings.rounds,
        )
        for name, shapes in data
        for clips in (False, True)
    ]


def counted(settings: Settings) -> list[Case]:
    """The same for one array to 10,000 of them."""
    return [
        Case(
            "arrays",
            UNCLIPPED,
            f"{count:,} of 64 to 1,024, float32",
            partial(by_global_norm, small(count), "float32", settings.threads, settings.torch, clips=False),
            settings.rounds,
            repeats=True,
        )
        for count in COUNTS[: 5 if settings.quick else None]
    ]
