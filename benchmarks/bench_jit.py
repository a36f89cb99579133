"""Inside ``jax.jit``: what a clip by the global norm takes to compile, and to run, beside optax's in float32.

Ours measures by pairs of float32, and looks for NaN and infinity; optax's sum is one of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import gradclip_core as gc
from benchmarks.harness import Settings
from gradclip_core.cli.bench_shapes import Shapes
from gradclip_core.cli.bench_timing import OURS, Case, Prepared
from gradclip_core.cli.bench_works import Frameworks

COMPILE, RUN = "compile", "run"
COMPILE_ROUNDS = 5
Function = Callable[[Any], Any]
WORKS: dict[str, tuple[Function, Function]] = {
    "norm": (gc.global_norm, lambda optax: optax.global_norm),
    "clip": (
        lambda grads: gc.clip_by_global_norm(grads, 1.0, nonfinite="skip")[0],
        lambda optax: lambda grads: optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())[0],
    ),
}
"""Ours, and optax's, of the package."""
SHAPES: dict[str, Shapes] = {
    "100 arrays of 64 to 448, 7 shapes": [(64, 1 + i % 7) for i in range(100)],
    "4 arrays of 2000 x 2500": [(2000, 2500)] * 4,
}


def cases(settings: Settings) -> list[Case]:
    """Compiling and running, many small arrays and a few large ones."""
    if settings.peers.optax is None:
        return []
    taken = list(SHAPES.items())[: 1 if settings.quick else None]
    return [
        Case("jit", f"{step} a {work} in jax.jit", data, partial(prepare, settings.peers, work, shapes), rounds)
        for data, shapes in taken
        for work in WORKS
        for step, prepare, rounds in (
            (COMPILE, compiling, min(COMPILE_ROUNDS, settings.rounds)),
            (RUN, running, settings.rounds),
        )
    ]


def compiling(peers: Frameworks, work: str, shapes: Shapes) -> Prepared:
    """Traced and compiled anew by every call, as a program that JAX has not seen."""

    def call(function: Function) -> object:
        return peers.jax.jit(lambda grads: function(grads)).lower(arrays).compile()

    arrays, functions = _taken(peers, work, shapes)
    return _prepared(arrays, {who: partial(call, function) for who, function in functions.items()})


def running(peers: Frameworks, work: str, shapes: Shapes) -> Prepared:
    """What has been compiled."""

    def call(compiled: Function) -> object:
        return peers.jax.block_until_ready(compiled(arrays))

    arrays, functions = _taken(peers, work, shapes)
    return _prepared(arrays, {who: partial(call, peers.jax.jit(function)) for who, function in functions.items()})


def _taken(peers: Frameworks, work: str, shapes: Shapes) -> tuple[list[Any], dict[str, Function]]:
    random = np.random.default_rng(0)
    arrays = [peers.jax.numpy.asarray(random.standard_normal(shape).astype(np.float32)) for shape in shapes]
    ours, peer = WORKS[work]
    return arrays, {OURS: ours, "optax": peer(peers.optax)}


def _prepared(arrays: Sequence[Any], calls: dict[str, Callable[[], object]]) -> Prepared:
    return Prepared(calls, len(arrays), sum(array.nbytes for array in arrays))
