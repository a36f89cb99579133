"""A plan that an optimizer consumes is the clip, and then the optimizer: to the bit, and in fewer passes."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core import optim, registry, sets
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from gradclip_core.rules import Rule
from tests.optim.common import NUMPY_DTYPES, OPTIMIZERS, as_array, bits, drawn, state_bits
from tests.refusals import says

SHAPES = {"w": (7, 30), "b": (5,), "none": (0, 3), "scalar": ()}
ONE_FACTOR: dict[str, Rule] = {
    "clips": gc.GlobalNorm(0.37),
    "inside": gc.GlobalNorm(1e6),
    "ord 1": gc.GlobalNorm(2.0, 1),
    "to zero": gc.GlobalNorm(0.0),
    "arrays": gc.ArrayNorm(0.3, math.inf),
    "groups": gc.GroupNorm({"x": 0.2, "y": None}, {"x": ["w", "none"], "y": ["b", "scalar"]}),
    "units inside": gc.UnitNorm({k: np.full(s, 1e6) for k, s in SHAPES.items()}, 1.0, axis=-1),
    "value inside": gc.Value(1e6),
    "chain of which one clips": gc.Chain(gc.Value(1e6), gc.GlobalNorm(0.5)),
    "ball": gc.Project(sets.L2Ball(0.4)),
}


def arrays(seed: int, dtype: DType = FLOAT32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {k: s for k, s in SHAPES.items() if dtype in NUMPY_DTYPES or s}
    return {k: as_array(drawn(rng, math.prod(s), dtype), dtype).reshape(s) for k, s in shapes.items()}


def copied(of: dict[str, Any]) -> dict[str, Any]:
    return {k: v.copy() for k, v in of.items()}


@pytest.mark.parametrize("rule", ONE_FACTOR.values(), ids=ONE_FACTOR)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_a_plan_is_apply_and_then_step(dtype: DType, rule: Rule, backend: str) -> None:
    """Over several steps, every optimizer; a loss scale that is no power of two rounds the same way too."""
    if isinstance(rule, gc.UnitNorm):
        rule = gc.UnitNorm({k: np.full(s, 1e6) for k, s in SHAPES.items() if s}, 1.0, axis=-1)
    for name, make in OPTIMIZERS.items():
        ours, theirs = arrays(1), arrays(1)
        one, other = make(ours, backend=backend), make(theirs, backend=backend)
        for step, scale in enumerate((1.0, 1024.0, 1000.0)):
            grads = arrays(step + 2, dtype)
            if isinstance(rule, gc.UnitNorm):
                del grads["scalar"]
            before = {k: bits(v) for k, v in grads.items()}
            assert one.step(grads, gc.plan(grads, rule, loss_scale=scale, backend=backend))
            assert {k: bits(v) for k, v in grads.items()} == before
            gc.plan(grads, rule, loss_scale=scale, backend=backend).apply_(grads)
            assert other.step(grads)
            assert {k: bits(v) for k, v in ours.items()} == {k: bits(v) for k, v in theirs.items()}, (name, step)
        assert state_bits(one) == state_bits(other)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    bound=st.floats(1e-30, 1e3),
    scale=st.floats(1e-3, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_plan_is_apply_and_then_step_by_any_factor(name: str, bound: float, scale: float, seed: int) -> None:
    ours, theirs, grads = arrays(seed), arrays(seed), arrays(seed + 1)
    one, other = (OPTIMIZERS[name](p, backend="numpy") for p in (ours, theirs))
    plan = gc.plan(grads, gc.GlobalNorm(bound), loss_scale=scale, backend="numpy")
    one.step(grads, plan)
    plan.apply_(grads)
    other.step(grads)
    assert {k: bits(v) for k, v in ours.items()} == {k: bits(v) for k, v in theirs.items()}
    assert state_bits(one) == state_bits(other)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_sixteen_bits_are_not_rounded_on_the_way(dtype: DType, backend: str) -> None:
    """A step by the plan is a step with the float32 products, not with those that apply_ rounds."""
    if dtype is BFLOAT16:
        pytest.importorskip("ml_dtypes")
    masters, theirs, grads = arrays(1), arrays(1), arrays(2, dtype)
    masters, theirs = ({k: v for k, v in p.items() if k in grads} for p in (masters, theirs))
    plan = gc.plan(grads, gc.GlobalNorm(0.37), loss_scale=1000.0, backend=backend)
    optim.AdamW(masters, backend=backend).step(grads, plan)
    wide = {k: v.astype(np.float32) * np.float32(plan.scale) for k, v in grads.items()}
    optim.AdamW(theirs, backend=backend).step(wide)
    assert {k: bits(v) for k, v in masters.items()} == {k: bits(v) for k, v in theirs.items()}
    plan.apply_(grads)
    assert any(bits(v.astype(np.float32)) != bits(wide[k]) for k, v in grads.items())


def test_a_gradient_that_vanishes_in_float16_does_not_vanish_here(backend: str) -> None:
    """Masters see what unscaling in place would have made zero."""
    scale = 2.0**14
    half, master = np.array([2e-8 * scale], np.float16), np.zeros(1, np.float32)
    plan = gc.plan(half, gc.GlobalNorm(1.0), loss_scale=scale, backend=backend)
    optim.SGD(master, lr=1.0, backend=backend).step(half, plan)
    assert float(master[0]) == pytest.approx(-2e-8, rel=1e-3)
    plan.apply_(half)
    assert half[0] == 0


# ---- skipped steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["skip", "zero"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_plan_skips_the_step(name: str, policy: str, backend: str) -> None:
    params = arrays(1)
    opt = OPTIMIZERS[name](params, backend=backend)
    assert opt.step(arrays(2))
    before = {k: bits(v) for k, v in params.items()}, state_bits(opt)
    grads = arrays(3)
    grads["b"][2] = np.inf
    plan = gc.plan(grads, gc.GlobalNorm(1.0), nonfinite=policy, backend=backend)
    assert opt.step(grads, plan) is False
    assert ({k: bits(v) for k, v in params.items()}, state_bits(opt)) == before
    assert plan.info.heeded


def test_under_propagate_a_step_is_ieee_arithmetic(backend: str) -> None:
    ours, theirs = arrays(1), arrays(1)
    grads = arrays(2)
    grads["b"][0] = np.inf
    plan = gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="propagate", backend=backend)
    assert optim.AdamW(ours, backend=backend).step(grads, plan)
    plan.apply_(grads)
    optim.AdamW(theirs, backend=backend).step(grads)
    assert {k: bits(v) for k, v in ours.items()} == {k: bits(v) for k, v in theirs.items()}
    assert np.isnan(ours["b"][0])


def test_without_a_plan_gradients_are_used_as_they_are(backend: str) -> None:
    w = np.ones(3)
    optim.SGD(w, lr=1.0, backend=backend).step(np.array([np.nan, np.inf, 1.0]))
    assert np.isnan(w[0])
    assert w[1:].tolist() == [-np.inf, 0.0]


def test_a_loss_scale_in_a_loop() -> None:
    """The plan unscales; the scaler hears of the overflow, and the step after it goes on as if nothing had been."""
    scaler = gc.LossScaler(1024.0)
    plain, scaled = np.array([4.0, -2.0], np.float32), np.array([4.0, -2.0], np.float32)
    one, other = optim.AdamW(plain, lr=0.1), optim.AdamW(scaled, lr=0.1)
    stepped = []
    for step in range(6):
        scale = scaler.take_scale()
        grads = (2 * scaled * np.float32(scale)).astype(np.float32)
        if step == 2:
            grads[0] = np.inf
        plan = gc.plan(grads, gc.GlobalNorm(1.0), loss_scale=scale, nonfinite="skip")
        stepped.append(other.step(grads, plan))
        scaler.record(other, plan.info.nonfinite > 0)
        scaler.update()
        if stepped[-1]:
            true = 2 * plain
            one.step(true, gc.plan(true, gc.GlobalNorm(1.0)))
    assert stepped == [True, True, False, True, True, True]
    assert scaler.get_scale() == 512.0
    assert bits(plain) == bits(scaled)


# ---- what is no factor ------------------------------------------------------------------------------

_APPLY = "Call plan.apply_(grads), and then step(grads) without the plan"
REFUSED: dict[str, tuple[Rule, str]] = {
    "value": (gc.Value(0.1), "it clamps elements, and so is no factor"),
    "projection": (gc.Project(sets.L1Ball(0.5)), "it is a projection, and so another decision for each element"),
    "units": (gc.UnitNorm({"w": np.ones((7, 30))}, 0.1, axis=1), "units of an array have different factors"),
    "chain": (gc.Chain(gc.GlobalNorm(0.5), gc.ArrayNorm(0.1)), "several rules of its chain change the gradients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_factor_is_refused(name: str, backend: str) -> None:
    rule, seen = REFUSED[name]
    w, grads = np.ones((7, 30), np.float32), {"w": arrays(2)["w"]}
    opt = optim.SGD({"w": w}, backend=backend)
    plan = gc.plan(grads, rule, backend=backend)
    with says(gc.GradClipError, "SGD.step, plan", seen, _APPLY):
        opt.step(grads, plan)
    assert (w == 1).all()
    plan.apply_(grads)
    assert opt.step(grads)


def test_sanitized_values_are_no_factor(backend: str) -> None:
    w, grads = np.ones(3, np.float32), np.array([1.0, np.nan, 2.0], np.float32)
    opt = optim.SGD(w, backend=backend)
    with says(gc.GradClipError, "it replaces elements that are not finite", _APPLY):
        opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="sanitize", backend=backend))
    clean = np.array([1.0, 0.0, 2.0], np.float32)
    assert opt.step(clean, gc.plan(clean, gc.GlobalNorm(1.0), nonfinite="sanitize", backend=backend))


def test_array_scales_stay_in_the_gradients(backend: str) -> None:
    grads = {"w": np.ones(3, np.float32)}
    opt = optim.SGD({"w": np.ones(3, np.float32)}, backend=backend)
    plan = gc.plan(grads, gc.GlobalNorm(1.0), array_scales={"w": 4.0}, backend=backend)
    with says(gc.GradClipError, "SGD.step, plan", "its array_scales would stay", "Clip into float32 first"):
        opt.step(grads, plan)


def test_a_plan_for_others_is_refused(backend: str) -> None:
    w, grads = np.ones(3, np.float32), np.ones(3, np.float32)
    opt = optim.SGD([w], backend=backend)
    for other in ([np.ones(4, np.float32)], [np.ones(3)], [np.ones(3, np.float32)] * 2, {"a": np.ones(3, np.float32)}):
        plan = gc.plan(other, gc.GlobalNorm(1.0), backend=backend)
        with says(gc.GradClipError, "SGD.step", "Apply a plan to gradients of the structure that it was made for"):
            opt.step([grads], plan)
    with says(gc.InvalidArgumentError, "SGD.step, plan=0.5", "a float is no plan", "Pass what gradclip_core.plan"):
        opt.step([grads], 0.5)
    assert (w == 1).all()


# ---- cost -------------------------------------------------------------------------------------------


def test_a_planned_step_reads_each_gradient_twice_and_writes_none(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass to measure, one to update; no pass of ``apply``."""
    passes: list[str] = []
    for name in ("measure", "apply"):
        real = getattr(type(registry.load(backend)), name)

        def counting(*args: Any, real: Any = real, name: str = name) -> Any:
            passes.append(name)
            return real(*args)

        monkeypatch.setattr(type(registry.load(backend)), name, counting)
    params, grads = arrays(1), arrays(2)
    opt = optim.AdamW(params, backend=backend)
    opt.step(grads, gc.plan(grads, gc.GlobalNorm(0.1), backend=backend))
    assert passes == ["measure"]


@pytest.mark.jit
def test_no_memory_in_proportion_to_the_arrays() -> None:
    pytest.importorskip("numba")
    n = 1_000_000
    params, grads = [np.ones(n, np.float32)], [np.ones(n, np.float32)]
    opt = optim.AdamW(params, backend="numba_cpu")
    opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0)))
    tracemalloc.start()
    opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n / 4
