"""Mixed precision on the CPU, a GPT-2 124M's gradients: unscale, check and clip; clip and convert.

Against ``torch.amp.GradScaler`` with ``clip_grad_norm_``, and against ``clip_grad_norm_`` with ``Tensor.to``.
Each side has gradients of its own; each step unscales by 2, so that each has the same work to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gradclip_core as gc
from benchmarks.bench_clip import timed_rows
from benchmarks.harness import ReadLimit, append, interleaved
from benchmarks.shapes import gpt2

Call = Callable[[], object]


def run(repeats: int = 21, threads: int = 2) -> None:
    """Time, print, and append to ``results/amp.csv``."""
    import torch

    torch.set_num_threads(threads)
    shapes = gpt2()
    stored = 4 * sum(int(torch.Size(shape).numel()) for shape in shapes)
    limit: dict[str, Call] = {"read limit": ReadLimit(stored, threads)}
    rows = []
    for data, calls in (("float32", unscaling(torch, shapes)), ("converted", converting(torch, shapes))):
        rows += timed_rows(torch, data, stored, threads, interleaved({**limit, **calls}, repeats))
    print(f"appended to {append('amp', rows)}")


def parameters(torch: Any, shapes: list[tuple[int, ...]], dtype: Any) -> list[Any]:
    """Parameters with gradients, the same for everybody."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = (torch.randn(param.shape, generator=generator) * 2.0**-4).to(dtype)
    return params


def unscaling(torch: Any, shapes: list[tuple[int, ...]]) -> dict[str, Call]:
    """Unscale, look for infinities, clip, update the scale: ours in one call."""
    calls: dict[str, Call] = {}
    for what, scale in (("scale 1, unclipped", 1.0), ("scale 2, unclipped", 2.0), ("scale 2, clipped", 2.0)):
        ours, theirs = (parameters(torch, shapes, torch.float32) for _ in range(2))
        norm = gc.global_norm([p.grad for p in ours])
        bounds = (itertools.repeat(1e6), itertools.repeat(1e6))
        if what.endswith(", clipped"):
            # Each step is to clip: a bound 1 % under the last, and half as large gradients.
            bounds = tuple((norm * 0.495**step for step in itertools.count(1)) for _ in range(2))  # type: ignore[assignment]
        calls[f"ours, {what}"] = _ours(torch, ours, scale, bounds[0])
        calls[f"torch, {what}"] = _theirs(torch, theirs, scale, bounds[1])
    return calls


def _ours(torch: Any, params: list[Any], scale: float, bounds: Any) -> Call:
    grads = [p.grad for p in params]
    scaler = gc.LossScaler.static(scale)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler, params=params)

    def call() -> object:
        clipper.rule = gc.GlobalNorm(next(bounds))
        scaler.take_scale()
        torch.autograd.graph.increment_version(grads)  # as backward does: the Clipper would know them again
        return clipper.step_()

    return call


def _theirs(torch: Any, params: list[Any], scale: float, bounds: Any) -> Call:
    optimizer = torch.optim.SGD(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9)
    scaler.scale(torch.ones(()))

    def call() -> object:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params, next(bounds))
        scaler.update()
        return norm

    return call


def converting(torch: Any, shapes: list[tuple[int, ...]]) -> dict[str, Call]:
    """Clip float32 and write 16 bits; unscale and clip float16, and write float32 masters."""
    calls: dict[str, Call] = {}
    single = parameters(torch, shapes, torch.float32)
    theirs = parameters(torch, shapes, torch.float32)
    norm = gc.global_norm([p.grad for p in single])
    for name in ("bfloat16", "float16"):
        dtype = getattr(torch, name)
        grads = [p.grad for p in single]
        down = (norm * 0.99**step for step in itertools.count(1))
        calls[f"ours, float32 to {name}, clipped"] = lambda g=grads, n=name: gc.to_half(  # type: ignore[misc]
            g, n, gc.GlobalNorm(0.9 * norm)
        )

        def clip_and_convert(dtype: Any = dtype, down: Any = down) -> object:
            torch.nn.utils.clip_grad_norm_(theirs, next(down))
            return [p.grad.to(dtype) for p in theirs]

        calls[f"torch, float32 to {name}, clipped"] = clip_and_convert
    half = [p.grad for p in parameters(torch, shapes, torch.float16)]
    masters = [torch.empty(shape) for shape in shapes]
    calls["ours, float16 to float32 masters"] = lambda: gc.clip(
        half, gc.GlobalNorm(0.1 * norm), out=masters, loss_scale=2.0
    )

    def unscale_masters() -> object:
        torch._foreach_copy_(masters, half)
        torch._foreach_mul_(masters, 0.5)
        total = torch.nn.utils.get_total_norm(masters, error_if_nonfinite=True)
        torch._foreach_mul_(masters, (0.1 * norm / (total + 1e-6)).clamp(max=1.0))
        return masters

    calls["torch, float16 to float32 masters"] = unscale_masters
    return calls
