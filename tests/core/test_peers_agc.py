"""Adaptive gradient clipping: six libraries, six rules (facts of each in its test). Ours says which one it means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc

Array = npt.NDArray[Any]
BOTH = pytest.mark.parametrize("backend", [None, "numpy"])


def agc(g: Array, w: Array, clipping: float, eps: float, axes: tuple[int, ...] | None) -> Array:
    """Equation 3 of Brock et al. 2021 in float64, with the unit spelled out."""
    g, w = g.astype(np.float64), w.astype(np.float64)
    g_norm = np.sqrt(np.sum(g * g, axis=axes, keepdims=True))
    limit = clipping * np.maximum(np.sqrt(np.sum(w * w, axis=axes, keepdims=True)), eps)
    return np.where(g_norm > limit, g * (limit / np.where(g_norm > 0, g_norm, 1)), g)


def pair(*shape: int) -> tuple[Array, Array]:
    random = np.random.default_rng(sum(shape))
    return random.standard_normal(shape).astype(np.float32), random.standard_normal(shape).astype(np.float32)


@BOTH
@pytest.mark.parametrize(
    ("axis", "shape", "axes"),
    [
        ("all_but_first", (4, 3), (1,)),  # timm: reduce dims 1.. of an (out, in) weight
        ("all_but_first", (4, 3, 2, 2), (1, 2, 3)),
        ("all_but_last", (3, 4), (0,)),  # optax: reduce axis 0 of an (in, out) weight
        ("all_but_last", (2, 2, 3, 4), (0, 1, 2)),
        (1, (4, 3, 5), (1,)),  # pytorch_optimizer: dim 1, for three axes too
        (None, (4, 3), None),  # HeavyBall: the whole tensor
        ((0, -1), (4, 3, 5), (0, 2)),
        ("all_but_last", (2, 2, 2, 3, 4), (0, 1, 2, 3)),  # optax#906, #1340, #1576: five axes raised
        ("all_but_first", (2, 2, 2, 3, 4), (1, 2, 3, 4)),
        ("all_but_first", (7,), None),  # biases and gains are one unit, in the paper and in all of them
        ("all_but_last", (7,), None),
        ("all_but_first", (), None),
    ],
)
def test_every_meaning_of_a_unit(
    axis: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None, backend: str | None
) -> None:
    """asi#439: AGC over the wrong axis, in silence. So ``axis`` has to be said."""
    g, w = pair(*shape)
    before = g.tobytes(), w.tobytes()
    clipped, info = gc.adaptive_clip([g], [w], 0.5, eps=1e-3, axis=axis, backend=backend)
    assert (g.tobytes(), w.tobytes()) == before
    expected = agc(g, w, 0.5, 1e-3, axes)
    np.testing.assert_allclose(clipped[0], expected, rtol=2**-21)
    assert info.clipped == bool((expected != g).any())
    assert gc.adaptive_clip_([g], [w], 0.5, axis=axis, backend=backend).norm == info.norm
    assert g.tobytes() == clipped[0].tobytes()
    assert w.tobytes() == before[1]


def test_the_two_layouts_disagree_on_a_square_weight() -> None:
    """Nothing else would tell: both shapes fit."""
    g, w = pair(4, 4)
    first = gc.adaptive_clip(g, w, 0.5, axis="all_but_first")[0]
    last = gc.adaptive_clip(g, w, 0.5, axis="all_but_last")[0]
    assert not np.allclose(first, last)
    np.testing.assert_array_equal(first.T, gc.adaptive_clip(g.T, w.T, 0.5, axis="all_but_last")[0])


def test_axis_has_no_default() -> None:
    with pytest.raises(TypeError, match="axis"):
        gc.adaptive_clip([np.ones((2, 2))], [np.ones((2, 2))])  # type: ignore[call-arg]


