"""One array of every size on the CPU, 1 KB to 1 GB, and to 4 GB with ``GRADCLIP_BENCH_LARGE=1``."""

from __future__ import annotations

from functools import partial

from benchmarks.bench_global_norm import UNCLIPPED
from benchmarks.harness import Settings
from gradclip_core.cli.bench_timing import Case
from gradclip_core.cli.bench_works import by_global_norm

SIZES = tuple(1 << shift for shift in range(10, 33, 2))
LARGE = 1 << 30
_ROUNDS_OF_LARGE = 7


def cases(settings: Settings) -> list[Case]:
    """Bytes in one float32 array, read once."""
    largest = 1 << 20 if settings.quick else SIZES[-1] if settings.large else LARGE
    return [
        Case(
            "sizes",
            UNCLIPPED,
            f"one array of {named(size)}, float32",
            partial(by_global_norm, [(size // 4,)], "float32", settings.threads, settings.torch, clips=False),
            min(settings.rounds, _ROUNDS_OF_LARGE) if size >= LARGE else settings.rounds,
            repeats=True,
        )
        for size in SIZES
        if size <= largest and settings.fits(2 * size)
    ]


def named(size: int) -> str:
    """1 KB is 1,024 bytes here."""
    for shift, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
