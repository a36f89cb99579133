"""The Lp ball at the ends: p near 1 and large, and gradients far longer than the radius."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import reference_forms, sets
from gradclip_core.sets import lp
from tests.sets.small import ROUNDOFF, Array, normal
from tests.sets.test_lp import LONG, norm_of, solved

G = np.array([3.0, -1.0, 0.5])
BESIDE = LONG(2.0) ** -36
"""How far a result may be from the projection, beside its largest element."""


def gap(g: Array, y: Array, p: float, radius: float) -> float:
    """``Certificate.optimality`` in extended precision."""
    d = g.astype(LONG) - y
    support = LONG(radius) * norm_of(d, float(LONG(p) / (LONG(p) - 1)))
    product = np.sum(d * y)
    return float((support - product) / max(abs(support), abs(product)))


def check(g: Array, p: float, radius: float, backend: str, best: Array | None = None) -> Array:
    """Right, in the ball, with a certificate that is one of what was written, and twice as once."""
    roundoff = ROUNDOFF[g.dtype.name]
    y, info = gc.clip_by_projection(g, sets.LpBall(radius, p), backend=backend)
    best = solved(g, p, radius) if best is None else best
    top = np.abs(best).max()
    # Where elements are as close as their roundings, so are the results, and no closer.
    assert np.abs(y - best).max() <= (BESIDE + 4 * roundoff) * top + LONG(5e-324)
    assert gc.global_norm(y, p) <= radius
    assert radius * (1 - 2.0**-37 - 4 * (roundoff if roundoff > 2.0**-53 else 0)) <= gc.global_norm(y, p) + 5e-323
    assert info.clipped
    assert info.certificate is not None
    assert info.clipped_norm == pytest.approx(gc.global_norm(y, p), rel=1e-11)
    assert info.certificate.feasibility == 0
    assert info.certificate.optimality == pytest.approx(gap(g, y, p, radius), abs=1e-12)
    assert info.certificate.optimality <= float(BESIDE) + 4 * roundoff
    assert info.certificate.moved == pytest.approx(float(norm_of(g.astype(LONG) - y, 2)), rel=1e-12)
    again, second = gc.clip_by_projection(y, sets.LpBall(radius, p), backend=backend)
    assert not second.clipped
    assert again.tobytes() == y.tobytes()
    made: Array = y
    return made


NEAR_ONE = (1.04, 1.03, 1.001, 1.0001, 1.00001)


@pytest.mark.parametrize("p", NEAR_ONE)
@pytest.mark.parametrize("far", [1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_p_near_one(p: float, far: float, dtype: Any, backend: str) -> None:
    check((G * far).astype(dtype), p, 1.0, backend)
    check((normal(9) * far).astype(dtype), p, 2.0, backend)


@pytest.mark.parametrize("p", [1 + 1e-9, 1 + 1e-12, 1 + 2.0**-52])
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e10, 1e300])
def test_in_the_limit_it_is_the_l1_ball(p: float, size: float, backend: str) -> None:
    g = normal(50, seed=3)
    one = gc.clip_by_projection(g, sets.L1Ball(4.0))[0]
    y, info = gc.clip_by_projection(g * size, sets.LpBall(4.0 * size, p), backend=backend)
    np.testing.assert_allclose(y / size, one, rtol=0, atol=2e-7 if p == 1 + 1e-9 else 1e-10)
    assert info.certificate is not None
    assert info.certificate.feasibility == 0
    assert info.certificate.optimality <= 1e-11


def test_elements_that_differ_by_their_last_bits_alone(backend: str) -> None:
    """λ as a float64 would not tell them apart: the largest z does."""
    g = 1e10 * (1 + np.arange(5) * 2.0**-40)
    check(g, 1.0001, 1.0, backend)
    check(g, 1.5, 1.0, backend)


@pytest.mark.parametrize(
    ("g", "p"),
    [
        ([1e20, 1.0, -2e19], 20.0),
        ([1e7, 1.0, 2e6], 50.0),
        ([100.0, -1.0, 30.0, 0.0], 200.0),
        ([3.0, -1.0, 0.5], 256.0),
        ([3.0, -1.0, 0.5], 257.0),
        ([3.0, -1.0, 0.5], 600.0),
        ([3.0, 2.9999, -3.0, 0.5], 1000.0),
        ([1e30, 1.0, 1e29], 1024.0),
        ([1e38, 1.0, -1e-30], 1.5),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_powers_of_large_elements(g: list[float], p: float, dtype: Any, backend: str) -> None:
    check(np.array(g, dtype), p, 1.0, backend)


@pytest.mark.parametrize("p", [1.0001, 1.1, 1.9, 2.1, 4.0, 20.0, 300.0])
@pytest.mark.parametrize(
    ("size", "radius"), [(1e100, 1.0), (1e300, 1e-300), (1e300, 1e299), (1e-300, 1e-303), (1.0, 1e-200), (1e305, 1e-3)]
)
def test_every_magnitude(p: float, size: float, radius: float, backend: str) -> None:
    check(np.array([1.0, 1e-3, -0.5, 0.0]) * size, p, radius, backend)
    check(np.array([1e-250 if size > 1 else 0.0, size, size / 2]), p, radius, backend)


@pytest.mark.parametrize("p", [1.0001, 1.01, 1.5, 3.0, 100.0, 1024.0])
@pytest.mark.parametrize("part", [1 - 2.0**-20, 1 - 2.0**-34])
def test_hardly_outside(p: float, part: float, backend: str) -> None:
    """Where little is taken away, powers of it vanish."""
    g = normal(9)
    y, info = gc.clip_by_projection(g, sets.LpBall(gc.global_norm(g, p) * part, p), backend=backend)
    assert info.clipped
    assert info.certificate is not None
    assert info.certificate.optimality == pytest.approx(
        gap(g, y, p, gc.global_norm(g, p) * part), rel=1e-3, abs=2.0**-52 / (1 - part)
    )


@pytest.mark.parametrize("p", [1 + 1e-12, 1.001, 1.3, 3.0, 40.0, 500.0])
@pytest.mark.parametrize("far", [3.0, 1e9, 1e200])
def test_closed_forms(p: float, far: float, backend: str) -> None:
    """One element keeps the whole radius; equal elements share it evenly."""
    y = gc.clip_by_projection(np.array([far, 0.0, 0.0]), sets.LpBall(1.0, p), backend=backend)[0]
    np.testing.assert_allclose(y, [1.0, 0.0, 0.0], rtol=2.0**-37)
    y = gc.clip_by_projection(np.full(7, -far), sets.LpBall(1.0, p), backend=backend)[0]
    np.testing.assert_allclose(y, np.full(7, -(7 ** (-1 / p))), rtol=2.0**-36)


def test_at_the_largest_p_it_is_nearly_the_linf_ball(backend: str) -> None:
    g = normal(50)
    y = gc.clip_by_projection(g, sets.LpBall(0.5, 1024), backend=backend)[0]
    np.testing.assert_allclose(y, np.clip(g, -0.5, 0.5), rtol=50 ** (1 / 1024) - 1 + 1e-2)
    near = gc.clip_by_projection(g, sets.LpBall(2.0, 2 + 2.0**-30), backend=backend)[0]
    np.testing.assert_allclose(near, gc.clip_by_projection(g, sets.L2Ball(2.0))[0], rtol=1e-7)


def test_a_p_beyond_that_is_refused() -> None:
    for p in (1024.5, 1e6, 1e300):
        with pytest.raises(gc.InvalidArgumentError, match="LinfBall"):
            sets.LpBall(1.0, p)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinities_that_are_sanitized(dtype: Any, backend: str) -> None:
    g = np.array([np.inf, 1.0, np.nan, 5.0], dtype)
    for p in (1.001, 1.5, 20.0, 700.0):
        y, info = gc.clip_by_projection(g, sets.LpBall(1.0, p), backend=backend, nonfinite="sanitize")
        finite = np.array([np.finfo(dtype).max, 1.0, 0.0, 5.0], dtype)
        assert y.tobytes() == gc.clip_by_projection(finite, sets.LpBall(1.0, p), backend=backend)[0].tobytes()
        assert info.clipped_norm == pytest.approx(1.0, rel=1e-6)


def test_a_search_that_fails_is_an_error_and_nothing_is_written(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = G.copy()
    monkeypatch.setattr(lp, "find_multiplier", lambda read, start, *rest: start)
    with pytest.raises(gc.GradClipError, match="times the radius") as seen:
        gc.clip_by_projection_(g, sets.LpBall(1.0, 3.0), backend=backend)
    assert not isinstance(seen.value, gc.InvalidArgumentError)
    assert g.tolist() == G.tolist()


@pytest.mark.parametrize("p", [1.0001, 1.03, 1.5, 1.99, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("a", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_the_form_solves_its_equation(p: float, a: float, backend: str) -> None:
    """Whatever the two terms are: as close as a float64 z can be to what it is of."""
    m = 10.0 ** np.linspace(-20, 20, 41)
    if backend == "numpy":
        with np.errstate(all="ignore"):
            z = reference_forms.solve_power(m, a, p)
    else:
        kernels = pytest.importorskip("gradclip_backends.numba_cpu.form_kernels")
        z = np.array([kernels.solve_power(v, a, p) for v in m])
    low, high = np.full(m.size, LONG(-12000)), np.log2(m.astype(LONG))
    for _ in range(90):
        middle = (low + high) / 2
        below = np.logaddexp2(middle, np.log2(LONG(a)) + (LONG(p) - 1) * middle) < np.log2(m.astype(LONG))
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    best = np.exp2(high).astype(float)
    np.testing.assert_allclose(z, best, rtol=2.0**-49 * max(1.0, 1 / (p - 1)) + 2e-16 * 1100, atol=1e-300)