@BOTH
def test_a_weight_that_starts_at_zero_trains(backend: str | None) -> None:
    """Composer _get_clipped_gradient_coeff: without eps its coefficient is 0, for ever."""
    w = np.zeros((3, 4), np.float32)
    steps = []
    for _ in range(3):
        g = np.full((3, 4), 2.0, np.float32)
        gc.adaptive_clip_([g], [w], 0.01, eps=1e-3, axis=1, backend=backend)
        np.testing.assert_allclose(np.linalg.norm(g.astype(float), axis=1), 1e-5, rtol=2**-20)
        w -= g
        steps.append(float(np.linalg.norm(w)))
    assert 0 < steps[0] < steps[1] < steps[2]


@BOTH
def test_eps_is_a_floor_and_not_a_summand(backend: str | None) -> None:
    """smartclip adds 1e-8 to the norm; optax and timm take the maximum with 1e-3, as the paper does."""
    w = np.array([[1.0, 0.0], [1e-4, 0.0]])
    g = np.full((2, 2), 10.0)
    clipped, _ = gc.adaptive_clip(g, w, 1.0, eps=1e-3, axis=1, backend=backend)
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=1), [1.0, 1e-3], rtol=1e-13)


@BOTH
def test_units_within_their_bound_keep_their_bits(backend: str | None) -> None:
    g, w = pair(6, 5)
    g[::2] *= 1e-6
    clipped, info = gc.adaptive_clip(g, w, 0.1, axis=1, backend=backend)
    assert clipped[::2].tobytes() == g[::2].tobytes()
    assert not (clipped[1::2] == g[1::2]).any()
    assert info.clipped
    assert gc.adaptive_clip_(g, w, 1e6, axis=1, backend=backend).clipped is False


@BOTH
def test_units_that_are_zero_stay_zero(backend: str | None) -> None:
    g, w = np.zeros((2, 3)), np.zeros((2, 3))
    clipped, info = gc.adaptive_clip(g, w, 0.01, axis=1, backend=backend)
    assert clipped.tobytes() == g.tobytes()
    assert (info.norm, info.clipped) == (0.0, False)


def test_parameters_are_matched_by_path_and_shape() -> None:
    params = {"w": np.ones((2, 2)), "frozen": np.ones(9), "b": np.ones(2)}
    grads = {"b": np.full(2, 5.0), "w": np.full((2, 2), 7.0)}
    clipped, info = gc.adaptive_clip(grads, params, 1.0, axis=1)
    assert list(clipped) == list(info.norms) == ["b", "w"]
    np.testing.assert_allclose(clipped["b"], np.ones(2), rtol=1e-14)
    np.testing.assert_allclose(clipped["w"], np.ones((2, 2)), rtol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_give_no_bound(bad: float) -> None:
    """A NaN bound compares False with everything, so that nothing would be clipped again."""
    g = {"a": np.full((2, 2), 5.0), "w": np.full((2, 2), 5.0)}
    w = {"a": np.ones((2, 2)), "w": np.array([[1.0, 1.0], [1.0, bad]])}
    with pytest.raises(gc.InvalidArgumentError) as caught:
        gc.adaptive_clip_(g, w, 0.01, axis=1)
    assert "params 'w'" in caught.value.asked
    assert "infinities or NaNs" in caught.value.seen
    assert all((x == 5.0).all() for x in g.values())


@BOTH
@pytest.mark.parametrize("make", [lambda x: x.T, lambda x: x[::-1, ::2], np.asfortranarray])
def test_strided_weights_and_gradients(make: Any, backend: str | None) -> None:
    g, w = pair(6, 8)
    g, w = make(g), make(w[::-1].copy())
    before = g.copy()
    expected = agc(g, w, 0.3, 1e-3, (1,))
    gc.adaptive_clip_([g], [w], 0.3, axis="all_but_first", backend=backend)
    np.testing.assert_allclose(g, expected, rtol=2**-21)
    assert (g != before).any()
