"""How far a step is from the formulas of the papers, in exact arithmetic: derived bounds, held by fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradclip_core import optim
from tests.optim.common import OPTIMIZERS, bits, state_bits

U = 2.0**-24
"""float32's unit roundoff."""


def exact(values: Any) -> list[Fraction]:
    return [Fraction(float(v)) for v in values]


def test_sgd_is_within_its_roundings(backend: str) -> None:
    """p - lr·(g + λ·p): five roundings, each of at most U of what it rounds; lr and λ are rounded too."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(500).astype(np.float32) for _ in range(2))
    start, lr, decay = exact(p), Fraction(0.1), Fraction(0.03)
    optim.SGD(p, lr=0.1, weight_decay=0.03, backend=backend).step(g)
    for made, old, grad in zip(exact(p), start, exact(g), strict=True):
        true = old - lr * (grad + decay * old)
        bound = U * (abs(true) + 4 * lr * (abs(grad) + 2 * decay * abs(old)))
        assert abs(made - true) <= bound * 1.0001


def test_momentum_is_within_its_roundings(backend: str) -> None:
    rng = np.random.default_rng(1)
    p = rng.standard_normal(200).astype(np.float32)
    opt = optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.25, backend=backend)
    velocity = [Fraction(0)] * p.size
    position = exact(p)
    for step in range(5):
        g = rng.standard_normal(200).astype(np.float32)
        opt.step(g)
        for i, grad in enumerate(exact(g)):
            velocity[i] = grad if step == 0 else Fraction(0.9) * velocity[i] + Fraction(0.75) * grad
            position[i] -= Fraction(0.1) * velocity[i]
    for made, true in zip(exact(p), position, strict=True):
        assert abs(made - true) <= 5 * 16 * U * 4


def test_the_first_step_of_adam_is_lr(backend: str) -> None:
    """m/(1-β1) = g and √(v/(1-β2)) = |g|: the step is lr·g/(|g| + eps), whatever g is."""
    g = (np.array([1e-3, -5.0, 1e10, -3e-6, 7.0]) * np.ones((20, 1))).astype(np.float32).ravel()
    p = np.zeros(g.size, np.float32)
    optim.AdamW(p, lr=0.01, backend=backend).step(g)
    true = [-Fraction(0.01) * x / (abs(x) + Fraction(1e-8)) for x in exact(g)]
    for made, step in zip(exact(p), true, strict=True):
        assert abs(made - step) <= 16 * U * abs(step)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_adam_in_float64_is_the_paper(kind: Any, decay: float, backend: str) -> None:
    """Against the algorithm in its own words, bias-corrected averages and all, with roots of 200 bits."""
    rng = np.random.default_rng(2)
    p = rng.standard_normal(40)
    beta1, beta2, lr, eps = (Fraction(x) for x in (0.9, 0.99, 0.01, 1e-6))
    opt = kind(p, lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=decay, backend=backend)
    position, first, second = exact(p), [Fraction(0)] * p.size, [Fraction(0)] * p.size
    for t in range(1, 6):
        g = rng.standard_normal(40)
        opt.step(g)
        for i, grad in enumerate(exact(g)):
            if kind is optim.Adam:
                grad += Fraction(decay) * position[i]
            else:
                position[i] *= 1 - lr * Fraction(decay)
            first[i] = round_off(beta1 * first[i] + (1 - beta1) * grad)
            second[i] = round_off(beta2 * second[i] + (1 - beta2) * grad * grad)
            mean, square = first[i] / (1 - beta1**t), second[i] / (1 - beta2**t)
            position[i] = round_off(position[i] - lr * mean / (root(square) + eps))
    for made, true in zip(exact(p), position, strict=True):
        assert abs(made - true) <= 5 * 32 * 2.0**-53


def round_off(x: Fraction) -> Fraction:
    """To 200 bits behind the point, so that fractions stay small."""
    return Fraction(round(x * 2**200), 2**200)


def root(x: Fraction) -> Fraction:
    return Fraction(math.isqrt(int(x * 2**400)), 2**200)


def test_lion_takes_the_sign(backend: str) -> None:
    p = np.array([1.0, 1.0, 1.0, 1.0], np.float32)
    opt = optim.Lion(p, lr=0.25, backend=backend)
    opt.step(np.array([1e-30, -1e30, 0.0, np.nan], np.float32))
    assert p[:3].tolist() == [0.75, 1.25, 1.0]
    assert np.isnan(p[3])
    # β1·m + (1 - β1)·g: what the average holds outweighs a small gradient of the other sign.
    opt.step(np.array([-1e-38, 1e25, 0.0, 0.0], np.float32))
    assert p[:3].tolist() == [0.5, 1.5, 1.0]


def test_lion_is_the_paper(backend: str) -> None:
    rng = np.random.default_rng(3)
    p = rng.standard_normal(100)
    position, average = p.copy(), np.zeros(100)
    opt = optim.Lion(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, backend=backend)
    for _ in range(10):
        g = rng.standard_normal(100)
        opt.step(g)
        update = np.sign(0.8 * average + 0.2 * g)
        position = position - 0.01 * (update + 0.1 * position)
        average = 0.95 * average + 0.05 * g
    np.testing.assert_allclose(p, position, rtol=0, atol=100 * 2.0**-52)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name: str, backend: str) -> None:
    """f(w) = ½ Σ c·w², c between 0.1 and 2."""
    w, c = np.linspace(-2, 2, 40).astype(np.float32), np.linspace(0.1, 2, 40).astype(np.float32)
    opt = OPTIMIZERS[name](w, backend=backend)
    before = float(c @ (w * w))
    for _ in range(300):
        opt.step(c * w)
    assert float(c @ (w * w)) < 0.05 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_runs_are_the_same_to_the_bit(name: str, backend: str) -> None:
    """Twice the same, and the same for arrays split in two: an element's step is its own."""
    rng = np.random.default_rng(4)
    whole, grads = rng.standard_normal(500).astype(np.float32), rng.standard_normal((3, 500)).astype(np.float32)
    parts = [whole[:123].copy(), whole[123:].copy()]
    again = whole.copy()
    optimizers = [OPTIMIZERS[name](p, backend=backend) for p in (whole, parts, again)]
    for g in grads:
        optimizers[0].step(g)
        optimizers[1].step([g[:123].copy(), g[123:].copy()])
        optimizers[2].step(g)
    assert bits(whole) == bits(np.concatenate(parts)) == bits(again)
    assert state_bits(optimizers[0]) == state_bits(optimizers[2])
