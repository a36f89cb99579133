"""Beside Paddle's own clipping: the same gradients to its accuracy, and the same training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no ccache
    paddle: Any = pytest.importorskip("paddle")

STEPS, RATE, MAX_NORM = 60, 0.5, 0.25


def gradients(count: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [paddle.to_tensor(rng.standard_normal(rng.integers(1, 2000)).astype("float32")) for _ in range(count)]


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9])
@pytest.mark.parametrize("seed", range(3))
def test_paddle_s_own_functions_agree_to_their_accuracy(max_norm: float, seed: int) -> None:
    given = gradients(20, seed)
    pairs = [(paddle.create_parameter(x.shape, "float32"), x) for x in given]
    theirs = [x for _, x in paddle.nn.ClipGradByGlobalNorm(max_norm)(pairs)]
    ours, _ = gc.clip_by_global_norm(given, max_norm)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=3e-6)
    theirs = [x for _, x in paddle.nn.ClipGradByNorm(max_norm)(pairs)]
    for a, b in zip(gc.clip_by_norm(given, max_norm)[0], theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=3e-6)
    theirs = [x for _, x in paddle.nn.ClipGradByValue(max_norm)(pairs)]
    for a, b in zip(gc.clip_by_value(given, max_norm)[0], theirs, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for p, x in pairs:
        p.grad = x
    norm = paddle.nn.utils.clip_grad_norm_([p for p, _ in pairs], max_norm)
    np.testing.assert_allclose(float(norm), gc.global_norm(given), rtol=3e-6)


def train(clip: Callable[[Any], bool] | None, own: Any = None) -> tuple[list[float], int]:
    """A small classifier of two spirals, with a rate that is too large for gradients that nobody clips."""
    paddle.seed(3)
    turns = np.linspace(0.5, 6, 100)
    arms = [np.stack([sign * turns * np.cos(turns), sign * turns * np.sin(turns)], 1) for sign in (1, -1)]
    points = paddle.to_tensor(np.concatenate(arms).astype("float32"))
    labels = paddle.to_tensor(np.repeat([0, 1], 100))
    model = paddle.nn.Sequential(
        paddle.nn.Linear(2, 64), paddle.nn.ReLU(), paddle.nn.Linear(64, 64), paddle.nn.ReLU(), paddle.nn.Linear(64, 2)
    )
    optimizer = paddle.optimizer.Momentum(RATE, 0.9, parameters=model.parameters(), grad_clip=own)
    losses, clipped = [], 0
    for _ in range(STEPS):
        loss = paddle.nn.functional.cross_entropy(model(points), labels)
        loss.backward()
        clipped += clip is not None and clip([p.grad for p in model.parameters()])
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses, clipped


def test_training_goes_as_with_paddle_s_own_clipping() -> None:
    theirs, _ = train(None, paddle.nn.ClipGradByGlobalNorm(MAX_NORM))
    ours, clipped = train(lambda grads: gc.clip_by_global_norm_(grads, MAX_NORM).clipped)
    assert 5 < clipped < STEPS
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-3)
    assert min(ours[-5:]) < 0.5 * ours[0]
    assert abs(np.mean(ours[-5:]) - np.mean(theirs[-5:])) < 0.2 * theirs[0]
