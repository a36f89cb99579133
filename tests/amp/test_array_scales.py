"""``array_scales``: an array with a power of two of its own is the dequantised array, in norms, factors and results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.rules import Rule
from tests.amp import INTO
from tests.amp.test_to_half import EVERY, NARROW, nearest, numpy_type, same
from tests.refusals import says

Array = npt.NDArray[Any]
SCALES = {"a": 2.0**10, "b": 2.0**-7, "c": 2.0**100, "d": 2.0**-100}
ORDERS = pytest.mark.parametrize("ord", [1, 2, math.inf, 3])


def grads(name: str) -> dict[str, Array]:
    """Scaled, so that all are of one magnitude once they are dequantised; and one that has no scale."""
    rng = np.random.default_rng(8)
    shapes = {"a": (9, 7), "b": (5000,), "c": (), "d": (4, 3, 5), "e": (31,)}
    made = {path: np.asarray(rng.standard_normal(s) + 0.25).astype(numpy_type(name)) for path, s in shapes.items()}
    return {**made, "f": rng.standard_normal(12).astype(np.float32)}


def dequantised(given: dict[str, Array], scales: dict[str, float] = SCALES) -> dict[str, Array]:
    return {path: x.astype(np.float32) / np.float32(scales.get(path, 1.0)) for path, x in given.items()}


def masters(given: dict[str, Array]) -> dict[str, Array]:
    return {path: np.full(x.shape, np.nan, np.float32) for path, x in given.items()}


def rules(ord: float, size: float) -> list[Rule]:
    groups = {"x": ["a", "c", "e"], "y": ["b", "d", "f"]}
    made: list[Rule] = [
        gc.GlobalNorm(size, ord),
        gc.GlobalNorm(1e39, ord),
        gc.ArrayNorm(size / 3, ord),
        gc.GroupNorm({"x": size / 2, "y": None}, groups, ord),
        gc.Chain(gc.GlobalNorm(size, ord)),
    ]
    if ord == 2:
        weights = {path: np.full(x.shape, 0.5) for path, x in grads("float16").items()}
        made += [gc.UnitNorm(weights, 0.1, axis=0), gc.Project(sets.L2Ball(size))]
    return made


def bits(of: dict[str, Array]) -> dict[str, bytes]:
    return {path: x.tobytes() for path, x in of.items()}


def told(info: gc.ClipInfo) -> tuple[Any, ...]:
    return info.norm, info.clipped_norm, info.scale, info.clipped, dict(info.norms), dict(info.scales)


# ---- the same as the dequantised -------------------------------------------------------------------


@NARROW
@ORDERS
def test_norms_factors_and_masters(source: str, ord: float, backend: str) -> None:
    given = grads(source)
    wide = dequantised(given)
    for scale in (1.0, 1024.0, 3.0):
        size = 0.01 * gc.global_norm(wide, ord) / scale
        for rule in (*rules(ord, size), *rules(ord, gc.global_norm(wide, ord) * 3)):
            how: Any = {"loss_scale": scale, "backend": backend}
            out = masters(given)
            _, info = gc.clip(given, rule, out=out, array_scales=SCALES, **how)
            expected, like = gc.clip(wide, rule, **how)
            assert told(info) == told(like)
            assert bits(out) == bits(expected)
            assert told(gc.plan(given, rule, array_scales=SCALES, **how).info) == told(like)


@NARROW
def test_each_alone_has_its_own_norm(source: str) -> None:
    """By the definition, not by another run: the 2-norm of each array is that of its numbers over its scale."""
    given = grads(source)
    info = gc.clip(given, gc.GlobalNorm(1e39), array_scales=SCALES)[1]
    for path, x in given.items():
        expected = np.linalg.norm(x.astype(np.float64).ravel()) / SCALES.get(path, 1.0)
        assert info.norms[path] == pytest.approx(expected, rel=1e-14)
    assert info.norm == pytest.approx(math.hypot(*info.norms.values()), rel=1e-14)
    assert info.norms["d"] > 2.0**95 * info.norms["e"] > 2.0**190 * info.norms["c"]


@NARROW
def test_in_place_an_array_keeps_its_scale(source: str, backend: str) -> None:
    given, was = grads(source), grads(source)
    wide = dequantised(given)
    rule = gc.ArrayNorm(0.5)
    info = gc.clip_(given, rule, array_scales=SCALES, loss_scale=4.0, backend=backend)
    made, again = gc.clip(was, rule, array_scales=SCALES, loss_scale=4.0, backend=backend)
    assert told(info) == told(again) == told(gc.clip(wide, rule, loss_scale=4.0, backend=backend)[1])
    assert bits(made) == bits(given)
    plan = gc.plan(was, rule, array_scales=SCALES, loss_scale=4.0, backend=backend)
    assert bits(plan.apply(was)) == bits(given)
    for path in "abcde":
        factor = np.float32(info.scales[path])
        assert factor * factor.dtype.type(1) == info.scales[path]
        product = (was[path].astype(np.float32) * factor).astype(np.float64)
        same(given[path], product, source)
    before, after = (gc.clip(x, gc.GlobalNorm(1e39), array_scales=SCALES)[1].norms for x in (was, given))
    for path in "ace":  # the others have elements that with their scale are zero now
        assert after[path] == pytest.approx(min(0.5, before[path] / 4), rel=0.13)


def test_a_scale_of_1_and_no_scale_are_the_same() -> None:
    given = grads("float16")
    plain, info = gc.clip(given, gc.GlobalNorm(1.0))
    for scales in ({}, dict.fromkeys(given, 1.0), {"a": 1}):
        made, like = gc.clip(given, gc.GlobalNorm(1.0), array_scales=scales)
        assert bits(made) == bits(plain)
        assert told(like) == told(info)


def test_float32_arrays_have_scales_too_and_float64_ones_may_be_beside_them(backend: str) -> None:
    x, y = np.array([3.0, 4.0], np.float32), np.array([12.0])
    out = {"x": np.zeros(2), "y": np.zeros(1)}
    given = {"x": x * np.float32(2.0**20), "y": y}
    _, info = gc.clip(given, gc.GlobalNorm(1.0), array_scales={"x": 2.0**20}, out=out, backend=backend)
    assert (info.norm, dict(info.norms)) == (13.0, {"x": 5.0, "y": 12.0})
    like, _ = gc.clip({"x": x, "y": y}, gc.GlobalNorm(1.0), out={"x": np.zeros(2), "y": np.zeros(1)}, backend=backend)
    assert bits(out) == bits(like)
    tied = np.array([6.0, 8.0], np.float16)
    info = gc.clip_({"a": tied, "b": tied}, gc.GlobalNorm(1e9), array_scales={"a": 2.0})
    assert (info.norm, dict(info.norms)) == (5.0, {"a": 5.0, "b": 5.0})


@NARROW
@INTO
def test_to_half(source: str, target: str, backend: str) -> None:
    """Takes the scale off before it saturates and rounds."""
    given = {path: x for path, x in grads(source).items() if path != "f"}
    rule = gc.GlobalNorm(1e39)
    for scales in ({"a": 2.0**-12, "b": 2.0**5}, SCALES):
        halves, info = gc.to_half(given, target, rule, array_scales=scales, loss_scale=2.0, backend=backend)
        for path, x in given.items():
            same(halves[path], x.astype(np.float64) / scales.get(path, 1.0) * info.scale, target)
        assert info.scale == 0.5


@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
def test_policies(policy: str, backend: str) -> None:
    given = grads("float16")
    given["a"][2, 3], given["b"][7] = np.inf, np.nan
    how: Any = {"nonfinite": policy, "backend": backend}
    out = masters(given)
    before = bits(out)
    _, info = gc.clip(given, gc.GlobalNorm(1.0), out=out, array_scales=SCALES, **how)
    assert info.skipped == (policy in ("skip", "zero"))
    assert dict(info.counts) == {"a": (1, 0), "b": (0, 1)}
    if policy == "skip":
        assert bits(out) == before
    elif policy == "zero":
        assert not any(x.any() for x in out.values())
    elif policy == "propagate":
        assert np.isnan(out["a"]).all()
    else:  # the largest of float16, over the array's scale
        clean = {path: np.nan_to_num(x, nan=0.0, posinf=65504.0) for path, x in given.items()}
        expected, like = gc.clip(dequantised(clean), gc.GlobalNorm(1.0), backend=backend)
        assert bits(out) == bits(expected)
        assert (info.norm, info.scale) == (like.norm, like.scale)


def test_guards_look_at_what_is_stored(backend: str) -> None:
    given = {"a": np.array([60000.0, 6e-8, 1.0], np.float16)}
    how: Any = {"array_scales": {"a": 2.0**12}, "backend": backend}
    _, info = gc.clip(given, gc.GlobalNorm(1e9), loss_scale=0.5, nonfinite="sanitize", **how)
    assert info.overflow == 1
    made, info = gc.clip(given, gc.GlobalNorm(1e9), loss_scale=4.0, underflow="count", **how)
    assert (info.overflow, info.underflow, made["a"].tolist()) == (0, 1, [15000.0, 0.0, 0.25])


def test_clipper() -> None:
    clipper = gc.Clipper(gc.GlobalNorm(0.5), gc.LossScaler.static(8.0))
    given = grads("float8_e4m3fn")
    wide, rule = dequantised(given), clipper.rule
    expected, like = gc.clip(given, rule, array_scales=SCALES, loss_scale=8.0)
    clipper.loss_scaler.scale(1.0)
    assert told(clipper.step_(given, array_scales=SCALES)) == told(like)
    assert bits(given) == bits(expected)
    clipper.loss_scaler.scale(1.0)
    given = grads("float8_e4m3fn")
    out, info = clipper(given, out=masters(given), array_scales=SCALES)
    assert told(info) == told(like)
    assert bits(out) == bits(gc.clip(wide, rule, loss_scale=8.0)[0])
    clipper.loss_scaler.scale(1.0)
    assert clipper.step_(given).norm != info.norm  # of that step alone


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([48.0, -64.0, 0.0], dtype=torch.float8_e4m3fn)
    info = gc.clip_({"w": x}, gc.GlobalNorm(2.5), array_scales={"w": 16.0})
    assert info.norm == 5.0
    assert info.scale == pytest.approx(0.5)
    assert x.float().tolist() == [24.0, -32.0, 0.0]
    assert nearest(np.array([24.0]), "float8_e4m3fn")[0] == x.view(torch.uint8)[0]
    assert EVERY["float8_e4m3fn"][int(x.view(torch.uint8)[1])] == -32.0


# ---- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"z": 2.0}, ("array_scales['z']: there is no array of that path", "The paths are a, b")),
        ({0: 2.0}, ("array_scales[0]: there is no array of that path",)),
        ({"a": 3.0}, ("array_scales['a']=3.0: it is no power of two",)),
        ({"a": 0.0}, ("array_scales['a']=0.0",)),
        ({"a": -2.0}, ("array_scales['a']=-2.0",)),
        ({"a": math.inf}, ("array_scales['a']=inf",)),
        ({"a": 2.0**127}, ("array_scales['a']", "between 2^-126 and 2^126")),
        ({"a": True}, ("array_scales['a']=True", "is no number")),
        ({"a": np.ones(3)}, ("array_scales['a']", "an array of shape (3,)")),
        ({"b": 2.0}, ("array_scales['b']: it is float64", "narrow types alone")),
        ([2.0], ("array_scales=[2.0]: it is no mapping", "{path: power of two}")),
        (2.0, ("array_scales=2.0: it is no mapping",)),
        (None, ("array_scales=None: it is no mapping",)),
    ],
)
def test_no_scales(scales: Any, words: tuple[str, ...]) -> None:
    given: dict[str, Array] = {"a": np.ones(2, np.float16), "b": np.ones(2)}
    before = bits(given)
    calls: tuple[Any, ...] = (gc.clip, gc.clip_, gc.plan)
    for call in calls:
        with says(gc.InvalidArgumentError, *words):
            call(given, gc.GlobalNorm(0.5), array_scales=scales)
    with says(gc.InvalidArgumentError, *words):
        gc.to_half(given, "float16", gc.GlobalNorm(0.5), array_scales=scales)
    assert bits(given) == before


@pytest.mark.parametrize(
    "rule",
    [
        gc.Value(0.5),
        gc.Project(sets.L1Ball(0.5)),
        gc.Project(sets.LinfBall(0.5)),
        gc.Chain(gc.GlobalNorm(0.5), gc.GlobalNorm(0.25)),
        gc.Chain(gc.Value(0.5), gc.GlobalNorm(0.5)),
    ],
)
def test_no_rule_for_scales(rule: Rule) -> None:
    given = {"a": np.ones(2, np.float16)}
    before = bits(given)
    calls: tuple[Any, ...] = (gc.clip, gc.clip_, gc.plan)
    for call in calls:
        with says(gc.InvalidArgumentError, "array_scales with", "leave a scaled array scaled", "Clip by a norm"):
            call(given, rule, array_scales={"a": 2.0})
    assert bits(given) == before
