"""Keras's ``LossScaleOptimizer`` against ours: the same scales, the same skipped steps, the same weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

STEPS, INTERVAL, START, RATE = 300, 13, 2.0**10, 0.1
OVERFLOWS = {3, 4, 50, 120, 121, 122, 280}
Weights = np.ndarray[Any, np.dtype[np.float32]]


def gradient(w: Weights, step: int) -> Weights:
    """Of ``‖w - target‖²/2`` with noise; infinite or NaN at some steps."""
    target = np.random.default_rng(step).normal([1.0, -2.0, 3.0], 0.1).astype(np.float32)
    found = (w - target).astype(np.float32)
    if step in OVERFLOWS:
        found[step % 3] = np.inf if step % 2 else np.nan
    return found


def theirs() -> list[tuple[float, list[float]]]:
    variable = keras.Variable(np.zeros(3, np.float32))
    inner = keras.optimizers.SGD(RATE, global_clipnorm=1.0)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=START, dynamic_growth_steps=INTERVAL)
    optimizer.build([variable])
    seen = []
    for step in range(STEPS):
        w = keras.ops.convert_to_numpy(variable.value)
        scale = float(optimizer.scale_loss(1.0))
        optimizer.apply([keras.ops.convert_to_tensor(gradient(w, step) * np.float32(scale))], [variable])
        seen.append((float(optimizer.scale_loss(1.0)), keras.ops.convert_to_numpy(variable.value).tolist()))
    return seen


def ours() -> list[tuple[float, list[float]]]:
    scaler = gc.LossScaler(START, growth_interval=INTERVAL)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler)
    w = np.zeros(3, np.float32)
    seen = []
    for step in range(STEPS):
        grads = [gradient(w, step) * np.float32(scaler.scale(1.0))]
        info = clipper.step_(grads)
        assert info.skipped == (step in OVERFLOWS)
        if not info.skipped:
            w = w - np.float32(RATE) * grads[0]
        seen.append((scaler.get_scale(), w.tolist()))
    return seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras: torch's __array__
def test_scales_skips_and_weights_are_those_of_keras() -> None:
    reference, found = theirs(), ours()
    assert len({scale for scale, _ in reference}) > 4  # it fell and it grew
    assert [scale for scale, _ in found] == [scale for scale, _ in reference]
    for (_, w), (_, expected) in zip(found, reference, strict=True):
        assert w == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert reference[-1][1] == pytest.approx([1.0, -2.0, 3.0], abs=0.3)
