"""Rules, chains, plans and errors, given wrongly: the class, the sentence, and that nothing is written."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.refusals import Array, grads, refuses

# --------------------------------------------------------------------------------- rules, plans


@pytest.mark.parametrize("name", ["clip", "clip_", "plan"])
@pytest.mark.parametrize("bad", [None, 1.0, "GlobalNorm", gc.GlobalNorm, [gc.GlobalNorm(1.0)], gc.clip_by_norm, object])
def test_what_is_no_rule(name: str, bad: Any) -> None:
    cure = "Pass Chain(rule, rule), not a list" if isinstance(bad, list) else "GlobalNorm(1.0)"
    with refuses(f"{name}, rule=", f"a {type(bad).__name__} is no rule", cure) as given:
        getattr(gc, name)(given, bad)


@pytest.mark.parametrize("bad", [None, 1.0, gc.Value, "x", [gc.Value(1.0)]])
def test_chains_of_nonsense(bad: Any) -> None:
    cure = "Chain(rule, rule)" if isinstance(bad, list) else "GlobalNorm(1.0)"
    with refuses("Chain, rule=", f"a {type(bad).__name__} is no rule", cure):
        gc.Chain(gc.GlobalNorm(1.0), bad)
    with refuses("Chain()", "it has no rules", "Pass at least one"):
        gc.Chain()


@pytest.mark.parametrize("stage", [gc.UnitNorm({"q": np.ones(1)}, axis=None), gc.GroupNorm(1.0, {"a": ["q"]})])
def test_a_later_stage_is_checked_before_the_first_one_writes(stage: gc.UnitNorm) -> None:
    with refuses("", "", "") as given:
        gc.clip_(given, gc.Chain(gc.Value(1.0), stage))


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ({"w": np.ones((2, 3), np.float32)}, "the number of arrays is 1, and the plan is for 2"),
        ({"w": np.ones((3, 2), np.float32), "b": np.ones(1)}, "array 'w' is float32 of shape (3, 2)"),
        ({"w": np.ones((2, 3)), "b": np.ones(1)}, "array 'w' is float64"),
        ({"v": np.ones((2, 3), np.float32), "b": np.ones(1)}, "array 'v' is float32"),
    ],
)
@pytest.mark.parametrize("name", ["apply", "apply_"])
def test_a_plan_fits_what_it_was_made_for(other: dict[str, Array], seen: str, name: str) -> None:
    plan = gc.plan(grads(), gc.GlobalNorm(1.0))
    with refuses(f"plan.{name}", seen, "Apply a plan to gradients of the structure", gc.GradClipError):
        getattr(plan, name)(other)
    assert all((array == 1).all() for array in other.values())


def test_a_plan_of_many_factors_has_no_scale() -> None:
    with refuses("plan.scale", "not one factor for every element", "plan.info.scales", gc.GradClipError) as given:
        _ = gc.plan(given, gc.ArrayNorm(1.0)).scale
    with refuses("plan.scale", "made this step be skipped", "plan.info.skipped", gc.GradClipError) as given:
        _ = gc.plan({**given, "x": np.array([np.nan])}, gc.GlobalNorm(1.0), nonfinite="skip").scale


def test_complex_arrays_where_they_have_no_meaning() -> None:
    rules = [gc.Value(1.0), gc.GlobalNorm(1.0, ord=1), gc.ArrayNorm(1.0, ord=math.inf)]
    for rule in [*rules, gc.Chain(gc.GlobalNorm(1.0), gc.Value(1.0))]:
        with refuses("clip_, array 'z'", "complex", "a norm with ord=2", gc.UnsupportedArrayError) as given:
            gc.clip_({**given, "z": np.ones(2, np.complex64)}, rule)


# ---------------------------------------------------------------------------- errors themselves


def test_errors_are_of_one_family_and_of_pythons_own() -> None:
    table = {
        gc.InvalidArgumentError: ValueError, gc.ContainerError: TypeError, gc.UnsupportedArrayError: TypeError,
        gc.UnsafeMemoryError: ValueError, gc.ReadOnlyError: ValueError, gc.BackendError: RuntimeError,
        gc.NonFiniteGradientError: FloatingPointError,
    }  # fmt: skip
    for kind, builtin in table.items():
        assert issubclass(kind, gc.GradClipError)
        assert issubclass(kind, builtin)
        error = pickle.loads(pickle.dumps(kind("asked", "seen", "cure")))
        assert (type(error), error.asked, error.seen, error.cure) == (kind, "asked", "seen", "cure")
