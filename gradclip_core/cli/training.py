"""The demo's training loop, with clipping or without, and what is to be said of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import gradclip_core as gc
from gradclip_core.cli.rnn import Corpus, init, loss_and_gradients


@dataclass(frozen=True)
class Settings:
    """Of one comparison. Both runs start from the same numbers and see the same batches."""

    steps: int = 500
    seed: int = 1
    hidden: int = 128
    sequences: int = 16
    length: int = 256
    rate: float = 0.3
    momentum: float = 0.9
    max_norm: float = 1.0


@dataclass
class Run:
    """A training, step by step."""

    clips: bool
    uniform: float
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Of the gradient, before clipping."""
    clipped: int = 0

    @property
    def final(self) -> float:
        """The mean loss of the last 20 steps; NaN if the run broke."""
        return float(np.mean(self.losses[-20:])) if not self.broken else math.nan

    @property
    def broken(self) -> bool:
        """Whether it ended because a number was no longer one."""
        return not (math.isfinite(self.losses[-1]) and math.isfinite(self.norms[-1]))

    @property
    def largest(self) -> tuple[float, int]:
        """The largest finite gradient norm, and the step (from 1) that it came at."""
        finite = [(norm, -i) for i, norm in enumerate(self.norms, 1) if math.isfinite(norm)]
        norm, step = max(finite, default=(math.nan, 0))
        return norm, -step

    @property
    def diverged(self) -> int | None:
        """The first step (from 1) whose loss is twice that of a model that knows nothing."""
        return next((i for i, loss in enumerate(self.losses, 1) if not loss <= 2 * self.uniform), None)


def train(settings: Settings, corpus: Corpus, clips: bool, after_step: Callable[[Run], None]) -> Run:
    """SGD with momentum. Ends early where the loss or the gradient is no longer finite."""
    random = np.random.default_rng(settings.seed)
    params = init(random, len(corpus.symbols), settings.hidden)
    velocity = {name: np.zeros_like(x) for name, x in params.items()}
    run = Run(clips, corpus.uniform)
    with np.errstate(all="ignore"):  # overflow is what the run without clipping is here to show
        for _ in range(settings.steps):
            loss, grads = loss_and_gradients(params, *corpus.batch(random, settings.sequences, settings.length))
            if clips:
                info = gc.clip_by_global_norm_(grads, settings.max_norm, nonfinite="skip")
                norm = info.norm
                run.clipped += info.clipped
            else:
                norm = gc.global_norm(grads)
            run.losses.append(loss)
            run.norms.append(norm)
            after_step(run)
            if run.broken:
                break
            for name, x in params.items():
                velocity[name] = settings.momentum * velocity[name] + grads[name]
                x -= settings.rate * velocity[name]
    return run


def verdict(run: Run, entropy: float) -> str:
    """What happened, in words. ``entropy``: the loss of one who knows the characters' frequencies."""
    parts = []
    if run.diverged is not None and (run.broken or run.final > entropy):
        parts.append(f"diverged at step {run.diverged}")
    if run.broken:
        parts.append(f"not a number at step {len(run.losses)}")
    elif run.final < entropy:
        parts.append("learned")
    else:
        parts.append("no better than character frequencies")
    return ", ".join(parts)
