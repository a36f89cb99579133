"""What two courses on clipping say of half precision: an example, a problem, and the pitfalls, by the public functions.

"20-02 — Gradient Clipping": worked example 2 and practice problem 3, numbered there as here; and the
sections "Combined with mixed precision" and "Common pitfalls" of the shorter one.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from tests.core import exact

MODEST = [10.0, 100.0, 1000.0]
U = Fraction(2) ** -11
Array = npt.NDArray[Any]


# ---- example 2 --------------------------------------------------------------------------------------


def test_35000_fits_float16_and_70000_does_not() -> None:
    assert np.float16(35000.0) == 35008.0  # the nearest
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(70000.0))
    g = np.array([35000.0, *MODEST], np.float32)
    half, info = gc.to_half(g, "float16", gc.Value(65504.0))
    assert (half.tolist(), info.clipped) == ([35008.0, *MODEST], False)
    over = np.array([70000.0, *MODEST], np.float32)
    half, info = gc.to_half(over, "float16", gc.Value(65504.0))
    assert (half.tolist(), info.clipped) == ([65504.0, *MODEST], True)
    unclipped, info = gc.to_half(over, "float16", gc.Value(1e9))  # saturated, though by no rule
    assert (unclipped.tolist(), info.clipped) == ([65504.0, *MODEST], False)


@pytest.mark.parametrize("v", [65504.0, 60000.0])
def test_the_threshold_and_the_safety_margin_leave_modest_values_unchanged(v: float) -> None:
    for outlier in (70000.0, 1e30, -70000.0):
        g = np.array([outlier, *MODEST, *(-x for x in MODEST)], np.float32)
        clipped = gc.clip_by_value(g, v)[0]
        half = gc.to_half(g, "float16", gc.Value(v))[0]
        assert half.tolist() == clipped.tolist() == [float(np.copysign(v, outlier)), *g.tolist()[1:]]
        assert np.isfinite(clipped.astype(np.float16)).all()
    at_most = np.array([35000.0, *MODEST], np.float16)
    assert gc.clip_by_value(at_most, v)[0].tobytes() == at_most.tobytes()


def test_under_a_loss_scale_an_overflow_is_seen_not_clipped() -> None:
    """35000 under a scale of 2 is beyond float16: infinite, the step is skipped, and the scale falls."""
    clipper = gc.Clipper(gc.Value(60000.0), gc.LossScaler(2.0))
    for expected in ([True, 1.0], [False, 1.0]):
        scale = clipper.loss_scaler.take_scale()
        with np.errstate(over="ignore"):
            g = (np.array([35000.0, *MODEST]) * scale).astype(np.float16)
        info = clipper.step_([g])
        assert [info.skipped, clipper.loss_scaler.get_scale()] == expected
    assert g.tolist() == [35008.0, *MODEST]


def test_norm_clipping_is_collective_and_value_clipping_individual() -> None:
    g = np.array([35000.0, *MODEST], np.float32)
    everyone, info = gc.to_half(g, "float16", gc.GlobalNorm(1.0))
    for x, y in zip(g.tolist(), everyone.tolist(), strict=True):
        assert y == pytest.approx(x * info.scale, rel=float(U), abs=2.0**-25)
    assert (np.abs(everyone) < g).all()
    assert everyone[0] == pytest.approx(1.0, rel=1e-3)
    alone, _ = gc.to_half(g, "float16", gc.Value(1000.0))
    assert alone.tolist() == [1000.0, *MODEST]
    assert exact.norm_at_most([everyone], 1 + U)


# ---- problem 3 --------------------------------------------------------------------------------------


def spread_over(count: int) -> Array:
    """Of norm 50,000."""
    return np.full(count, 50_000.0 / count**0.5, np.float16)


@pytest.mark.parametrize("count", [100, 625, 2500])
def test_a_norm_of_50000_fits_float16_and_is_1_afterwards(count: int) -> None:
    g = spread_over(count)
    assert np.isfinite(g).all()
    for clipped, info in (gc.clip(g, gc.GlobalNorm(1.0)), gc.to_half(g, "float16", gc.GlobalNorm(1.0))):
        assert info.norm == 50_000.0
        assert info.scale == pytest.approx(1 / 50_000, rel=2**-22)
        assert info.clipped_norm == pytest.approx(1.0, rel=2**-22)
        assert exact.norm_at_most([clipped], 1 + U)
        assert exact.norm_at_least([clipped], 1 - U - Fraction(2) ** -21)


@pytest.mark.parametrize("count", [100, 625, 2500])
def test_value_clipping_after_norm_clipping_is_redundant_and_alone_it_is_not(count: int) -> None:
    g, norm, value = spread_over(count), gc.GlobalNorm(1.0), gc.Value(65504.0)
    once, both = gc.clip(g, norm)[0], gc.clip(g, gc.Chain(norm, value))[0]
    assert both.tobytes() == once.tobytes()
    assert gc.to_half(g, "float16", gc.Chain(norm, value))[0].tobytes() == gc.to_half(g, "float16", norm)[0].tobytes()
    assert gc.clip(g, value)[0].tobytes() == g.tobytes()  # touches outliers alone, and there are none


def test_a_component_of_100000_does_not_fit_and_clipped_first_it_does() -> None:
    """ "If the max component was, say, 100,000, after norm clipping it's 2.0": under a factor of 1/50,000."""
    g = np.array([100_000.0, 3.0], np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(g.astype(np.float16)[0])
    assert gc.to_half(g, "float16", gc.GlobalNorm(1e9))[0].tolist() == [65504.0, 3.0]
    half, info = gc.to_half(g, "float16", gc.GlobalNorm(2.0))
    assert info.norm == pytest.approx(100_000.0)
    assert info.scale == pytest.approx(1 / 50_000)
    assert half[0] == 2.0
    out = np.zeros(2, np.float16)
    gc.clip(g, gc.GlobalNorm(2.0), out=out)
    assert out.tobytes() == half.tobytes()


# ---- the pitfalls -----------------------------------------------------------------------------------

DIRECTION = np.array([0.6, 0.0, -0.8, 2.0**-12])


@pytest.mark.parametrize("scale", [2.0**4, 2.0**10, 2.0**14])
@pytest.mark.parametrize("norm", [0.3, 1.0, 2.5])
def test_clipping_must_be_applied_on_the_unscaled_gradients(scale: float, norm: float) -> None:
    """The threshold on the scaled ones would clip each of these to 1/scale, and the Clipper does not."""
    g = (norm * DIRECTION * scale).astype(np.float16)
    pitfall = gc.clip(g, gc.GlobalNorm(1.0))[0].astype(np.float64) / scale
    assert np.linalg.norm(pitfall) == pytest.approx(1 / scale, rel=2**-10)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler.static(scale))
    clipper.loss_scaler.scale(1.0)
    info = clipper.step_([g])
    assert info.norm == pytest.approx(norm, rel=2**-10)
    assert float(np.linalg.norm(g.astype(np.float64))) == pytest.approx(min(norm, 1.0), rel=2**-10)
    assert np.linalg.norm(pitfall) < 0.25 * np.linalg.norm(g.astype(np.float64))


def test_small_gradients_are_representable_because_of_the_scale() -> None:
    """And stay so in float32 masters; in float16 unscaled they would be 0, which underflow='count' tells."""
    small = 2.0**-28
    assert np.float16(small) == 0
    scaled = np.array([small * 2.0**16, 0.5], np.float16)
    masters = np.zeros(2, np.float32)
    gc.clip(scaled, gc.GlobalNorm(1.0), out=masters, loss_scale=2.0**16)
    assert masters[0] == small
    assert gc.clip_(scaled, gc.GlobalNorm(1.0), loss_scale=2.0**16, underflow="count").underflow == 1


def test_per_group_clipping_has_another_effective_clip_for_each_and_bends_the_direction() -> None:
    grads = {"body": np.array([30.0, 40.0], np.float16), "head": np.array([0.3, 0.4], np.float16)}
    groups = {"a": ["body"], "b": ["head"]}
    per_group, info = gc.clip_by_group_norm(grads, {"a": 1.0, "b": 1.0}, groups=groups)
    assert info.scales == pytest.approx({"body": 1 / 50, "head": 1.0}, rel=1e-3)
    together, info = gc.clip_by_global_norm(grads, 1.0)
    assert len(set(info.scales.values())) == 1

    def cosine(clipped: dict[str, Array]) -> float:
        a, b = (np.concatenate([x.astype(float) for x in of.values()]) for of in (grads, clipped))
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(together) == pytest.approx(1.0, abs=1e-6)
    assert cosine(per_group) < 0.95


def test_clipping_that_is_always_active_shows_in_the_statistics() -> None:
    """A threshold that is too aggressive, or a broken data pipeline: every step is clipped."""
    for bound, expected in ((0.01, 20), (3.0, 0)):
        clipper = gc.Clipper(gc.GlobalNorm(bound), gc.LossScaler(2.0**10))
        for step in range(20):
            clipper.loss_scaler.scale(1.0)
            clipper.step_([(DIRECTION * (1 + step / 20) * 2.0**10).astype(np.float16)])
        assert (clipper.statistics.steps, clipper.statistics.clipped) == (20, expected)
        assert clipper.statistics.mean_norm == pytest.approx(1.475, rel=1e-3)
