"""What ``info`` says of projections, and the certificates of the older rules that are some."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.rules import Rule
from gradclip_core.sets import Certificate

from .test_project_rule import L1, certificate, gradients


def test_info_prints_pickles_and_compares_with_its_certificate() -> None:
    grads = gradients()
    _, info = gc.clip_by_projection(grads, L1)
    assert "certificate=Certificate(feasibility=" in repr(info)
    again = pickle.loads(pickle.dumps(info))
    assert again == info
    assert again.certificate == info.certificate
    assert hash(again) == hash(info)
    assert gc.clip_by_projection(grads, L1)[1] == info
    assert gc.clip_by_projection(grads, sets.L1Ball(2.5))[1] != info
    assert info.norm == pytest.approx(sum(float(np.abs(g).sum()) for g in grads.values()))
    assert info.clipped_norm == pytest.approx(2.0, rel=1e-14)


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_a_skipped_step_has_no_certificate(nonfinite: Any) -> None:
    for onto in (L1, sets.L2Ball(1.0), sets.LinfBall(1.0)):
        _, info = gc.clip_by_projection(np.array([np.nan, 3.0]), onto, nonfinite=nonfinite)
        assert info.skipped
        assert info.certificate is None


def test_propagated_nan_has_no_certificate() -> None:
    for onto in (L1, sets.L2Ball(1.0), sets.LinfBall(1.0)):
        made, info = gc.clip_by_projection([np.array([np.nan, 3.0]), np.ones(3)], onto, "array", nonfinite="propagate")
        assert info.certificate is None
        assert np.isnan(made[0]).any()
        assert np.isfinite(made[1]).all()


def brute(g: list[Any], y: list[Any], support: float) -> tuple[float, float]:
    """The relative gap of the variational inequality and the distance, from the arrays themselves."""
    u, v = (np.concatenate([np.asarray(x, np.float64).ravel() for x in arrays]) for arrays in (g, y))
    d = u - v
    return (support * np.linalg.norm(d) - d @ v) / (support * np.linalg.norm(d)), float(np.linalg.norm(d))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm_clipping_is_certified_as_the_projection_that_it_is(dtype: Any, backend: str) -> None:
    grads = list(gradients(dtype).values())
    made, info = gc.clip_by_global_norm(grads, 1.5, backend=backend)
    gap, moved = brute(grads, made, 1.5)
    u = np.finfo(dtype).eps
    assert certificate(info).feasibility <= 2.0**-50
    assert 0 <= certificate(info).optimality <= 8 * u
    assert abs(certificate(info).optimality - gap) <= 4 * u
    assert certificate(info).moved == pytest.approx(moved, rel=1e-5)
    _, each = gc.clip_by_norm(grads, 0.5, backend=backend)
    alone = [certificate(gc.clip_by_norm(g, 0.5, backend=backend)[1]) for g in grads]
    assert certificate(each).optimality == max(c.optimality for c in alone)
    assert certificate(each).moved == pytest.approx(math.hypot(*(c.moved or 0.0 for c in alone)))


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1.7e308])
def test_certificates_of_norms_beyond_squares(scale: float, backend: str) -> None:
    grads = [np.array([3.0, 4.0]) * (scale / 5)]
    _, info = gc.clip_by_global_norm(grads, scale / 2, backend=backend)
    assert certificate(info).optimality <= 2.0**-49
    assert certificate(info).moved == pytest.approx(scale / 2)


def test_norm_clipping_far_off_would_be_seen() -> None:
    """The certificate is of the factor that was decided, not of the one that should have been."""
    from dataclasses import replace

    from gradclip_core.certificates import of_older_rule
    from gradclip_core.pipeline import run
    from gradclip_core.validate import How

    story = run([np.full(4, 3.0)], gc.GlobalNorm(1.0), How.of({}), "clip", "nothing").story()
    (here,) = story.decided
    for change, residual in ((0.9, "optimality"), (1.1, "feasibility")):
        actions = replace(here.decision.actions, factor=here.decision.actions.factor * change)
        wrong = of_older_rule(here.stage, here.measured, replace(here.decision, actions=actions))
        assert getattr(wrong, residual) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rule", "known"),
    [
        (gc.GlobalNorm(1.0), True),
        (gc.GlobalNorm(0.0), True),
        (gc.GroupNorm(1.0, lambda path: path), True),
        (gc.ArrayNorm(1.0), True),
        (gc.Value(0.5), True),
        (gc.GlobalNorm(1.0, 1), False),
        (gc.GlobalNorm(1.0, math.inf), False),
        (gc.ArrayNorm(1.0, 3.0), False),
    ],
    ids=lambda value: type(value).__name__,  # a function's repr differs in each process
)
def test_rules_that_are_projections_have_a_certificate_and_others_none(rule: Rule, known: bool) -> None:
    for scale in (1.0, 1e-3):
        _, info = gc.clip(gradients(scale=scale), rule)
        assert (info.certificate is not None) == known
        if info.certificate is not None:
            assert info.certificate.feasibility <= 2.0**-50
            assert info.certificate.optimality <= 2.0**-49
        if info.certificate is not None and not info.clipped:
            assert info.certificate == Certificate(0.0, 0.0, 0.0)


def test_clamping_is_certified_up_to_the_rounding_of_its_limits() -> None:
    for dtype, roundoff in ((np.float16, 2.0**-11), (np.float32, 2.0**-24), (np.float64, 0.0)):
        _, info = gc.clip_by_value(gradients(dtype), 0.7)
        stored = abs(float(dtype(0.7)) / 0.7 - 1)
        assert certificate(info).optimality == pytest.approx(stored, abs=2.0**-52)
        assert certificate(info).optimality <= roundoff
        assert certificate(info).feasibility == pytest.approx(max(0.0, float(dtype(0.7)) / 0.7 - 1), abs=2.0**-52)
        assert certificate(info).moved is None
    _, info = gc.clip_by_value(gradients(np.float16), (-math.inf, 0.7))
    assert certificate(info).optimality > 0


def test_sanitized_values_are_projected_as_numbers(backend: str) -> None:
    grads = np.array([np.nan, np.inf, -2.0, 1.0])
    made, info = gc.clip_by_projection(grads, sets.L1Ball(2.0), nonfinite="sanitize", backend=backend)
    expected, _ = gc.clip_by_projection(np.nan_to_num(grads), sets.L1Ball(2.0), backend=backend)
    assert made.tobytes() == expected.tobytes()
    assert made.tolist() == [0.0, pytest.approx(2.0), 0.0, 0.0]
    assert certificate(info).feasibility == 0
