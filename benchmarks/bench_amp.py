"""Mixed precision on the CPU, a GPT-2 124M's gradients: unscale, check and clip; clip and convert.

Against ``torch.amp.GradScaler`` with ``clip_grad_norm_``, and against ``clip_grad_norm_`` with ``Tensor.to``.
Each side has gradients of its own; each step unscales by 2, so that each has the same work to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradclip_core as gc
from benchmarks.harness import Settings
from benchmarks.shapes import Shapes, gpt2
from gradclip_core.cli.bench_limits import Memory, Reading
from gradclip_core.cli.bench_timing import LIMIT, OURS, READING, Call, Case, Prepared
from gradclip_core.cli.bench_works import Gradients, gradients

STEPS = (("scale 1 unclipped", 1.0), ("scale 2 unclipped", 2.0), ("scale 2 clipped", 2.0))


def cases(settings: Settings) -> list[Case]:
    """Steps of mixed precision, and conversions that clip on the way."""
    torch = settings.peers.torch
    if torch is None:
        return []
    shapes = gpt2(width=64) if settings.quick else gpt2()
    made = [
        (f"mixed precision, {what}", "float32", partial(unscaling, torch, shapes, settings.threads, what, scale))
        for what, scale in STEPS
    ]
    made += [
        ("mixed precision, clip and convert", f"float32 to {name}", partial(down_to, torch, shapes, name))
        for name in ("bfloat16", "float16")
    ]
    made.append(
        (
            "mixed precision, clip and convert",
            "float16 to float32 masters",
            partial(up_to_masters, torch, shapes),
        )
    )
    return [Case("amp", work, f"GPT-2 124M, {data}", prepare, settings.rounds) for work, data, prepare in made]


def unscaling(torch: Any, shapes: Shapes, threads: int, what: str, scale: float) -> Prepared:
    """Unscale, look for infinities, clip, update the scale: ours in one call."""
    ours, theirs = gradients(shapes, "float32", torch), gradients(shapes, "float32", torch)
    bounds = [itertools.repeat(1e6), itertools.repeat(1e6)]
    if what.endswith(" clipped"):
        # Each step is to clip: a bound 1 % under the last, and half as large gradients.
        norm = gc.global_norm(ours.arrays)
        bounds = [(norm * 0.495**step for step in itertools.count(1)) for _ in range(2)]  # type: ignore[misc]
    memory = Memory(ours.nbytes, threads)
    writes = scale != 1
    calls: dict[str, Call] = {
        LIMIT: memory.read_then_scale if writes else memory.read,
        OURS: _ours(torch, ours, scale, bounds[0]),
        "torch": _theirs(torch, theirs.params, scale, bounds[1]),
    }
    if not writes:
        calls[READING] = Reading(ours.views(), threads)
    return Prepared(calls, len(shapes), (3 if writes else 1) * ours.nbytes)


def _ours(torch: Any, grads: Gradients, scale: float, bounds: Iterator[float]) -> Call:
    scaler = gc.LossScaler.static(scale)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler, params=grads.params)

    def call() -> object:
        clipper.rule = gc.GlobalNorm(next(bounds))
        scaler.take_scale()
        torch.autograd.graph.increment_version(grads.arrays)  # as backward does: the Clipper would know them again
        return clipper.step_()

    return call


def _theirs(torch: Any, params: list[Any], scale: float, bounds: Iterator[float]) -> Call:
    optimizer = torch.optim.SGD(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9)
    scaler.scale(torch.ones(()))

    def call() -> object:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params, next(bounds))
        scaler.update()
        return norm

    return call


def down_to(torch: Any, shapes: Shapes, name: str) -> Prepared:
    """Clip float32 and write 16 bits. Theirs writes the clipped float32 too, so it needs bounds that shrink."""
    ours, theirs = gradients(shapes, "float32", torch), gradients(shapes, "float32", torch)
    norm, dtype = gc.global_norm(ours.arrays), getattr(torch, name)
    bounds = (norm * 0.99**step for step in itertools.count(1))

    def clip_and_convert() -> object:
        torch.nn.utils.clip_grad_norm_(theirs.params, next(bounds))
        return [grad.to(dtype) for grad in theirs.arrays]

    calls: dict[str, Call] = {
        OURS: lambda: gc.to_half(ours.arrays, name, gc.GlobalNorm(0.9 * norm)),
        "torch": clip_and_convert,
    }
    return Prepared(calls, len(shapes), 5 * ours.nbytes // 2)


def up_to_masters(torch: Any, shapes: Shapes) -> Prepared:
    """Unscale and clip float16, and write float32 masters."""
    half = gradients(shapes, "float16", torch)
    norm = gc.global_norm(half.arrays)
    masters = [torch.empty(shape) for shape in shapes]

    def unscale_masters() -> object:
        torch._foreach_copy_(masters, half.arrays)
        torch._foreach_mul_(masters, 0.5)
        total = torch.nn.utils.get_total_norm(masters, error_if_nonfinite=True)
        torch._foreach_mul_(masters, (0.1 * norm / (total + 1e-6)).clamp(max=1.0))
        return masters

    calls: dict[str, Call] = {
        OURS: lambda: gc.clip(half.arrays, gc.GlobalNorm(0.1 * norm), out=masters, loss_scale=2.0),
        "torch": unscale_masters,
    }
    return Prepared(calls, len(shapes), 4 * half.nbytes)
