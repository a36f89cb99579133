"""What the dock costs: 1,000 arrays of 64 numbers of each framework that is installed here, beside its own clip.

Frameworks do not all live together: run it in an environment of each, as CONTRIBUTING.md says. ``DOCK`` is the way of
the arrays to their memory alone, of which nothing is read; a clip goes it, reads, decides, and writes or makes others.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import gradclip_core as gc
from benchmarks.harness import Settings
from gradclip_core.arrays.dock import unload
from gradclip_core.cli.bench_timing import OURS, Case, Prepared, shrinking
from gradclip_core.cli.bench_works import Frameworks, Gradients, optax_clip

DOCK = "to the dock alone"
STEPS = ("unclipped", "clipped")
COUNT, LENGTH = 1000, 64
Own = Callable[[list[Any], Iterator[float]], object]


def cases(settings: Settings) -> list[Case]:
    """Unclipped and clipped steps of each framework."""
    count = COUNT // 10 if settings.quick else COUNT
    return [
        Case(
            "dock", f"global norm, {step}", name, partial(prepare, settings, count, step == "clipped"), settings.rounds
        )
        for name, (module, prepare) in PREPARED.items()
        if importlib.util.find_spec(module) is not None
        for step in STEPS
    ]


def packages() -> Sequence[str]:
    """Whose versions count."""
    return ("torch", "jax", "optax", "tensorflow-cpu", "paddlepaddle", "mlx")


def _values(count: int) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal(LENGTH).astype(np.float32) for _ in range(count)]


def _prepared(arrays: list[Any], peer: str, own: Own, *, clips: bool, in_place: bool) -> Prepared:
    norm = gc.global_norm(arrays)
    # In place each step finds its bound 1 % under what the last one left; new arrays are made of the same ones.
    bounds = shrinking(norm) if clips and in_place else itertools.repeat(norm / 2 if clips else 2 * norm)
    ours = gc.clip_by_global_norm_ if in_place else gc.clip_by_global_norm
    calls = {
        OURS: lambda: ours(arrays, next(bounds)),
        DOCK: lambda: unload(arrays, "dock", in_place=in_place),
        peer: lambda: own(arrays, bounds),
    }
    return Prepared(calls, len(arrays), (3 if clips else 1) * len(arrays) * LENGTH * 4)


def _torch(settings: Settings, count: int, clips: bool) -> Prepared:
    torch = importlib.import_module("torch")
    params = [torch.nn.Parameter(torch.from_numpy(x)) for x in _values(count)]
    for param in params:
        param.grad = param.detach().clone()

    def own(arrays: list[Any], bounds: Iterator[float]) -> object:
        return torch.nn.utils.clip_grad_norm_(params, next(bounds), foreach=True)

    return _prepared([param.grad for param in params], "clip_grad_norm_", own, clips=clips, in_place=True)


def _jax(settings: Settings, count: int, clips: bool) -> Prepared:
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    values = _values(count)
    norm = gc.global_norm(values)
    compiled = optax_clip(Frameworks(jax=jax, optax=optax), Gradients(values, 0), norm / 2 if clips else 2 * norm)
    arrays = [jax.numpy.array(x) for x in values]
    ours = _prepared(arrays, "optax, jit", lambda a, b: compiled(), clips=clips, in_place=False)
    made = ours.calls[OURS]
    ours.calls[OURS] = lambda: jax.block_until_ready(made()[0])  # type: ignore[index]  # (clipped, info)
    return ours


def _tensorflow(settings: Settings, count: int, clips: bool) -> Prepared:
    tf = importlib.import_module("tensorflow")
    arrays = [tf.constant(x) for x in _values(count)]
    return _prepared(
        arrays, "tf.clip_by_global_norm", lambda a, b: tf.clip_by_global_norm(a, next(b)), clips=clips, in_place=False
    )


def _paddle(settings: Settings, count: int, clips: bool) -> Prepared:
    paddle = importlib.import_module("paddle")
    params = [paddle.base.framework.EagerParamBase.from_tensor(paddle.to_tensor(x)) for x in _values(count)]
    arrays = [paddle.to_tensor(x) for x in _values(count)]
    pairs = list(zip(params, arrays, strict=True))

    def own(arrays: list[Any], bounds: Iterator[float]) -> object:
        return paddle.nn.ClipGradByGlobalNorm(next(bounds))(pairs)

    return _prepared(arrays, "ClipGradByGlobalNorm", own, clips=clips, in_place=True)


def _mlx(settings: Settings, count: int, clips: bool) -> Prepared:
    mx, optimizers = importlib.import_module("mlx.core"), importlib.import_module("mlx.optimizers")
    arrays = [mx.array(x) for x in _values(count)]
    mx.eval(arrays)

    def own(arrays: list[Any], bounds: Iterator[float]) -> object:
        return mx.eval(optimizers.clip_grad_norm(arrays, next(bounds))[0])

    return _prepared(arrays, "mlx.optimizers.clip_grad_norm", own, clips=clips, in_place=False)


PREPARED: dict[str, tuple[str, Callable[[Settings, int, bool], Prepared]]] = {
    "PyTorch": ("torch", _torch),
    "JAX": ("optax", _jax),
    "TensorFlow": ("tensorflow", _tensorflow),
    "Paddle": ("paddle", _paddle),
    "MLX": ("mlx", _mlx),
}
