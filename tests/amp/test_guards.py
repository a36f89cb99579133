"""What the factor makes zero, and what unscaling makes infinite: counted exactly, and before anything is written.

The oracle is what was written: ``clip`` itself, under "ignore" and "propagate", and then a look at the result.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.rules import Rule
from tests.amp.test_clipper import count_passes
from tests.amp.test_to_half import NARROW, every_code
from tests.refusals import says

Array = npt.NDArray[Any]
SCALES = (2.0**7, 2.0**16, 2.0**100, 3.0, 1000.0, 0.5, 2.0**-20, 0.3, 1e-30)


def finite(name: str) -> Array:
    """Every finite code of a narrow type."""
    array, values = every_code(name)
    return array[np.isfinite(values)]


def wide(x: Array) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(x.astype(np.float64))


def vanished(x: Array, y: Array) -> int:
    return int(((wide(x) != 0) & (wide(y) == 0)).sum())


def burst(x: Array, y: Array) -> int:
    return int((np.isfinite(wide(x)) & ~np.isfinite(wide(y))).sum())


def bound_for(x: Array, factor: float) -> float:
    return factor * gc.global_norm(x)


# ---- underflow --------------------------------------------------------------------------------------


@NARROW
def test_every_code_against_brute_force(source: str, backend: str) -> None:
    """Norm rules, by value and units, whatever the factor; some count something, some do not."""
    x, seen = finite(source), set()
    factors = (2.0**-1, 2.0**-5, 0.3, 1e-3, 1e-7, 1e-20, 1e-37, 1e-44, 1e-60)
    rules: list[Rule] = [gc.GlobalNorm(bound_for(x, f)) for f in factors]
    rules += [gc.ArrayNorm(wide(x).max() / 3, math.inf), gc.GlobalNorm(1e300), gc.Value(3e38), gc.Value((-1e-3, 1e9))]
    for rule, scale in itertools.product(rules, (1.0, *SCALES)):
        how: Any = {"loss_scale": scale, "nonfinite": "propagate", "backend": backend}
        y, plain = gc.clip(x, rule, **how)
        counted, info = gc.clip(x, rule, underflow="count", **how)
        assert counted.tobytes() == y.tobytes()
        assert (plain.underflow, info.overflow) == (None, 0)
        expected = vanished(x, y)
        assert info.underflow == expected, (rule, scale)
        seen.add(expected > 0)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_subnormals_and_any_bits_of_wide_types(kind: type[np.floating[Any]], backend: str) -> None:
    smallest = np.finfo(kind).smallest_subnormal
    code = np.dtype(f"u{np.dtype(kind).itemsize}")
    tiny = np.arange(1, 5000, dtype=code).view(kind)
    bits = np.random.default_rng(2).integers(0, 2 ** (8 * code.itemsize - 2), 20_000, dtype=np.uint64)
    x = np.concatenate([tiny, -tiny, bits.astype(code).view(kind), np.zeros(3, kind), -np.zeros(2, kind)])
    for scale in (2.0, 3.0, 2.0**12, 4095.0, 2.0**60, 1e38):
        y, info = gc.clip(x, gc.GlobalNorm(1e300), loss_scale=scale, underflow="count", backend=backend)
        assert info.underflow == vanished(x, y)
        assert info.underflow
    for bound in (1e-3, 1e-20, float(smallest) * 1e6):
        y, info = gc.clip(x, gc.GlobalNorm(bound), underflow="count", backend=backend)
        assert info.underflow == vanished(x, y)


def test_each_unit_and_each_array_by_its_own_factor(backend: str) -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((40, 30)) * 2.0 ** rng.integers(-24, 14, (40, 30))).astype(np.float16)
    given = {"a": x, "b": x[:, ::2], "c": np.asfortranarray(x), "d": x[0].astype(np.float32), "e": x[1].astype(float)}
    given = {path: array.copy("K") if path == "c" else array.copy() for path, array in given.items()}
    given["b"] = np.repeat(given["b"], 2, axis=1)[:, ::2]
    weights = {path: np.ones(array.shape) for path, array in given.items()}
    rules = [gc.UnitNorm(weights, 0.01, axis=1), gc.UnitNorm(weights, 1e-4, axis=0), gc.ArrayNorm(0.1)]
    for rule in (*rules, gc.GroupNorm({0: 3.0, 1: None}, {0: ["a", "b", "e"], 1: ["c", "d"]})):
        y, info = gc.clip(given, rule, loss_scale=8.0, underflow="count", backend=backend)
        assert info.underflow == sum(vanished(given[path], y[path]) for path in given)
        assert info.underflow


def test_limits_that_leave_no_zero(backend: str) -> None:
    """Under ``(low, high)`` with low > 0 a product of zero becomes low."""
    x = np.array([6e-8, 1.0], np.float16)
    y, info = gc.clip(x, gc.Value((0.5, 2.0)), loss_scale=1024.0, underflow="raise", backend=backend)
    assert (y.tolist(), info.underflow) == ([0.5, 0.5], 0)
    assert gc.clip(x, gc.Value((0.0, 2.0)), loss_scale=1024.0, underflow="count", backend=backend)[1].underflow == 1
    assert gc.clip(-x, gc.Value((-2.0, -1.0)), loss_scale=1024.0, underflow="count")[1].underflow == 0


def test_raise_touches_nothing(backend: str) -> None:
    given = {"a": np.array([6e-8, 1.0], np.float16), "b": np.array([6e-8, -6e-8, 0.0], np.float16)}
    before = {path: x.tobytes() for path, x in given.items()}
    out = {"a": np.full(2, 7.0, np.float16), "b": np.full(3, 7.0, np.float16)}
    calls: tuple[Any, ...] = (gc.clip_, gc.clip, gc.plan, functools.partial(gc.clip, out=out))
    last = gc.GlobalNorm(0.25)
    for rule in (last, gc.Chain(gc.Value(0.9), last), gc.Chain(gc.Value(0.9), gc.Value(0.5), last)):
        for call in calls:
            with says(gc.GradientUnderflowError, "elements that are not zero would become zero", "underflow="):
                call(given, rule, underflow="raise", backend=backend)
            assert {path: x.tobytes() for path, x in given.items()} == before
            assert all((x == 7).all() for x in out.values())
    with says(gc.GradientUnderflowError, "clip_: 3 elements"):
        gc.clip_(given, gc.GlobalNorm(0.25), underflow="raise", backend=backend)
    info = gc.clip_(given, gc.GlobalNorm(0.75), underflow="raise", backend=backend)
    assert info.underflow == 0  # 6e-8 is 2^-24, and 0.75 of it rounds up


def test_a_chain_adds_up(backend: str) -> None:
    x = np.array([2.0**-24, 2.0**-23, 1.0, 1.0], np.float16)
    rule = gc.Chain(gc.GlobalNorm(0.5), gc.GlobalNorm(0.125))
    first, one = gc.clip(x, rule.rules[0], underflow="count", backend=backend)
    _, two = gc.clip(first, rule.rules[1], underflow="count", backend=backend)
    assert (one.underflow, two.underflow) == (1, 1)
    assert gc.clip(x, rule, underflow="count", backend=backend)[1].underflow == 2
    project = gc.Chain(gc.Project(sets.L1Ball(0.5)), gc.GlobalNorm(0.125))
    assert gc.clip(x, project, underflow="count", backend=backend)[1].underflow == 0  # a projection has no factor


def test_counting_under_each_policy(backend: str) -> None:
    x = np.array([np.inf, np.nan, 6e-8, 60000.0], np.float16)
    counts = {}
    for policy in ("skip", "zero", "sanitize", "propagate"):
        y, info = gc.clip(x, gc.GlobalNorm(100.0), nonfinite=policy, underflow="count", backend=backend)
        counts[policy] = info.underflow
        assert info.skipped == (policy in ("skip", "zero"))
    assert counts == {"skip": 0, "zero": 0, "sanitize": 1, "propagate": 0}
    y, info = gc.clip(x[[0, 2, 3]], gc.GlobalNorm(1.0), nonfinite="propagate", underflow="count", backend=backend)
    assert np.isnan(y[0])
    assert (y[1:] == 0).all()
    assert info.underflow == 2


def test_ignore_makes_no_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(monkeypatch)
    x = np.array([3.0, 1e-7], np.float16)

    def passes(policy: str, bound: float, scale: float = 1.0) -> dict[str, int]:
        calls.update(measure=0, apply=0)
        gc.clip_(x.copy(), gc.GlobalNorm(bound), underflow=policy, loss_scale=scale)
        return dict(calls)

    assert passes("ignore", 0.1, 16.0) == {"measure": 1, "apply": 1}
    assert passes("count", 0.1, 16.0) == {"measure": 3, "apply": 1}
    assert passes("count", 5.0) == {"measure": 1, "apply": 0}  # factor 1
    assert passes("count", 1e9, 0.5) == {"measure": 1, "apply": 1}  # factor 2
    assert passes("ignore", 1e9, 0.5) == {"measure": 1, "apply": 1}  # nothing overflows, which the largest shows


# ---- overflow ---------------------------------------------------------------------------------------


@NARROW
def test_overflow_of_every_code_against_brute_force(source: str, backend: str) -> None:
    x, seen = finite(source), set()
    before = x.tobytes()
    top = wide(x).max()
    for scale, rule in itertools.product(
        (0.5, 0.75, 2.0**-3, 0.3, 2.0**-20, 1e-30, 2.0**-1000),
        (
            gc.GlobalNorm(1e300),
            gc.ArrayNorm(1e300, math.inf),
            gc.Value(3.4e38),
            gc.Value((-math.inf, 1.0)),
            gc.Value((-2.0, math.inf)),
            gc.GlobalNorm(top * 1.5),
        ),
    ):
        how: Any = {"loss_scale": scale, "backend": backend}
        y, plain = gc.clip(x, rule, nonfinite="propagate", **how)
        count = burst(x, y)
        assert plain.overflow == 0
        seen.add(count > 0)
        skipped, info = gc.clip(x, rule, nonfinite="skip", **how)
        assert (info.overflow, info.skipped, info.nonfinite) == (count, count > 0, 0)
        assert skipped.tobytes() == (before if count else y.tobytes())
        zeroed, info = gc.clip(x, rule, nonfinite="zero", **how)
        assert (info.overflow, info.skipped) == (count, count > 0)
        assert zeroed.tobytes() == (bytes(x.nbytes) if count else y.tobytes())
        kept, info = gc.clip(x, rule, nonfinite="sanitize", **how)
        assert (info.overflow, info.skipped) == (count, False)
        sign = np.where(np.signbit(wide(x)), -top, top)  # NaN, where the type has no infinity, has lost it
        assert (wide(kept) == np.where(np.isfinite(wide(y)), wide(y), sign)).all()
        if count:
            with says(gc.NonFiniteGradientError, f"clip: {count} finite elements of '0'", f"unscaling by {scale:g}"):
                gc.clip(x, rule, **how)
        else:
            assert gc.clip(x, rule, **how)[0].tobytes() == y.tobytes()
        assert x.tobytes() == before
    assert seen == {True, False}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_overflow_of_wide_types(kind: type[np.floating[Any]], backend: str) -> None:
    top = np.finfo(kind).max
    x = np.array([top, -top, top / 2, np.nextafter(top / 2, kind(0)), top / 4, 1.0], kind)
    y, info = gc.clip(x, gc.GlobalNorm(1.7e308), loss_scale=0.25, nonfinite="sanitize", backend=backend)
    clipped = kind is np.float64  # whose norm, unscaled, is over any bound
    assert info.overflow == (0 if clipped else 4)
    assert np.isfinite(y).all()
    assert clipped or y.tolist() == [top, -top, top, top, top, 4.0]


def test_a_factor_of_zero(backend: str) -> None:
    """Under the least float32 there is no factor; and a bound of 0 is one of 0."""
    for bound in (0.0, 1e-45):
        y, info = gc.clip(
            np.array([3.0, 0.0, -4.0], np.float32), gc.GlobalNorm(bound), underflow="count", backend=backend
        )
        assert y.tolist() == [0.0, 0.0, 0.0]
        assert info.underflow == 2
        with says(gc.GradientUnderflowError, "2 elements"):
            gc.clip(np.array([3.0, 0.0, -4.0]), gc.GlobalNorm(bound / 1e290), underflow="raise", backend=backend)


def test_culprits_and_counts(backend: str) -> None:
    given = {
        "a": np.array([60000.0, 1.0], np.float16),
        "b": np.array([2.0], np.float16),
        "c": np.array([5e4], np.float16),
    }
    with says(gc.NonFiniteGradientError, "clip_: 2 finite elements of 'a', 'c' would be infinite", "No gradient was"):
        gc.clip_(given, gc.GlobalNorm(1e9), loss_scale=0.5, backend=backend)
    assert given["b"] == 2
    info = gc.clip_(given, gc.GlobalNorm(1e9), loss_scale=0.5, nonfinite="sanitize", backend=backend)
    assert (info.overflow, info.infs, info.nans, info.culprits, dict(info.counts)) == (2, 0, 0, [], {})
    assert [x.tolist() for x in given.values()] == [[65504.0, 2.0], [4.0], [65504.0]]
    given["b"][0], given["c"][0] = np.nan, -np.inf
    given["a"][0] = np.inf
    info = gc.clip_(given, gc.Value(1e9), loss_scale=0.5, nonfinite="sanitize", backend=backend)
    assert (info.infs, info.nans, info.nonfinite, info.overflow) == (2, 1, 3, 0)
    assert (info.culprits, dict(info.counts)) == (["a", "b", "c"], {"a": (1, 0), "b": (0, 1), "c": (1, 0)})
    assert [x.tolist() for x in given.values()] == [[65504.0, 4.0], [0.0], [-65504.0]]


# ---- the Clipper, and refusals ----------------------------------------------------------------------


def test_clipper() -> None:
    clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler.static(1024.0), underflow="count")
    clipper.loss_scaler.scale(1.0)
    grads = [np.array([600.0, 1e-6], np.float16)]
    info = clipper.step_(grads)
    assert (info.underflow, grads[0][1]) == (1, 0.0)
    strict = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler.static(1024.0), underflow="raise")
    strict.loss_scaler.scale(1.0)
    grads = [np.array([600.0, 1e-6], np.float16)]
    before = grads[0].tobytes()
    with says(gc.GradientUnderflowError, "Clipper.step_: 1 elements"):
        strict.step_(grads)
    assert grads[0].tobytes() == before
    assert strict.statistics.steps == 0
    assert strict.step_([np.array([600.0, 1.0])]).underflow == 0


def test_a_clipper_that_overflows_in_unscaling_is_to_skip() -> None:
    clipper = gc.Clipper(gc.GlobalNorm(1e9), gc.LossScaler.static(0.5))
    clipper.loss_scaler.scale(1.0)
    info = clipper.step_([np.array([60000.0, 40000.0], np.float16)])
    assert (info.overflow, info.nonfinite) == (2, 0)
    clipper.loss_scaler.scale(1.0)
    with says(gc.GradClipError, "to be skipped, for 2 non-finite elements"):
        clipper.step_([np.ones(2)])
    assert clipper.statistics.skipped == 1


@pytest.mark.parametrize("policy", ["never", None, True, "Count", 1])
def test_unknown_policies(policy: Any) -> None:
    words = "underflow=", "there is no such policy", "Pass one of ignore, count, raise"
    calls: tuple[Any, ...] = (gc.clip, gc.clip_, gc.plan)
    for call in calls:
        with says(gc.InvalidArgumentError, *words):
            call([np.ones(2)], gc.GlobalNorm(1.0), underflow=policy)
    with says(gc.InvalidArgumentError, *words):
        gc.Clipper(gc.GlobalNorm(1.0), underflow=policy)
