"""Beside MLX's own clipping: the same gradients to its accuracy, and the same training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

mx: Any = pytest.importorskip("mlx.core")
nn: Any = pytest.importorskip("mlx.nn")
optimizers: Any = pytest.importorskip("mlx.optimizers")

STEPS, RATE, MAX_NORM = 60, 0.5, 0.25


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9])
@pytest.mark.parametrize("seed", range(3))
def test_mlx_s_own_function_agrees_to_its_accuracy(max_norm: float, seed: int) -> None:
    """Its factor is ``max_norm / (norm + 1e-6)``."""
    rng = np.random.default_rng(seed)
    given = {str(i): mx.array(rng.standard_normal(rng.integers(1, 2000)), dtype=mx.float32) for i in range(20)}
    theirs, norm = optimizers.clip_grad_norm(given, max_norm)
    ours, info = gc.clip_by_global_norm(given, max_norm)
    np.testing.assert_allclose(float(norm), info.norm, rtol=3e-6)
    for name in given:
        np.testing.assert_allclose(np.array(ours[name]), np.array(theirs[name]), rtol=3e-6)


def train(clip: Callable[[Any], tuple[Any, bool]]) -> tuple[list[float], int]:
    """A small classifier of two spirals, with a rate that is too large for gradients that nobody clips."""
    mx.random.seed(3)
    turns = np.linspace(0.5, 6, 100)
    arms = [np.stack([sign * turns * np.cos(turns), sign * turns * np.sin(turns)], 1) for sign in (1, -1)]
    points, labels = mx.array(np.concatenate(arms), dtype=mx.float32), mx.array(np.repeat([0, 1], 100))
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = optimizers.SGD(RATE, momentum=0.9)
    value_and_grad = nn.value_and_grad(model, lambda m, x, y: nn.losses.cross_entropy(m(x), y, reduction="mean"))
    losses, count = [], 0
    for _ in range(STEPS):
        loss, grads = value_and_grad(model, points, labels)
        grads, clipped = clip(grads)
        count += clipped
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(float(loss))
    return losses, count


def test_training_goes_as_with_mlx_s_own_clipping() -> None:
    theirs, _ = train(lambda grads: (optimizers.clip_grad_norm(grads, MAX_NORM)[0], False))

    def clip(grads: Any) -> tuple[Any, bool]:
        clipped, info = gc.clip_by_global_norm(grads, MAX_NORM)
        return clipped, info.clipped

    ours, clipped = train(clip)
    assert 5 < clipped < STEPS
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-3)
    assert min(ours[-5:]) < 0.5 * ours[0]
    assert abs(np.mean(ours[-5:]) - np.mean(theirs[-5:])) < 0.2 * theirs[0]
