"""Clip gradients on the CPU, against ``torch.nn.utils.clip_grad_norm_``: a GPT-2 124M's, and many small ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import gradclip_core as gc
from benchmarks.harness import ReadLimit, append, interleaved
from benchmarks.shapes import gpt2

DTYPES = ("float32", "bfloat16", "float16")


def run_gpt2() -> None:
    """The gradients of a GPT-2 124M: what counts is memory."""
    run("gpt2", gpt2(), DTYPES)


def run_small() -> None:
    """1,000 arrays of 64 elements: what counts is the time spent on each array."""
    run("small", [(64,)] * 1000, ("float32",))


def run(name: str, shapes: list[tuple[int, ...]], dtypes: tuple[str, ...], repeats: int = 21, threads: int = 2) -> None:
    """Time, print, and append to ``results/NAME.csv``."""
    import torch

    torch.set_num_threads(threads)
    rows = []
    for dtype in dtypes:
        params = [torch.nn.Parameter(torch.empty(shape, dtype=getattr(torch, dtype))) for shape in shapes]
        for param in params:
            param.grad = (torch.randn(param.shape) * 1e-4).to(param.dtype)
        stored = sum(param.nbytes for param in params)
        rows += timed_rows(torch, dtype, stored, threads, interleaved(calls(torch, params, stored, threads), repeats))
    print(f"appended to {append(name, rows)}")


def timed_rows(torch: Any, data: str, stored: int, threads: int, seconds: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each call, beside torch's of the same name; printed."""
    rows = []
    for what, times in seconds.items():
        peer = seconds.get(what.replace("ours", "torch").removesuffix(", NumPy alone"), times)
        low, middle, high = (1e3 * q for q in np.quantile(times, [0.25, 0.5, 0.75]))
        rows.append(
            {
                "torch": torch.__version__,
                "dtype": data,
                "threads": threads,
                "what": what,
                "ms_q25": f"{low:.2f}",
                "ms_median": f"{middle:.2f}",
                "ms_q75": f"{high:.2f}",
                "gradient_GB_per_s": f"{stored / middle / 1e6:.1f}",
                "times_torch": f"{np.median(peer / times):.2f}",
            }
        )
        shown = "{dtype:9} {what:34} {ms_median:>8} ms {gradient_GB_per_s:>6} GB/s of gradient {times_torch:>6} x"
        print(shown.format(**rows[-1]))
    return rows


def calls(torch: Any, params: list[Any], stored: int, threads: int) -> dict[str, Callable[[], object]]:
    """What is timed, in turn."""
    grads = [param.grad for param in params]
    norm = gc.global_norm(grads)
    # Each clipped step gets a bound 1 % under the last, so that each has the same work to do.
    shrinking = (norm * 0.99**step for step in itertools.count(1))
    return {
        "read limit": ReadLimit(stored, threads),
        "ours, unclipped": lambda: gc.clip_by_global_norm_(grads, 2 * norm),
        "ours, unclipped, NumPy alone": lambda: gc.clip_by_global_norm_(grads, 2 * norm, backend="numpy"),
        "torch, unclipped": lambda: torch.nn.utils.clip_grad_norm_(params, 2 * norm),
        "ours, clipped": lambda: gc.clip_by_global_norm_(grads, next(shrinking)),
        "torch, clipped": lambda: torch.nn.utils.clip_grad_norm_(params, next(shrinking)),
    }
