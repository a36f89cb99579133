"""Every public function, rule and policy on CuPy arrays: the reference's bits, in place and not, and its info."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import POLICIES, check, contents, cp, fetch, on_device, some, told
from tests.gpu.cupy.lanes import lane, on
from tests.gpu.standin import Machine
from tests.property import strategies

BFLOAT16 = ml_dtypes.bfloat16
REAL = (np.float16, BFLOAT16, np.float32, np.float64)
RULES: dict[str, Rule] = {
    "global": gc.GlobalNorm(1.0),
    "global 1": gc.GlobalNorm(1.0, 1),
    "global inf": gc.GlobalNorm(0.5, math.inf),
    "nothing over": gc.GlobalNorm(1e6),
    "all to zero": gc.GlobalNorm(0.0),
    "array": gc.ArrayNorm(1.0),
    "array 1": gc.ArrayNorm(2.0, 1),
    "array inf": gc.ArrayNorm(0.3, math.inf),
    "groups": gc.GroupNorm({"x": 1.0, "y": None, "z": 0.1}, {"x": ["w", "one"], "y": ["b"], "z": ["none"]}),
    "groups by name": gc.GroupNorm(0.5, lambda path: len(path), ord=math.inf),
    "value": gc.Value(0.5),
    "interval": gc.Value((-0.1, 0.7)),
    "half open": gc.Value((-math.inf, 0.25)),
    "chain": gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
    "chain of three": gc.Chain(gc.ArrayNorm(9.0), gc.GlobalNorm(5.0, 1), gc.Value(0.001)),
}


def poisoned(host: Any) -> Any:
    """With an infinity and NaNs."""
    host["w"][3, 3], host["w"][96, 54], host["b"][77] = math.nan, math.nan, -math.inf
    return host


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_rules(standin: Machine, rule: str, dtype: Any) -> None:
    for policy in POLICIES:
        check(some(scale=3.0, dtype=dtype), RULES[rule], nonfinite=policy, loss_scale=3.0)
        if policy != "raise":
            info = check(poisoned(some(scale=3.0, dtype=dtype)), RULES[rule], nonfinite=policy, loss_scale=3.0)
            assert (info.nonfinite, info.culprits) == (3, ["w", "b"])
            assert info.skipped == (policy in ("skip", "zero"))
    for loss_scale in (1.0, 1024.0):
        check(some(scale=3.0, dtype=dtype), RULES[rule], loss_scale=loss_scale)


@pytest.mark.parametrize("standin", [lane("cpu-reverse"), lane("cpu-random"), lane("ptx-90")], indirect=True)
def test_rules_on_other_lanes(standin: Machine) -> None:
    small = {name: x[:9] for name, x in some(scale=3.0).items() if x.ndim}
    for rule in ("global", "groups by name", "interval", "chain"):
        check(small, RULES[rule], nonfinite="skip", loss_scale=3.0)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex(standin: Machine, dtype: Any) -> None:
    host = {name: x + 1j * x[::-1] if x.ndim else x * (1 + 2j) for name, x in some(dtype=np.float64).items()}
    host = {name: np.asarray(x).astype(dtype) for name, x in host.items()}
    host["strided"] = host["w"].copy()[::2, ::-3]
    weights = {name: x + 1 for name, x in host.items()}
    grads = {**host, "real": np.ones(7, np.float32)}
    for rule in (gc.GlobalNorm(2.0), gc.ArrayNorm(1.5), gc.GlobalNorm(1e4)):
        check(grads, rule, loss_scale=3.0)
    check(host, gc.UnitNorm(on_device(weights), 0.01, axis="all_but_last"))
    host["b"][5] = complex(0, math.inf)
    for policy in POLICIES[1:]:
        check(host, gc.GlobalNorm(2.0), nonfinite=policy)


def mixed(seed: int = 5) -> dict[str, Any]:
    """All dtypes in one container."""
    rng = np.random.default_rng(seed)
    made = {np.dtype(dtype).name: rng.standard_normal((41, n)).astype(dtype) for n, dtype in enumerate(REAL, 99)}
    return {**made, "deep": [None, {"x": rng.standard_normal(4100).astype(np.float32)}, (), None]}


@pytest.mark.parametrize("policy", POLICIES)
def test_mixed_dtypes(standin: Machine, policy: str) -> None:
    for rule in (gc.GlobalNorm(1.0), gc.GlobalNorm(1.0, 1), gc.GlobalNorm(1e9), gc.ArrayNorm(3.0), gc.Value(0.25)):
        check(mixed(), rule, nonfinite=policy)


def test_float64_beyond_the_range_of_its_squares(standin: Machine) -> None:
    rng = np.random.default_rng(1)
    for size in (1e-300, 1e-200, 1e160, 1e300):
        host = {"big": rng.standard_normal(5000) * size, "small": rng.standard_normal(9), "none": np.zeros(4)}
        for rule in (gc.GlobalNorm(1.0), gc.GlobalNorm(1e-201), gc.ArrayNorm(1e-3), gc.GlobalNorm(1e155, 1)):
            check(host, rule)
    norm = gc.global_norm(rng.standard_normal(9000))
    for limit in (norm, np.nextafter(norm, 0), norm * 0.999):
        check([rng.standard_normal(9000)], gc.GlobalNorm(float(limit)))


# ---- AGC -------------------------------------------------------------------------------------------


def by_path(path: str, shape: tuple[int, ...]) -> int | None:
    return None if path == "w" else -1


AXES: tuple[Any, ...] = ("all_but_first", "all_but_last", 0, -1, (0, 1), None, by_path)


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: getattr(axis, "__name__", str(axis)))
@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_adaptive(standin: Machine, axis: Any, dtype: Any) -> None:
    host, weights = some(scale=5.0, dtype=dtype), some(seed=1, dtype=dtype)
    if not callable(axis) and axis != "all_but_first":
        host["conv"] = np.random.default_rng(3).standard_normal((5, 4, 9)).astype(dtype)
        weights["conv"] = host["conv"] * 3
    weights["w"][4] = 0
    check(host, gc.UnitNorm(on_device(weights), 0.05, axis=axis), loss_scale=2.0)
    check(host, gc.UnitNorm(weights, 0.05, 1e-2, axis=axis))  # weights on the host
    check(poisoned(host), gc.UnitNorm(on_device(weights), 0.05, axis=axis), nonfinite="zero")
    check(host, gc.Chain(gc.UnitNorm(on_device(weights), 0.05, axis=axis), gc.GlobalNorm(0.5)), nonfinite="sanitize")


def test_adaptive_with_weights_of_another_dtype_and_layout(standin: Machine) -> None:
    grads = {"w": some()["w"].astype(np.float16), "v": some()["w"]}
    weights = {"w": np.asfortranarray(some(1)["w"].astype(np.float64)) * 1e200, "v": some(2, dtype=BFLOAT16)["w"]}
    for axis in ("all_but_first", "all_but_last"):
        check(grads, gc.UnitNorm(on_device(weights), 1e-4, axis=axis))


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_global_norm(standin: Machine, order: float) -> None:
    for host in (mixed(), some(dtype=np.float64, scale=1e250), poisoned(some()), [], [np.zeros((0, 2), np.float16)]):
        assert repr(gc.global_norm(on_device(host), order)) == repr(gc.global_norm(host, order, backend="numpy"))


def test_a_general_order(standin: Machine) -> None:
    """Not to the bit: ``pow`` is a library's. The norm within 1e-12, so are the limits that it is held to."""
    for host in (mixed(), some(dtype=np.float64, scale=1e250), some(scale=1e-30)):
        size = gc.global_norm(host, 3.5)
        assert gc.global_norm(on_device(host), 3.5) == pytest.approx(size, rel=1e-12, abs=0)
        for rule in (gc.GlobalNorm(size / 3, 3.5), gc.ArrayNorm(size / 50, 3.5), gc.GlobalNorm(size * 2, 3.5)):
            expected, theirs = gc.clip(host, rule, backend="numpy")
            grads = on_device(host)
            made, ours = gc.clip(grads, rule)
            assert ours.norm == pytest.approx(theirs.norm, rel=1e-12, abs=0)
            assert ours.scale == pytest.approx(theirs.scale, rel=1e-7, abs=0)
            assert ours.clipped == theirs.clipped
            gc.clip_(grads, rule)
            assert contents(grads) == contents(made)
            for a, b in zip(strategies.leaves(fetch(made)), strategies.leaves(expected), strict=True):
                # A factor that rounds the other way is one unit in the last place away, and so is a result.
                np.testing.assert_allclose(
                    a.astype(float), b.astype(float), rtol=2.0**-7 if a.dtype == BFLOAT16 else 2e-3
                )


