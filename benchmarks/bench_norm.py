"""The norm of one array alone, against ``np.linalg.norm``, which is neither exact nor safe from overflow."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Settings
from gradclip_core.cli.bench_timing import Case
from gradclip_core.cli.bench_works import norm_alone


def cases(settings: Settings) -> list[Case]:
    """10^8 elements."""
    elements = 10**6 if settings.quick else 10**8
    return [
        Case(
            "norm",
            "norm alone",
            f"one array of 10^8, {dtype}",
            partial(norm_alone, elements, dtype, settings.threads),
            settings.rounds,
        )
        for dtype in ("float32", "float16")
    ]
