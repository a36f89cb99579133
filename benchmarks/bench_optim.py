"""A whole step on the CPU, the parameters of a GPT-2 124M: clip by the global norm, and update.

Ours reads the gradients twice and does not write them: the plan's factor is put on as the optimizer reads. Against
``clip_grad_norm_`` and the fused optimizers of ``torch.optim``, where it has them. Each side has parameters,
gradients and state of its own.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import gradclip_core as gc
from benchmarks.harness import Settings
from benchmarks.shapes import Shapes, gpt2
from gradclip_core.cli.bench_limits import Memory
from gradclip_core.cli.bench_timing import LIMIT, OURS, Call, Case, Prepared, shrinking
from gradclip_core.cli.bench_works import gradients

OPTIMIZERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "AdamW": ("AdamW", {"lr": 1e-4, "weight_decay": 0.1}, 2),
    "SGD with momentum": ("SGD", {"lr": 1e-4, "momentum": 0.9}, 1),
    "Lion": ("Lion", {"lr": 1e-5, "weight_decay": 0.1}, 1),
}
"""What it is called -> its class, ours and torch's, its options, and how many arrays of state it has."""


def cases(settings: Settings) -> list[Case]:
    """A step of each optimizer, unclipped and clipped."""
    torch = settings.peers.torch
    if torch is None:
        return []
    shapes = gpt2(width=64) if settings.quick else gpt2()
    return [
        Case(
            "optim",
            f"{name}, {'clipped' if clips else 'unclipped'}",
            "GPT-2 124M, float32",
            partial(step, torch, shapes, settings.threads, name, clips=clips),
            settings.rounds,
        )
        for name in OPTIMIZERS
        for clips in (False, True)
    ]


def step(torch: Any, shapes: Shapes, threads: int, name: str, *, clips: bool) -> Prepared:
    """Clip and update."""
    kind, options, state = OPTIMIZERS[name]
    ours = gradients(shapes, "float32", torch)
    opt = getattr(gc.optim, kind)(ours.params, **options)
    norm = gc.global_norm(ours.arrays)
    rule = gc.GlobalNorm(norm / 2 if clips else 2 * norm)
    memory = Memory(ours.nbytes, threads)

    def least() -> None:
        """Everything read for the norm; the gradient read again; parameter and state read and written."""
        memory.read()
        memory.read()
        for _ in range(1 + state):
            memory.scale()

    calls: dict[str, Call] = {
        LIMIT: least,
        OURS: lambda: opt.step(ours.arrays, gc.plan(ours.arrays, rule)),
    }
    if hasattr(torch.optim, kind):
        theirs = gradients(shapes, "float32", torch)
        # It writes what it has clipped, so that each step needs a smaller bound to have the same work to do.
        bounds = shrinking(norm) if clips else itertools.repeat(2 * norm)
        peer = getattr(torch.optim, kind)(theirs.params, fused=True, **options)

        def clip_and_step() -> None:
            torch.nn.utils.clip_grad_norm_(theirs.params, next(bounds), foreach=True)
            peer.step()

        calls["torch"] = clip_and_step
    return Prepared(calls, len(shapes), (4 + 2 * state) * ours.nbytes)
