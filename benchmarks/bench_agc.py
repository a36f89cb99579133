"""Adaptive clipping (AGC) on the CPU, a ResNet-50's gradients and weights, against timm and optax.

A unit is an output channel: ``all_but_first`` in PyTorch's layout, which timm takes; optax takes its
own, output last, so it gets the same arrays transposed. Of timm one file is loaded, because the package
as a whole needs torchvision.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gradclip_core as gc
from benchmarks.harness import Settings
from benchmarks.shapes import Shapes, resnet50
from gradclip_core.cli.bench_limits import Memory
from gradclip_core.cli.bench_timing import LIMIT, OURS, Call, Case, Prepared, shrinking
from gradclip_core.cli.bench_works import Frameworks, gradients

EPS = 1e-3


def cases(settings: Settings) -> list[Case]:
    """No unit is too long, or every one is."""
    if settings.peers.torch is None:
        return []
    shapes = resnet50(width=16) if settings.quick else resnet50()
    return [
        Case(
            "agc",
            "AGC, clipped" if clips else "AGC, unclipped",
            "ResNet-50, float32",
            partial(prepare, shapes, settings.threads, settings.peers, clips=clips),
            settings.rounds,
        )
        for clips in (False, True)
    ]


def missing() -> list[str]:
    """A sentence, where timm is not installed."""
    return [] if _timm() else ["without timm, which is not installed"]


def prepare(shapes: Shapes, threads: int, peers: Frameworks, *, clips: bool) -> Prepared:
    """Weights and gradients are about as long as each other: a quarter of the weights' norm clips every unit."""
    grads = gradients(shapes, "float32", peers.torch)
    generator = peers.torch.Generator().manual_seed(1)
    weights = [param.detach() for param in grads.params]
    for weight in weights:
        weight.normal_(0.0, 2.0**-6, generator=generator)
    bounds: Iterator[float] = shrinking(0.25) if clips else itertools.repeat(1e3)
    both, gradient = Memory(2 * grads.nbytes, threads), Memory(grads.nbytes, threads)

    def limit() -> None:
        both.read()
        if clips:
            gradient.scale()

    calls: dict[str, Call] = {
        LIMIT: limit,
        OURS: lambda: gc.adaptive_clip_(grads.arrays, weights, next(bounds), eps=EPS, axis="all_but_first"),
    }
    if agc := _timm():
        calls["timm"] = lambda: agc(grads.params, clip_factor=next(bounds), eps=EPS)
    if peers.optax is not None:
        calls["optax, jit"] = _optax(peers, grads.arrays, weights, next(bounds))
    return Prepared(calls, len(shapes), (4 if clips else 2) * grads.nbytes)


def _timm() -> Callable[..., object] | None:
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_utils_agc", path)
    if spec is None or spec.loader is None:
        return None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., object] = module.adaptive_clip_grad
    return found


def _optax(peers: Frameworks, grads: list[Any], weights: list[Any], clipping: float) -> Call:
    jax, optax = peers.jax, peers.optax

    def step(updates: Any, params: Any, bound: Any) -> Any:
        return optax.adaptive_grad_clip(bound, EPS).update(updates, optax.EmptyState(), params)[0]

    compiled = jax.jit(step)
    there = [[jax.numpy.array(_output_last(array), copy=True) for array in arrays] for arrays in (grads, weights)]
    bound = jax.numpy.float32(clipping)
    jax.block_until_ready(there)
    return lambda: jax.block_until_ready(compiled(*there, bound))


def _output_last(array: Any) -> Any:
    """(O, I, H, W) as (H, W, I, O), (O, I) as (I, O), where optax takes all axes but the last for a unit."""
    if array.ndim < 2:
        return array.numpy()
    return np.ascontiguousarray(np.transpose(array.numpy(), (*range(2, array.ndim), 1, 0)))
