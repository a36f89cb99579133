"""The sets that others have too: optax.projections and jaxopt.projection, in float64, to their accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets

jax = pytest.importorskip("jax")
CLOSE = 1e-11
A = np.random.default_rng(9).standard_normal(40)
OURS: dict[str, sets.Set] = {
    "l1 ball": sets.L1Ball(3.0),
    "l2 ball": sets.L2Ball(2.0),
    "linf ball": sets.LinfBall(0.4),
    "simplex": sets.Simplex(2.5),
    "box": sets.Box(-0.3, 0.8),
    "halfspace": sets.HalfSpace(A, -1.0),
    "hyperplane": sets.Hyperplane(A, 2.0),
    "not negative": sets.Box(0.0, np.inf),
}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def gradients() -> Iterator[Any]:
    rng = np.random.default_rng(3)
    for size in (1e-3, 1.0, 50.0):
        yield rng.standard_normal(40) * size
    yield np.round(rng.standard_normal(40), 1)  # ties
    yield np.full(40, 0.7)
    yield np.where(np.arange(40) == 7, 1e6, rng.standard_normal(40))


def agrees(name: str, theirs: Callable[[Any], Any]) -> None:
    for g in gradients():
        ours, _ = gc.clip_by_projection(g, OURS[name])
        np.testing.assert_allclose(ours, np.asarray(theirs(g)), rtol=CLOSE, atol=CLOSE * float(np.abs(g).max()))


@pytest.mark.parametrize("name", OURS)
def test_optax(name: str) -> None:
    optax = pytest.importorskip("optax.projections")
    agrees(
        name,
        {
            "l1 ball": lambda g: optax.projection_l1_ball(g, 3.0),
            "l2 ball": lambda g: optax.projection_l2_ball(g, 2.0),
            "linf ball": lambda g: optax.projection_linf_ball(g, 0.4),
            "simplex": lambda g: optax.projection_simplex(g, 2.5),
            "box": lambda g: optax.projection_box(g, -0.3, 0.8),
            "halfspace": lambda g: optax.projection_halfspace(g, A, -1.0),
            "hyperplane": lambda g: optax.projection_hyperplane(g, A, 2.0),
            "not negative": optax.projection_non_negative,
        }[name],
    )


@pytest.mark.parametrize("name", OURS)
def test_jaxopt(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt says that it is no longer maintained
        jaxopt = pytest.importorskip("jaxopt").projection
    agrees(
        name,
        {
            "l1 ball": lambda g: jaxopt.projection_l1_ball(g, 3.0),
            "l2 ball": lambda g: jaxopt.projection_l2_ball(g, 2.0),
            "linf ball": lambda g: jaxopt.projection_linf_ball(g, 0.4),
            "simplex": lambda g: jaxopt.projection_simplex(g, 2.5),
            "box": lambda g: jaxopt.projection_box(g, (-0.3, 0.8)),
            "halfspace": lambda g: jaxopt.projection_halfspace(g, (A, -1.0)),
            "hyperplane": lambda g: jaxopt.projection_hyperplane(g, (A, 2.0)),
            "not negative": jaxopt.projection_non_negative,
        }[name],
    )


def test_the_scope_of_several_arrays_is_optax_s_tree() -> None:
    """optax takes a tree as one vector, as scope="global" does."""
    optax = pytest.importorskip("optax.projections")
    rng = np.random.default_rng(5)
    grads = {"a": rng.standard_normal((4, 5)), "b": [rng.standard_normal(7)]}
    for ours, theirs in (
        (sets.L1Ball(2.0), lambda g: optax.projection_l1_ball(g, 2.0)),
        (sets.Simplex(2.0), lambda g: optax.projection_simplex(g, 2.0)),
        (sets.L2Ball(2.0), lambda g: optax.projection_l2_ball(g, 2.0)),
    ):
        made, _ = gc.clip_by_projection(grads, ours)
        expected = theirs(grads)  # type: ignore[no-untyped-call]  # lambdas
        np.testing.assert_allclose(made["a"], np.asarray(expected["a"]), rtol=CLOSE, atol=CLOSE)
        np.testing.assert_allclose(made["b"][0], np.asarray(expected["b"][0]), rtol=CLOSE, atol=CLOSE)
