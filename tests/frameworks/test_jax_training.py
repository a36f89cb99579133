"""Training in JAX, clipped by us and by optax: the same to optax's accuracy, traced and not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

jax: Any = pytest.importorskip("jax")
optax: Any = pytest.importorskip("optax")
jnp: Any = jax.numpy
FLOAT32 = 2.0**-17  # optax sums some thousand squares in float32, in an order of XLA's


def some(seed: int, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), "float32") for shape in shapes]


def optax_clip(transform: Any, grads: Any) -> Any:
    return transform.update(grads, transform.init(grads))[0]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("max_norm", [0.01, 5.0, 1e9])
def test_agrees_with_optax(max_norm: float, traced: bool) -> None:
    grads = some(0, (64, 32), (32,), (3, 3, 8, 8))
    wrap: Callable[[Any], Any] = jax.jit if traced else lambda f: f
    pairs = [
        (lambda g: gc.clip_by_global_norm(g, max_norm, nonfinite="skip")[0], optax.clip_by_global_norm(max_norm)),
        (lambda g: gc.clip_by_norm(g, max_norm, nonfinite="skip")[0], optax.clip_by_block_rms(1e9)),
        (lambda g: gc.clip_by_value(g, max_norm, nonfinite="skip")[0], optax.clip(max_norm)),
    ]
    for ours, theirs in (pairs[0], pairs[2]):
        for a, b in zip(wrap(ours)(grads), optax_clip(theirs, grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=FLOAT32)
    np.testing.assert_allclose(wrap(gc.global_norm)(grads), optax.tree.norm(grads), rtol=FLOAT32)
    each = wrap(pairs[1][0])(grads)
    assert all(float(jnp.linalg.norm(g.ravel())) <= max_norm * (1 + FLOAT32) for g in each)


@pytest.mark.parametrize("traced", [False, True])
def test_agrees_with_optax_s_agc(traced: bool) -> None:
    grads, params = some(1, (64, 32), (32,)), some(2, (64, 32), (32,))

    def ours(grads: Any, params: Any) -> Any:
        return gc.adaptive_clip(grads, params, 0.01, axis="all_but_last", nonfinite="skip")[0]

    transform = optax.adaptive_grad_clip(0.01)
    theirs, _ = transform.update(grads, transform.init(params), params)
    made = (jax.jit(ours) if traced else ours)(grads, params)
    np.testing.assert_allclose(made[0], theirs[0], rtol=1e-5)


def test_training_as_with_optax() -> None:
    """The same network, data and steps: losses stay together as far as float32's sums do."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((256, 16)), "float32"), jnp.asarray(rng.standard_normal((256, 1)), "float32")
    w1, b1, w2 = some(3, (16, 64), (64,), (64, 1))
    start = {"w1": w1 / 4, "b1": b1 * 0, "w2": w2 / 8}

    def loss(params: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - 10 * y) ** 2)

    def own(grads: Any) -> Any:
        return optax_clip(optax.clip_by_global_norm(1.0), grads)

    def ours(grads: Any) -> Any:
        clipped, info = gc.clip_by_global_norm(grads, 1.0, nonfinite="skip")
        return jax.tree.map(lambda g: jnp.where(jnp.asarray(info.skipped), 0, g), clipped)

    def trained(clip: Callable[[Any], Any], *, traced: bool) -> list[float]:
        def step(params: Any) -> tuple[Any, Any]:
            value, grads = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, clip(grads)), value

        once, params, losses = jax.jit(step) if traced else functools.partial(step), start, []
        for _ in range(40):
            params, value = once(params)
            losses.append(float(value))
        return losses

    expected = trained(own, traced=True)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(trained(ours, traced=True), expected, rtol=1e-4)
    np.testing.assert_allclose(trained(ours, traced=False), expected, rtol=1e-4)
