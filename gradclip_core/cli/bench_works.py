"""What is timed of ours and of whom it is compared with, over gradients that all of them share.

Everybody clips the same memory. Who returns new arrays, as optax does, reads copies on its own device,
which are not given away, and is waited for.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gradclip_core as gc
from gradclip_core.cli.bench_limits import Memory, Reading
from gradclip_core.cli.bench_shapes import Shapes
from gradclip_core.cli.bench_timing import LIMIT, OURS, READING, Call, Prepared, shrinking

_SPREAD = 2.0**-6
_SEED = 0
_WORTH_READING = 1 << 16
"""Bytes an array, under which NumPy takes longer to call than to read."""


@dataclass(frozen=True)
class Frameworks:
    """Those that are installed, imported; None: not installed, or not wanted."""

    torch: Any = None
    jax: Any = None
    optax: Any = None


@dataclass(frozen=True)
class Gradients:
    """Normally distributed gradients, in parameters of PyTorch's where there is one."""

    arrays: list[Any]
    nbytes: int
    params: list[Any] = field(default_factory=list)

    def views(self) -> list[Any]:
        """The same memory, as NumPy's arrays; bfloat16, which NumPy has not, as integers."""
        return [_view(array) for array in self.arrays]


def _view(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    torch = sys.modules["torch"]
    return (array.view(torch.int16) if array.dtype is torch.bfloat16 else array).numpy()


def gradients(shapes: Shapes, dtype: str, torch: Any = None) -> Gradients:
    """Of one dtype, the same in every run."""
    if torch is None:
        random = np.random.default_rng(_SEED)
        arrays = [np.asarray(_SPREAD * random.standard_normal(shape, np.float32), dtype) for shape in shapes]
        return Gradients(arrays, sum(array.nbytes for array in arrays))
    generator, kind = torch.Generator().manual_seed(_SEED), getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.empty(shape, dtype=kind)) for shape in shapes]
    for param in params:
        param.grad = torch.empty_like(param).detach().normal_(0.0, _SPREAD, generator=generator)
    grads = [param.grad for param in params]
    return Gradients(grads, sum(grad.nbytes for grad in grads), params)


def by_global_norm(
    shapes: Shapes, dtype: str, threads: int, peers: Frameworks, *, clips: bool, numpy_alone: bool = False
) -> Prepared:
    """One step of clipping by the global norm, which finds the norm too large each time, or never.

    Not clipped, it has to read everything once. Clipped, it has to read everything before the first
    element is written, and then once more.
    """
    grads = gradients(shapes, dtype, peers.torch)
    norm = gc.global_norm(grads.arrays)
    bounds = shrinking(norm) if clips else itertools.repeat(2 * norm)
    memory = Memory(grads.nbytes, threads)
    calls: dict[str, Call] = {
        LIMIT: memory.read_then_scale if clips else memory.read,
        OURS: lambda: gc.clip_by_global_norm_(grads.arrays, next(bounds)),
    }
    if peers.torch is not None and not clips and grads.nbytes >= _WORTH_READING * len(shapes):
        calls[READING] = Reading(grads.views(), threads)
    if peers.torch is not None:
        clip = peers.torch.nn.utils.clip_grad_norm_
        calls["torch"] = lambda: clip(grads.params, next(bounds), foreach=True)
    else:
        calls["NumPy loop"] = lambda: numpy_clip(grads.arrays, next(bounds))
    if peers.optax is not None:
        calls["optax, jit"] = optax_clip(peers, grads, norm / 2 if clips else 2 * norm)
    if numpy_alone:
        calls["gradclip, NumPy alone"] = lambda: gc.clip_by_global_norm_(grads.arrays, next(bounds), backend="numpy")
    return Prepared(calls, len(grads.arrays), (3 if clips else 1) * grads.nbytes)


def by_value(shapes: Shapes, dtype: str, threads: int, torch: Any, *, clips: bool) -> Prepared:
    """One step of clamping every element: none is beyond the limit, or a third of them are, in every cache line.

    Clamped, the policy is PyTorch's own, ``nonfinite="propagate"``: who is to find an infinity before
    anything is written has to read everything twice.
    """
    grads = gradients(shapes, dtype, torch)
    bounds = shrinking(_SPREAD) if clips else itertools.repeat(64 * _SPREAD)
    policy = "propagate" if clips else "raise"
    memory = Memory(grads.nbytes, threads)
    calls: dict[str, Call] = {
        LIMIT: memory.scale if clips else memory.read,
        OURS: lambda: gc.clip_by_value_(grads.arrays, next(bounds), nonfinite=policy),
    }
    if torch is not None and not clips:
        calls[READING] = Reading(grads.views(), threads)
    if torch is not None:
        calls["torch"] = lambda: torch.nn.utils.clip_grad_value_(grads.params, next(bounds), foreach=True)
    else:
        calls["NumPy loop"] = lambda: numpy_clamp(grads.arrays, next(bounds))
    return Prepared(calls, len(grads.arrays), (2 if clips else 1) * grads.nbytes)


def norm_alone(elements: int, dtype: str, threads: int) -> Prepared:
    """The norm of one array."""
    grads = gradients([(elements,)], dtype)
    array, memory = grads.arrays[0], Memory(grads.nbytes, threads)
    calls: dict[str, Call] = {
        LIMIT: memory.read,
        OURS: lambda: gc.global_norm(array),
        "np.linalg.norm": lambda: np.linalg.norm(array),
    }
    return Prepared(calls, 1, grads.nbytes)


def numpy_clip(arrays: Sequence[Any], max_norm: float) -> float:
    """The handful of lines that everybody writes: ``np.linalg.norm`` of each, and a loop that scales."""
    norm = math.sqrt(sum(float(np.linalg.norm(x)) ** 2 for x in arrays))
    if norm > max_norm:
        for x in arrays:
            x *= np.asarray(max_norm / norm, x.dtype)
    return norm


def numpy_clamp(arrays: Sequence[Any], limit: float) -> None:
    """The same for values."""
    for x in arrays:
        np.clip(x, -limit, limit, out=x)


def optax_clip(peers: Frameworks, grads: Gradients, max_norm: float) -> Call:
    """Compiled, on arrays that are already where JAX wants them; the bound is an argument, as a schedule has it."""
    jax, optax = peers.jax, peers.optax

    def step(updates: Any, bound: Any) -> Any:
        return optax.clip_by_global_norm(bound).update(updates, optax.EmptyState())[0]

    compiled = jax.jit(step)
    there = [jax.numpy.array(array, copy=True) for array in grads.views()]
    bound = jax.numpy.float32(max_norm)
    jax.block_until_ready(there)
    return lambda: jax.block_until_ready(compiled(there, bound))