# ---- every function --------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "clip_by_global_norm": lambda f, g: f(g, 1.0, ord=1),
    "clip_by_group_norm": lambda f, g: f(g, 1.0, groups=len),
    "clip_by_norm": lambda f, g: f(g, 1.0),
    "clip_by_value": lambda f, g: f(g, (-0.5, 0.25), loss_scale=2.0),
    "adaptive_clip": lambda f, g: f(g, g, 0.5, axis=None, nonfinite="skip"),
    "clip": lambda f, g: f(g, gc.Chain(gc.ArrayNorm(2.0), gc.Value(0.1))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(standin: Machine, name: str) -> None:
    call, host = FUNCTIONS[name], some(scale=2.0)
    expected, info = call(getattr(gc, name), host)
    grads = on_device(host)
    made, new_info = call(getattr(gc, name), grads)
    assert (contents(made), contents(grads), told(new_info)) == (contents(expected), contents(host), told(info))
    in_place = call(getattr(gc, f"{name}_"), grads)
    assert (contents(grads), told(in_place)) == (contents(expected), told(info))
    assert type(in_place) is gc.ClipInfo


def test_plan(standin: Machine) -> None:
    host = some(scale=2.0)
    ours, theirs = (
        gc.plan(on_device(host), gc.GlobalNorm(1.0), loss_scale=3.0),
        gc.plan(host, gc.GlobalNorm(1.0), loss_scale=3.0),
    )
    assert repr(ours) == "Plan(ClipInfo(on the device, backend='cupy_raw'))"
    assert ours.scale == theirs.scale == ours.info.scale
    assert ours.info.clipped_norm == theirs.info.clipped_norm
    for rule, seen in ((gc.Value(0.1), "not one factor"), (gc.ArrayNorm(0.5), "not one factor")):
        with pytest.raises(gc.GradClipError, match=seen):
            gc.plan(on_device(host), rule).scale  # noqa: B018
    with pytest.raises(gc.GradClipError, match="made this step be skipped"):
        gc.plan(on_device(poisoned(host)), gc.GlobalNorm(1.0), nonfinite="skip").scale  # noqa: B018
    with pytest.raises(gc.GradClipError, match=r"array 'b' is float16 of shape \(3,\); planned was 'w', float32"):
        ours.apply_(on_device({"b": np.ones(3, np.float16)}))


def test_plan_scale_of_a_chain(standin: Machine) -> None:
    rule = gc.Chain(gc.GlobalNorm(2.0), gc.GlobalNorm(1.0, 1))
    assert gc.plan(on_device(some()), rule).scale == gc.plan(some(), rule).scale


@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("value", [1.0, 1024.0, 3.0, 0.0625])
def test_a_loss_scale_on_the_device(standin: Machine, dtype: Any, value: float) -> None:
    scale = cp().asarray(np.full((), value, dtype))
    for rule in ("global", "interval", "groups", "chain", "array inf"):
        check(some(scale=9.0), RULES[rule], scale=scale, loss_scale=value)
    check(poisoned(some()), RULES["global"], scale=scale, loss_scale=value, nonfinite="zero")
    check(some(), gc.UnitNorm(on_device(some(1)), 0.1, axis=-1), scale=scale, loss_scale=value)
    check(some(scale=1e200, dtype=np.float64), RULES["global"], scale=scale, loss_scale=value)


def test_nonfinite_gradients_are_named(standin: Machine) -> None:
    grads = on_device(poisoned(some()))
    before = contents(grads)
    with pytest.raises(gc.NonFiniteGradientError) as ours:
        gc.clip_by_global_norm_(grads, 1.0)
    with pytest.raises(gc.NonFiniteGradientError) as theirs:
        gc.clip_by_global_norm_(poisoned(some()), 1.0, backend="numpy")
    assert str(ours.value) == str(theirs.value)
    assert "'w' (0 inf, 2 NaN), 'b' (1 inf, 0 NaN)" in str(ours.value)
    assert contents(grads) == before


# ---- anything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", strategies.RULES)
def test_any_container(rule: str) -> None:
    ran = 0

    @strategies.FEW
    @given(
        strategies.containers(strategies.array(nonfinite=True)),
        st.sampled_from(POLICIES[1:]),
        st.sampled_from([1.0, 3.0]),
    )
    def test(host: Any, policy: str, loss_scale: float) -> None:
        nonlocal ran
        host = strategies.writable(host)
        if not strategies.leaves(host):
            return
        if rule == "global 3":
            assert gc.global_norm(on_device(host), 3) == pytest.approx(gc.global_norm(host, 3), rel=1e-12, nan_ok=True)
            return
        check(host, strategies.RULES[rule](host), nonfinite=policy, loss_scale=loss_scale)
        ran += 1

    with on("cpu-forward"):
        test()
    assert ran > 5 or rule == "global 3"
