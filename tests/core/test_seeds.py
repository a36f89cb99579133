"""Worked examples and practice problems of a course on clipping, by the public functions.

The source of each is "20-02 — Gradient Clipping" (a course on the mathematics of training), whose
examples and problems are numbered there as here. Its numbers are rounded to the digits it prints.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import gradclip_core as gc

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
def test_worked_example_1_computing_a_clipped_gradient(dtype: type[np.floating]) -> None:
    """g = [3, 4, 0, 0, -12], C = 10: ‖g‖ = 13, s = 0.7692, [2.308, 3.077, 0, 0, -9.231]."""
    g = np.array([3.0, 4.0, 0.0, 0.0, -12.0], dtype)
    clipped, info = gc.clip_by_global_norm(g, 10.0)
    assert info.norm == 13.0
    assert round(info.scale, 4) == 0.7692
    assert [round(float(x), 3) for x in clipped] == [2.308, 3.077, 0.0, 0.0, -9.231]
    assert info.clipped_norm == pytest.approx(10.0, rel=2**-22)
    assert g.tolist() == [3.0, 4.0, 0.0, 0.0, -12.0]
    inside, info = gc.clip_by_global_norm(g, 13.0)
    assert not info.clipped
    assert inside.tolist() == g.tolist()


def test_worked_example_2_overflow_in_mixed_precision() -> None:
    """35000 fits into float16, 70000 does not; v = 60000 cuts the outlier and leaves 10, 100, 1000 alone."""
    g = np.array([35000.0, 10.0, 100.0, 1000.0], np.float16)
    assert np.isfinite(g).all()
    kept, info = gc.clip_by_value(g, 60000.0)
    assert not info.clipped
    assert kept.tobytes() == g.tobytes()

    wide = np.array([70000.0, 10.0, 100.0, 1000.0], np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(wide.astype(np.float16)[0])
    clipped, info = gc.clip_by_value(wide, 60000.0)
    assert clipped.tolist() == [60000.0, 10.0, 100.0, 1000.0]
    assert np.isfinite(clipped.astype(np.float16)).all()

    everyone, info = gc.clip_by_global_norm(g, 1.0)  # "norm clipping is a collective approach"
    assert (np.abs(everyone) < np.abs(g)).all()
    assert float(g[0]) == 35008.0  # the nearest float16
    assert info.norm == pytest.approx(math.sqrt(35008**2 + 10**2 + 100**2 + 1000**2), rel=1e-15)


@DTYPES
def test_worked_example_3_a_deep_linear_network(dtype: type[np.floating]) -> None:
    """20 layers of weight 2 give 2^19 = 524288; C = 100 gives s = 1.907e-4 and a gradient of 100."""
    gradient = np.array([1.0], dtype)
    for _ in range(19):
        gradient = gradient * 2
    clipped, info = gc.clip_by_global_norm([gradient], 100.0)
    assert info.norm == 524288.0
    assert f"{info.scale:.3e}" == "1.907e-04"
    assert 100.0 * (1 - 2**-21) < clipped[0][0] <= 100.0


@DTYPES
def test_practice_problem_1(dtype: type[np.floating]) -> None:
    """g = [1, 2, 2, 4, 4, 8], C = 5: ‖g‖ = 10.247, s = 0.488, [0.488, 0.976, 0.976, 1.952, 1.952, 3.904]."""
    g = np.array([1.0, 2.0, 2.0, 4.0, 4.0, 8.0], dtype)
    info = gc.clip_by_global_norm_(g, 5.0)
    assert info.norm == math.sqrt(105)
    assert round(info.norm, 3) == 10.247
    assert round(info.scale, 3) == 0.488
    np.testing.assert_allclose(g, [0.488, 0.976, 0.976, 1.952, 1.952, 3.904], atol=5e-4)
    assert np.linalg.norm(g.astype(np.float64)) == pytest.approx(5.0, rel=2**-22)
    assert np.linalg.norm(g.astype(np.float64)) <= 5.0


@DTYPES
def test_practice_problem_2_clipping_is_the_projection_on_the_ball(dtype: type[np.floating]) -> None:
    """No point of the ball is nearer to g; <g - Pg, z - Pg> <= 0 for every z in it is the certificate."""
    random = np.random.default_rng(2)
    g = (10 * random.standard_normal(50)).astype(dtype)
    projected = gc.clip_by_global_norm(g, 3.0)[0].astype(np.float64)
    wide = g.astype(np.float64)
    points = random.standard_normal((1000, 50))
    points *= 3.0 * random.random((1000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    nearest = np.linalg.norm(wide - projected)
    assert (np.linalg.norm(wide - points, axis=1) >= nearest).all()
    slack = 2**-20 * nearest  # the clipped norm is up to 4 ulp short of the radius
    assert ((points - projected) @ (wide - projected) <= slack).all()
    rate = 0.1  # and the step is then within rate · C
    assert np.linalg.norm(rate * projected) <= rate * 3.0


def test_practice_problem_3_a_norm_of_50000_in_float16() -> None:
    """A norm of 50000 fits while its elements do; clipped to 1 it makes a by-value clip at 65504 redundant."""
    g = np.full(100, 5000.0, np.float16)
    norm_first, info = gc.clip_by_global_norm(g, 1.0)
    assert info.norm == 50000.0
    assert info.clipped_norm == pytest.approx(1.0, rel=2**-10)
    np.testing.assert_allclose(norm_first.astype(float), 0.1, rtol=2**-10)
    both, chained = gc.clip(g, gc.Chain(gc.GlobalNorm(1.0), gc.Value(65504.0)))
    assert both.tobytes() == norm_first.tobytes()
    assert chained.norm == 50000.0
    # "If the max component was, say, 100,000, after norm clipping it's 2.0"
    wide = np.array([100000.0], np.float32) * np.float32(1 / 50000)
    assert wide[0] == 2.0


@DTYPES
def test_practice_problem_4_a_loss_spike(dtype: type[np.floating]) -> None:
    """From a typical 0.3 to 25.0 with C = 1: the factor is 0.04, and the direction is kept."""
    direction = np.array([0.6, 0.0, -0.8])
    typical, spike = (0.3 * direction).astype(dtype), (25.0 * direction).astype(dtype)
    before = typical.tobytes()
    assert not gc.clip_by_global_norm_(typical, 1.0).clipped
    assert typical.tobytes() == before
    clipped, info = gc.clip_by_global_norm(spike, 1.0)
    assert info.norm == pytest.approx(25.0, rel=1e-7)
    assert info.scale == pytest.approx(0.04, rel=2**-22)
    cosine = clipped.astype(float) @ spike.astype(float) / np.linalg.norm(clipped) / np.linalg.norm(spike)
    assert cosine == pytest.approx(1.0, abs=1e-7)
