"""``Project`` and ``clip_by_projection``: what they refuse, what they are the same as, and what they report."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.rules import Rule
from gradclip_core.sets import Certificate

RNG = np.random.default_rng(0)
L1 = sets.L1Ball(2.0)


def gradients(dtype: Any = np.float64, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "a": (scale * rng.standard_normal((6, 5))).astype(dtype),
        "b": (scale * rng.standard_normal(40)).astype(dtype),
        "c": np.array(scale * rng.standard_normal(), dtype),
    }


def bits(grads: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in (grads.values() if isinstance(grads, dict) else grads)]


def certificate(info: gc.ClipInfo) -> Certificate:
    assert info.certificate is not None
    return info.certificate


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("onto", "how", "sentence"),
    [
        (sets.L1Ball, {}, r"onto=.*: it is a class, not a set\. Pass one of gradclip_core\.sets"),
        (1.0, {}, r"Project, onto=1\.0: a float is no set"),
        (None, {}, r"Project, onto=None: a NoneType is no set"),
        (L1, {"scope": "unit"}, r"Project, scope='unit': there is no such scope\. Pass one of global, group, array"),
        (L1, {"scope": None}, r"scope=None: there is no such scope"),
        (L1, {"scope": ["global"]}, r"there is no such scope"),
        (L1, {"groups": {"all": ["a"]}}, r"there are no groups with scope='global'\. Pass scope='group'"),
        (L1, {"scope": "array", "groups": {}}, r"there are no groups with scope='array'"),
        (L1, {"scope": "group"}, r"groups=None"),
        (L1, {"scope": "group", "groups": "layer"}, r"groups='layer'"),
        (L1, {"scope": "group", "groups": {"x": ["a"]}}, r"'b'"),
        (L1, {"scope": "group", "groups": {"x": ["a", "b", "c", "d"]}}, r"'d'"),
        (L1, {"backend": "no such"}, r"there is no such backend"),
        (L1, {"nonfinite": "ignore"}, r"nonfinite='ignore'"),
    ],
)
def test_refusals_before_anything_is_written(onto: Any, how: dict[str, Any], sentence: str) -> None:
    grads = gradients()
    before = bits(grads)
    for call in (gc.clip_by_projection, gc.clip_by_projection_):
        with pytest.raises(gc.GradClipError, match=sentence):
            call(grads, onto, **how)
    assert bits(grads) == before


def test_complex_arrays_have_no_projection_but_on_an_l2_ball() -> None:
    grads = [np.ones(3, np.complex64), np.ones(2)]
    for onto in (L1, sets.LinfBall(0.5), sets.Box(0.0, 1.0), sets.Simplex()):
        with pytest.raises(gc.UnsupportedArrayError, match=r"array '0': it is complex"):
            gc.clip_by_projection_(grads, onto)
    assert np.all(grads[0] == 1)
    made, info = gc.clip_by_projection(grads, sets.L2Ball(1.0))
    assert made[0].dtype == np.complex64
    assert certificate(info).optimality <= 2.0**-21


def test_arrays_on_a_device_are_refused() -> None:
    """As the pipeline asks, with what it has: arrays of a device, and a backend."""
    elsewhere: Any = SimpleNamespace(device="cuda:0", arrays=[])
    with pytest.raises(gc.BackendError, match=r"clip_, arrays on cuda:0: .*made in host memory.*Pass arrays in host"):
        gc.Project(L1).refuse_unfit(elsewhere, REFERENCE, "clip_")


def test_a_set_that_does_not_fit_is_an_error_before_any_scope_is_written() -> None:
    """The second scope has no projection: the first, which has, is not written."""
    grads = [np.full(3, 5.0), np.zeros(0)]
    with pytest.raises(gc.InvalidArgumentError, match=r"Simplex\(total=1\)"):
        gc.clip_by_projection_(grads, sets.Simplex(), "array")
    assert (grads[0] == 5).all()


# ---- the same as older rules -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("how", [{}, {"loss_scale": 8.0}, {"loss_scale": 3.0}, {"nonfinite": "sanitize"}])
def test_identical_bits_to_older_rules(dtype: Any, how: dict[str, Any], backend: str) -> None:
    groups = {"x": ["a", "c"], "y": ["b"]}
    how = {**how, "backend": backend}
    pairs = [
        (lambda g: gc.clip_by_projection(g, sets.L2Ball(1.5), **how), lambda g: gc.clip_by_global_norm(g, 1.5, **how)),
        (
            lambda g: gc.clip_by_projection(g, sets.L2Ball(1.5), "group", groups=groups, **how),
            lambda g: gc.clip_by_group_norm(g, 1.5, groups=groups, **how),
        ),
        (
            lambda g: gc.clip_by_projection(g, sets.L2Ball(1.5), "array", **how),
            lambda g: gc.clip_by_norm(g, 1.5, **how),
        ),
        (lambda g: gc.clip_by_projection(g, sets.LinfBall(0.7), **how), lambda g: gc.clip_by_value(g, 0.7, **how)),
        (
            lambda g: gc.clip_by_projection(g, sets.LinfBall(0.7), "array", **how),
            lambda g: gc.clip_by_value(g, 0.7, **how),
        ),
        (
            lambda g: gc.clip_by_projection(g, sets.Box(-0.2, 1.1), **how),
            lambda g: gc.clip_by_value(g, (-0.2, 1.1), **how),
        ),
        (
            lambda g: gc.clip_by_projection(g, sets.Box(0.0, math.inf), "group", groups=groups, **how),
            lambda g: gc.clip_by_value(g, (0.0, math.inf), **how),
        ),
    ]
    for ours, theirs in pairs:
        for scale in (1.0, 0.01):
            grads = gradients(dtype, scale)
            (made, info), (expected, other) = ours(grads), theirs(grads)  # type: ignore[no-untyped-call]  # lambdas
            assert bits(made) == bits(expected)
            assert info == other
            assert info.certificate == other.certificate


def test_one_array_one_group_and_one_scope_are_the_same(backend: str) -> None:
    grads = {"w": RNG.standard_normal((9, 4))}
    for onto in (L1, sets.Simplex(3.0)):
        expected, info = gc.clip_by_projection(grads, onto, backend=backend)
        for scope, groups in (("array", None), ("group", {"all": ["w"]}), ("group", lambda path: path)):
            made, seen = gc.clip_by_projection(grads, onto, scope, groups=groups, backend=backend)
            assert bits(made) == bits(expected)
            assert seen == info


def test_scopes_are_independent(backend: str) -> None:
    grads = gradients()
    made, info = gc.clip_by_projection(grads, L1, "array", backend=backend)
    alone = {path: gc.clip_by_projection(g, L1, backend=backend) for path, g in grads.items()}
    assert bits(made) == bits({path: y for path, (y, _) in alone.items()})
    of_each = [certificate(seen) for _, seen in alone.values()]
    assert certificate(info).optimality == max(c.optimality for c in of_each)
    assert certificate(info).feasibility == max(c.feasibility for c in of_each)
    assert certificate(info).moved == pytest.approx(math.hypot(*(c.moved or 0.0 for c in of_each)))
    grouped, _ = gc.clip_by_projection(grads, L1, "group", groups={"x": ["a", "c"], "y": ["b"]}, backend=backend)
    pair, _ = gc.clip_by_projection({k: grads[k] for k in "ac"}, L1, backend=backend)
    assert grouped["a"].tobytes() + grouped["c"].tobytes() == pair["a"].tobytes() + pair["c"].tobytes()
    assert grouped["b"].tobytes() == alone["b"][0].tobytes()


# ---- chains and plans ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["project first", "project last", "between"])
def test_chains_are_one_rule_after_the_other(order: str, backend: str) -> None:
    rules: dict[str, list[Rule]] = {
        "project first": [gc.Project(L1), gc.GlobalNorm(0.5)],
        "project last": [gc.GlobalNorm(5.0), gc.Project(sets.L1Ball(1.0), "array")],
        "between": [gc.Value(1.0), gc.Project(sets.Simplex(4.0)), gc.Value(0.3)],
    }
    for dtype in (np.float32, np.float64):
        grads = gradients(dtype, 8.0)
        chained, info = gc.clip(grads, gc.Chain(*rules[order]), loss_scale=8.0, backend=backend)
        stepwise: Any = grads
        for number, rule in enumerate(rules[order]):
            stepwise, last = gc.clip(stepwise, rule, loss_scale=1.0 if number else 8.0, backend=backend)
        assert bits(chained) == bits(stepwise)
        assert info.certificate == last.certificate
        plan = gc.plan(grads, gc.Chain(*rules[order]), loss_scale=8.0, backend=backend)
        assert bits(plan.apply(grads)) == bits(chained)
        assert plan.info == info
        assert gc.clip_(grads, gc.Chain(*rules[order]), loss_scale=8.0, backend=backend) == info
        assert bits(grads) == bits(chained)


@pytest.mark.parametrize("onto", [L1, sets.Simplex(3.0), sets.L2Ball(1.0), sets.Box(-0.1, 0.2)], ids=repr)
def test_plans_write_what_was_decided(onto: sets.Set, backend: str) -> None:
    grads = gradients(np.float32)
    before = bits(grads)
    plan = gc.plan(grads, gc.Project(onto, "array"), backend=backend)
    assert bits(grads) == before, "a plan writes nothing"
    expected, info = gc.clip_by_projection(grads, onto, "array", backend=backend)
    assert plan.info == info
    assert bits(plan.apply(grads)) == bits(expected)
    plan.apply_(grads)
    assert bits(grads) == bits(expected)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.ones((6, 5)), "b": np.ones(40)},
        {"a": np.ones((5, 6)), "b": np.ones(40), "c": np.ones(())},
        {"a": np.ones((6, 5), np.float32), "b": np.ones(40), "c": np.ones(())},
        {"a": np.ones((6, 5)), "b": np.ones(40), "d": np.ones(())},
    ],
    ids=["fewer", "shape", "dtype", "path"],
)
def test_a_plan_for_other_gradients_is_refused(other: dict[str, Any]) -> None:
    plan = gc.plan(gradients(), gc.Project(L1))
    before = bits(other)
    for call in (plan.apply, plan.apply_):
        with pytest.raises(gc.GradClipError, match="Apply a plan to gradients of the structure that it was made for"):
            call(other)
    assert bits(other) == before


def test_a_plan_with_the_axes_of_its_arrays_in_another_order(backend: str) -> None:
    """The elements of a Fortran-ordered array are met in memory order; those of a C-ordered one in another."""
    grads = {"w": RNG.standard_normal((7, 5)).T}
    expected, _ = gc.clip_by_projection({"w": np.ascontiguousarray(grads["w"])}, L1, backend=backend)
    made, _ = gc.clip_by_projection(grads, L1, backend=backend)
    assert np.array_equal(made["w"], expected["w"])
    plan = gc.plan(grads, gc.Project(L1), backend=backend)
    other = {"w": np.ascontiguousarray(grads["w"])}
    assert np.array_equal(plan.apply(other)["w"], expected["w"])
    plan.apply_(other)
    assert np.array_equal(other["w"], expected["w"])
    strided = {"w": np.repeat(np.ascontiguousarray(grads["w"]), 2, axis=1)[:, ::2]}
    gc.clip_by_projection_(strided, L1, backend=backend)
    assert np.array_equal(strided["w"], expected["w"])


@pytest.mark.parametrize("nothing", [[], {}, [None]])
def test_no_arrays_are_a_scope_without_elements(nothing: Any) -> None:
    for onto in (L1, sets.LpBall(1.0, 3), sets.L1L2Ball(1.0), sets.SpectralBall(1.0), sets.Intersection(L1)):
        made, info = gc.clip_by_projection(nothing, onto)
        assert made == nothing
        assert not info.clipped
    with pytest.raises(gc.InvalidArgumentError, match="a scope without elements"):
        gc.clip_by_projection(nothing, sets.Simplex())
