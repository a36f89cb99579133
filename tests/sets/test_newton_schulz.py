"""The projection on a spectral ball by products alone: its error, over condition numbers, is what is stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.sets import newton_schulz

Array = npt.NDArray[Any]


def proof(info: gc.ClipInfo) -> sets.Certificate:
    """The certificate, which every projection has."""
    assert info.certificate is not None
    return info.certificate


def of_singular_values(m: int, n: int, s: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """U, V and ``U·s·Vᵀ``."""
    u = np.linalg.qr(rng.standard_normal((m, s.size)))[0]
    v = np.linalg.qr(rng.standard_normal((n, s.size)))[0]
    return u, v, (u * s) @ v.T


@pytest.mark.parametrize("decades", [0, 1, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (8, 5), (30, 30), (100, 160)])
def test_the_error_is_what_is_stated(shape: tuple[int, int], decades: int) -> None:
    rng = np.random.default_rng(1)
    s = 10.0 ** -np.linspace(0, decades, min(shape))
    u, v, matrix = of_singular_values(*shape, s, rng)
    for radius in (0.999999, 0.5, 1e-1, 1e-3, 1e-6):
        got = newton_schulz.within(matrix, radius, 0.0)
        assert got is not None
        error = np.linalg.norm(got - (u * np.minimum(s, radius)) @ v.T, 2)
        assert error <= 2.0**-36 * radius + 2.0**-42
        assert np.linalg.norm(got, 2) <= radius


def test_singular_values_at_the_radius_do_no_harm() -> None:
    """There |S| has eigenvalues near 0, whose sign the iteration does not find."""
    rng = np.random.default_rng(1)
    s = np.concatenate([1 + 10.0 ** -np.arange(1.0, 17), 1 - 10.0 ** -np.arange(1.0, 17), [1.0, 3.0]])
    u, v, matrix = of_singular_values(50, 40, np.sort(s)[::-1], rng)
    got = newton_schulz.within(matrix, 1.0, 0.0)
    assert got is not None
    assert np.linalg.norm(got - (u * np.minimum(np.sort(s)[::-1], 1.0)) @ v.T, 2) <= 2.0**-36 + 3 * 2.0**-42
    assert np.linalg.norm(got, 2) <= 1.0


@pytest.mark.parametrize("size", [0.5, 1 - 1e-9, 1.0])
def test_inside_it_is_left_alone(size: float) -> None:
    rng = np.random.default_rng(1)
    _, _, matrix = of_singular_values(20, 15, np.full(15, size) * (1 - 1e-15), rng)
    assert newton_schulz.within(matrix, 1.0, 0.0) is None
    y, info = gc.clip_by_projection(matrix, sets.SpectralBall(1.0, method="newton_schulz"))
    assert np.array_equal(y, matrix)
    assert not info.clipped


def test_a_little_outside_is_outside() -> None:
    rng = np.random.default_rng(1)
    _, _, matrix = of_singular_values(20, 15, np.linspace(1 + 2.0**-34, 0.1, 15), rng)
    assert newton_schulz.within(matrix, 1.0, 0.0) is not None
    assert newton_schulz.within(matrix / (1 + 2.0**-33), 1.0, 0.0) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_narrow_types_stay_inside_but_for_their_rounding(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    roundoff = float(np.finfo(dtype).eps) / 2
    for shape in ((6, 4), (40, 40), (64, 200)):
        g = rng.standard_normal(shape).astype(dtype)
        y, info = gc.clip_by_projection(g, sets.SpectralBall(1.5, method="newton_schulz"))
        largest = np.linalg.svd(y.astype(np.float64), compute_uv=False)[0]
        assert largest <= 1.5 * (1 + (0 if dtype == np.float32 else roundoff))
        svd = gc.clip_by_projection(g.astype(np.float64), sets.SpectralBall(1.5))[0]
        assert np.linalg.norm(y - svd, 2) <= 8 * roundoff * 1.5
        assert proof(info).optimality <= 16 * roundoff


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (4, 6), (100, 100)])
def test_the_bound_is_one_and_is_close(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for matrix in (rng.standard_normal(shape), np.ones(shape), np.eye(*shape)):
        largest = np.linalg.norm(matrix, 2)
        for scale in (1.0, 1e-200, 1e200):
            bound = newton_schulz.upper_bound(matrix * scale) / scale
            assert largest <= bound <= 1.001 * min(shape) ** (1 / 8) * largest
    assert newton_schulz.upper_bound(np.zeros(shape)) == 0


@pytest.mark.parametrize("least", [0.9, 1e-2, 1e-6, 1e-12])
def test_singular_values_come_to_one(least: float) -> None:
    rng = np.random.default_rng(1)
    u, v, matrix = of_singular_values(30, 20, np.geomspace(1.0, least, 20), rng)
    got = newton_schulz.unit_singular_values(matrix, least)
    assert np.linalg.norm(got.T @ got - np.eye(20), 2) < 1e-13
    # The vectors of the largest are found best: their part of U·Vᵀ counts most.
    assert np.linalg.norm((got - u @ v.T) @ matrix.T, 2) < 1e-12
