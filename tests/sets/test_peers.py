"""Beside ``optax.projections`` and ``jaxopt.projection``, in float64."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets

Array = npt.NDArray[np.float64]
jax: Any = pytest.importorskip("jax")
EDGE = 1e-12
"""Their own rounding: sums of a thousand float64 numbers, after a sort."""


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """JAX computes in float32 unless it is asked not to; the setting is put back."""
    before = bool(jax.config.jax_enable_x64)
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def optax() -> Any:
    pytest.importorskip("optax")
    return importlib.import_module("optax").projections


def jaxopt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt says that it is no longer maintained
        pytest.importorskip("jaxopt")
        return importlib.import_module("jaxopt.projection")


def vectors() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    ties = np.repeat([3.0, -2.0, 1.0], 20)
    return {
        "normal": rng.standard_normal(1000),
        "short": np.array([0.3, -4.0, 2.5]),
        "one": np.array([7.0]),
        "ties": ties,
        "decades": 10.0 ** rng.uniform(-6, 3, 500) * rng.choice([-1.0, 1.0], 500),
        "small": rng.standard_normal(50) * 1e-3,
    }


Peer = Callable[[Array], Any]


def normal_of(x: Array) -> Array:
    """A normal vector for each length."""
    return np.random.default_rng(x.size).standard_normal(x.size)


def pairs() -> dict[str, tuple[Callable[[Array], sets.Set], Peer]]:
    """Name -> our set for a vector, and a peer's projection of it on the same set."""
    ours, theirs = optax(), jaxopt()
    return {
        "optax, L1Ball": (lambda x: sets.L1Ball(2.5), lambda x: ours.projection_l1_ball(x, 2.5)),
        "optax, Simplex": (lambda x: sets.Simplex(1.75), lambda x: ours.projection_simplex(x, 1.75)),
        "optax, L2Ball": (lambda x: sets.L2Ball(1.5), lambda x: ours.projection_l2_ball(x, 1.5)),
        "optax, LinfBall": (lambda x: sets.LinfBall(0.4), lambda x: ours.projection_linf_ball(x, 0.4)),
        "optax, Box": (lambda x: sets.Box(-0.2, 0.7), lambda x: ours.projection_box(x, -0.2, 0.7)),
        "optax, Box without end": (lambda x: sets.Box(0.0, np.inf), ours.projection_non_negative),
        "optax, Hyperplane": (
            lambda x: sets.Hyperplane(normal_of(x), 0.6),
            lambda x: ours.projection_hyperplane(x, normal_of(x), 0.6),
        ),
        "optax, HalfSpace": (
            lambda x: sets.HalfSpace(normal_of(x), -0.6),
            lambda x: ours.projection_halfspace(x, normal_of(x), -0.6),
        ),
        "jaxopt, Box": (lambda x: sets.Box(-0.2, 0.7), lambda x: theirs.projection_box(x, (-0.2, 0.7))),
        "jaxopt, Hyperplane": (
            lambda x: sets.Hyperplane(normal_of(x), 0.6),
            lambda x: theirs.projection_hyperplane(x, (normal_of(x), 0.6)),
        ),
        "jaxopt, HalfSpace": (
            lambda x: sets.HalfSpace(normal_of(x), -0.6),
            lambda x: theirs.projection_halfspace(x, (normal_of(x), -0.6)),
        ),
        "jaxopt, L1Ball": (lambda x: sets.L1Ball(2.5), lambda x: theirs.projection_l1_ball(x, 2.5)),
        "jaxopt, L2Ball": (lambda x: sets.L2Ball(1.5), lambda x: theirs.projection_l2_ball(x, 1.5)),
        "jaxopt, LinfBall": (lambda x: sets.LinfBall(0.4), lambda x: theirs.projection_linf_ball(x, 0.4)),
        "jaxopt, Simplex": (lambda x: sets.Simplex(1.75), lambda x: theirs.projection_simplex(x, 1.75)),
    }


NAMES = [
    *(f"optax, {name}" for name in ("L1Ball", "Simplex", "L2Ball", "LinfBall", "Box", "Box without end")),
    *(f"optax, {name}" for name in ("Hyperplane", "HalfSpace")),
    *(f"jaxopt, {name}" for name in ("L1Ball", "Simplex", "L2Ball", "LinfBall", "Box", "Hyperplane", "HalfSpace")),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vector", vectors())
def test_the_same_point(name: str, vector: str, backend: str) -> None:
    x = vectors()[vector]
    ours, theirs = pairs()[name]
    made, info = gc.clip_by_projection(x, ours(x), backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(theirs(jax.numpy.asarray(x)))
    assert expected.dtype == np.float64
    size = float(np.abs(x).max())
    assert np.abs(made - expected).max() <= EDGE * size
    distances = np.linalg.norm(x - made), np.linalg.norm(x - expected)
    assert distances[0] <= distances[1] + EDGE * size, "theirs is nearer"
    assert info.certificate is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tree_is_projected_as_one_vector_by_both() -> None:
    rng = np.random.default_rng(1)
    grads = {"a": rng.standard_normal((6, 5)), "b": rng.standard_normal(9)}
    tree = {path: jax.numpy.asarray(g) for path, g in grads.items()}
    for onto, theirs in (
        (sets.L1Ball(2.5), optax().projection_l1_ball(tree, 2.5)),
        (sets.Simplex(1.5), optax().projection_simplex(tree, 1.5)),
        (sets.L2Ball(0.5), optax().projection_l2_ball(tree, 0.5)),
    ):
        made, _ = gc.clip_by_projection(grads, onto)
        for path, y in made.items():
            assert np.allclose(y, np.asarray(theirs[path]), rtol=1e-12, atol=1e-13)


def test_float32_is_nearer_here_than_there() -> None:
    """A sum of sorted float32 numbers loses what an exact one keeps."""
    x = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    exact, _ = gc.clip_by_projection(x.astype(np.float64), sets.L1Ball(1000.0))
    made, _ = gc.clip_by_projection(x, sets.L1Ball(1000.0))
    theirs = np.asarray(optax().projection_l1_ball(jax.numpy.asarray(x), 1000.0), np.float64)
    ours_off, theirs_off = (float(np.abs(y - exact).max()) for y in (made.astype(np.float64), theirs))
    assert ours_off <= 2.0**-23
    assert ours_off <= theirs_off
