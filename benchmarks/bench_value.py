"""Clip by value on the CPU, a GPT-2 124M's gradients, against ``clip_grad_value_``."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Settings
from benchmarks.shapes import gpt2
from gradclip_core.cli.bench_timing import Case
from gradclip_core.cli.bench_works import by_value

NONE_BEYOND, SOME_BEYOND = "by value, none beyond", "by value, a third beyond"


def cases(settings: Settings) -> list[Case]:
    """Nothing beyond the limit; a third of all elements beyond it."""
    shapes = gpt2(width=64) if settings.quick else gpt2()
    return [
        Case(
            "value",
            SOME_BEYOND if clips else NONE_BEYOND,
            f"GPT-2 124M, {dtype}",
            partial(by_value, shapes, dtype, settings.threads, settings.peers.torch, clips=clips),
            settings.rounds,
        )
        for dtype in ("float32", "float16")
        for clips in (False, True)
    ]
