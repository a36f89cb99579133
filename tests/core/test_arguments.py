"""Every argument of every public function, given wrongly: the class, the sentence, and that nothing is written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import grads, refuses

Call = Callable[..., Any]


GROUPS = {"all": ["w", "b"]}
# Each function with arguments under which it clips; ``x`` is its first number.
CALLS: dict[str, Call] = {
    "clip_by_global_norm": lambda g, x=1.0, **how: gc.clip_by_global_norm(g, x, **how),
    "clip_by_global_norm_": lambda g, x=1.0, **how: gc.clip_by_global_norm_(g, x, **how),
    "clip_by_group_norm": lambda g, x=1.0, **how: gc.clip_by_group_norm(g, x, **{"groups": GROUPS, **how}),
    "clip_by_group_norm_": lambda g, x=1.0, **how: gc.clip_by_group_norm_(g, x, **{"groups": GROUPS, **how}),
    "clip_by_norm": lambda g, x=1.0, **how: gc.clip_by_norm(g, x, **how),
    "clip_by_norm_": lambda g, x=1.0, **how: gc.clip_by_norm_(g, x, **how),
    "clip_by_projection": lambda g, x=1.0, **how: gc.clip_by_projection(g, sets.L1Ball(x), **how),
    "clip_by_projection_": lambda g, x=1.0, **how: gc.clip_by_projection_(g, sets.L1Ball(x), **how),
    "clip_by_value": lambda g, x=1.0, **how: gc.clip_by_value(g, x, **how),
    "clip_by_value_": lambda g, x=1.0, **how: gc.clip_by_value_(g, x, **how),
    "adaptive_clip": lambda g, x=0.01, **how: gc.adaptive_clip(g, grads(), x, **{"axis": None, **how}),
    "adaptive_clip_": lambda g, x=0.01, **how: gc.adaptive_clip_(g, grads(), x, **{"axis": None, **how}),
    "clip": lambda g, x=1.0, **how: gc.clip(g, gc.GlobalNorm(x), **how),
    "clip_": lambda g, x=1.0, **how: gc.clip_(g, gc.GlobalNorm(x), **how),
    "plan": lambda g, x=1.0, **how: gc.plan(g, gc.GlobalNorm(x), **how),
    "to_half": lambda g, x=1.0, **how: gc.to_half(g, "float16", gc.GlobalNorm(x), **how),
}
every = pytest.mark.parametrize("name", CALLS)
with_ord = pytest.mark.parametrize("name", [n for n in CALLS if n.startswith(("clip_by_g", "clip_by_n"))])


def test_every_public_function_that_clips_is_here() -> None:
    functions = {name for name in gc.__all__ if inspect.isfunction(getattr(gc, name))}
    assert functions - {"global_norm", "explain"} == set(CALLS)


@every
def test_the_calls_are_right_without_the_mistake(name: str) -> None:
    """So that each refusal below is due to the one thing that was changed."""
    given = grads()
    done = CALLS[name](given)
    changed = any((array != grads()[path]).any() for path, array in given.items())
    assert changed == name.endswith("_")
    info = done if name.endswith("_") else done.info if name == "plan" else done[1]
    assert info.clipped


# ---------------------------------------------------------------------------------- thresholds


@every
@pytest.mark.parametrize(
    "bad",
    [None, True, np.True_, "1.0", b"1", bytearray(b"1"), 1j, [1.0], {1.0}, object(), np.ones(2), 10**400, "nan", ()],
    ids=lambda value: type(value).__name__,
)
def test_thresholds_of_the_wrong_type(name: str, bad: Any) -> None:
    with refuses("=", "", "Pass a finite") as given:
        CALLS[name](given, bad)


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1, -1e-300, np.float32(-2), Fraction(-1, 2)])
def test_thresholds_out_of_range(name: str, bad: Any) -> None:
    with refuses("=", "", "Pass a finite") as given:
        CALLS[name](given, bad)


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (math.nan, "it is NaN, and no gradient is within NaN"),
        (-1.0, "a factor of it would flip the sign of every element"),
        (math.inf, "an infinite bound clips nothing"),
        ("1", "a str is no number"),
        (None, "a NoneType is no number"),
        (True, "a bool is no number"),
        ([1.0], "a list cannot be read as one number"),
    ],
)
def test_what_is_wrong_with_a_threshold(bad: Any, seen: str) -> None:
    with refuses(f"max_norm={bad!r}", seen, "Pass a finite number > 0 (0 sets every gradient to zero)") as given:
        gc.clip_by_norm_(given, bad)


@pytest.mark.parametrize("good", [1, np.float16(1), np.int8(1), np.array(1.0), Fraction(1), Decimal(1)])
def test_anything_that_holds_one_real_number_will_do(good: Any) -> None:
    assert gc.clip_by_norm_(grads(), good).norms == gc.clip_by_norm_(grads(), 1.0).norms
    assert gc.GlobalNorm(good) == gc.GlobalNorm(1.0)


@pytest.mark.parametrize("bad", [0, 0.0, -0.0])
@pytest.mark.parametrize("argument", ["clipping", "eps"])
def test_adaptive_clipping_needs_positive_numbers(argument: str, bad: float) -> None:
    with refuses(f"{argument}=", "it is not a finite number > 0", "Pass a finite number > 0") as given:
        bad_one: dict[str, Any] = {argument: bad}
        gc.adaptive_clip_(given, grads(), axis=None, **bad_one)


# -------------------------------------------------------------------- what all functions share


@every
@pytest.mark.parametrize(
    ("how", "seen", "cure"),
    [
        ({"loss_scale": 0}, "it is not a finite number > 0", "Pass a finite"),
        ({"loss_scale": -1024.0}, "it is not a finite number > 0", "Pass a finite"),
        ({"loss_scale": math.nan}, "it is not a finite number > 0", "Pass a finite"),
        ({"loss_scale": math.inf}, "it is not a finite number > 0", "Pass a finite"),
        ({"loss_scale": 5e-324}, "its reciprocal is no normal float64", "the loss was multiplied with"),
        ({"loss_scale": 1.7e308}, "its reciprocal is no normal float64", "the loss was multiplied with"),
        ({"loss_scale": "1024"}, "a str is no number", "Pass a finite"),
        ({"loss_scale": True}, "a bool is no number", "Pass a finite"),
        ({"loss_scale": None}, "a NoneType is no number", "Pass a finite"),
        ({"nonfinite": "ignore"}, "there is no such policy", "Pass one of raise, skip, zero, sanitize, propagate"),
        ({"nonfinite": "RAISE"}, "there is no such policy", "raise, skip"),
        ({"nonfinite": None}, "there is no such policy", "raise, skip"),
        ({"nonfinite": ["raise"]}, "there is no such policy", "raise, skip"),
        ({"nonfinite": True}, "there is no such policy", "raise, skip"),
        ({"backend": 3}, "it is no name", "Pass a name from the registry, or None"),
        ({"backend": ["numpy"]}, "it is no name", "from the registry"),
        ({"maxnorm": 1.0}, "there is no such argument", "loss_scale, nonfinite, backend"),
        ({"underflow": "never"}, "there is no such policy", "ignore, count, raise"),
        ({"array_scales": 2.0}, "it is no mapping", "{path: power of two}"),
        ({"norm_type": 2}, "there is no such argument", "called ord here"),
        ({"error_if_nonfinite": True}, "there is no such argument", "nonfinite='raise' is the default"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_common_arguments(name: str, how: dict[str, Any], seen: str, cure: str) -> None:
    ((argument, value),) = how.items()
    with refuses(f"{argument}={value!r}", seen, cure) as given:
        CALLS[name](given, **how)


@every
def test_a_backend_that_does_not_exist(name: str) -> None:
    with refuses("backend='cuda'", "there is no such backend", "numpy", gc.BackendError) as given:
        CALLS[name](given, backend="cuda")
    with refuses("backend=''", "there is no such backend", "numpy", gc.BackendError) as given:
        gc.global_norm(given, backend="")


def test_a_policy_that_is_an_array() -> None:
    with refuses("nonfinite=", "there is no such policy", "Pass one of") as given:
        gc.clip_by_norm_(given, 1.0, nonfinite=np.array(["raise", "skip"]))  # type: ignore[arg-type]


@with_ord
@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (0, "below 1 there is no norm"), (0.5, "below 1 there is no norm"), (-2, "below 1 there is no norm"),
        (-math.inf, "below 1 there is no norm"), (math.nan, "below 1 there is no norm"),
        ("fro", "a str is no number"), ("2", "a str is no number"), (None, "a NoneType is no number"),
        (True, "a bool is no number"), (2j, "a complex cannot be read as one number"),
    ],
)  # fmt: skip
def test_orders_that_are_no_norms(name: str, bad: Any, seen: str) -> None:
    with refuses(f"ord={bad!r}", seen, "Pass 1, 2, math.inf, or any p >= 1") as given:
        CALLS[name](given, ord=bad)
    with refuses(f"ord={bad!r}", seen, "any p >= 1") as given:
        gc.global_norm(given, bad)


@pytest.mark.parametrize("name", [n for n in CALLS if n.startswith(("clip_by_v", "adaptive"))])
def test_orders_where_there_are_none(name: str) -> None:
    with refuses("ord=1", "there is no such argument", "The common arguments are") as given:
        CALLS[name](given, ord=1)


# ------------------------------------------------------------------------------------ by value


@pytest.mark.parametrize("name", ["clip_by_value", "clip_by_value_"])
@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        ((2.0, 1.0), "low is not <= high"),
        ((math.nan, 1.0), "low is not <= high"),
        ((0.0, math.nan), "low is not <= high"),
        ((1.0,), "it has 1 entries"),
        ((0.0, 1.0, 2.0), "it has 3 entries"),
        ((), "it has 0 entries"),
        ((None, 1.0), "a NoneType is no number"),
        ((-1.0, "1"), "a str is no number"),
        ((False, True), "a bool is no number"),
        ((-math.inf, math.inf), "no finite number is left, or none is cut off"),
        ((math.inf, math.inf), "no finite number is left"),
        ((-math.inf, -math.inf), "no finite number is left"),
        (([1.0], [2.0]), "a list cannot be read as one number"),
    ],
)
def test_limits(name: str, bad: Any, seen: str) -> None:
    with refuses("limit", seen, "(low, high) with low <= high") as given:
        CALLS[name](given, bad)


def test_limits_that_are_meant() -> None:
    assert gc.Value([-1, 2]) == gc.Value((-1.0, 2.0))  # type: ignore[arg-type]
    assert gc.Value(2) == gc.Value((-2.0, 2.0))
    assert gc.clip_by_value(grads(), (-math.inf, 5.0))[0]["b"].tolist() == [5.0]


# -------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("name", ["clip_by_group_norm", "clip_by_group_norm_"])
@pytest.mark.parametrize(
    ("max_norm", "groups", "asked", "seen", "cure"),
    [
        (1.0, {"a": ["w"]}, "groups", "'b' of the gradients are in no group", "Name every path"),
        (1.0, {}, "groups", "'w', 'b' of the gradients are in no group", "Name every path"),
        (1.0, {"a": ["w", "b", "c"]}, "groups", "there is no gradient at 'c'", "Paths here look like 'w', 'b'"),
        (1.0, {"a": ["w", "b"], "z": ["b"]}, "groups", "'b' is in group 'a' and in group 'z'", "into one group"),
        (1.0, {"a": ["w", "w", "b"]}, "groups", "'w' is in group 'a' and in group 'a'", "into one group"),
        (1.0, ["w", "b"], "groups=['w', 'b']", "a list names no groups", "Pass {group: [path, ...]}"),
        (1.0, None, "groups=None", "a NoneType names no groups", "Pass {group: [path, ...]}"),
        (1.0, "w", "groups='w'", "a str names no groups", "Pass {group: [path, ...]}"),
        ({"a": 1.0}, {"a": ["w"], "z": ["b"]}, "max_norm", "there is no threshold for 'z'", "None to leave it alone"),
        ({"a": 1.0, "q": 2.0}, {"a": ["w", "b"]}, "max_norm", "there is no group 'q'", "Take it out"),
        ({"a": 1.0}, lambda path: path, "max_norm", "there is no threshold for 'b', 'w'", "for every group"),
        ({}, GROUPS, "max_norm", "there is no threshold for 'all'", "for every group"),
        ({"all": -1.0}, GROUPS, "max_norm['all']=-1.0", "a negative bound", "Pass a finite"),
        ({"all": "1"}, GROUPS, "max_norm['all']='1'", "a str is no number", "Pass a finite"),
        (1.0, {"a": 3}, "groups", "", ""),
        (1.0, {"a": None}, "groups", "", ""),
        (1.0, {"a": [["w"], ["b"]]}, "groups", "", ""),
        (1.0, lambda path: [path], "groups", "", ""),
    ],
)  # fmt: skip
def test_groups(name: str, max_norm: Any, groups: Any, asked: str, seen: str, cure: str) -> None:
    with refuses(asked, seen, cure) as given:
        CALLS[name](given, max_norm, groups=groups)


def test_an_error_of_the_users_own_function_comes_through() -> None:
    def groups(path: str) -> str:
        raise KeyError(path)

    given = grads()
    with pytest.raises(KeyError):
        gc.clip_by_group_norm_(given, 1.0, groups=groups)
    assert all((given[path] == array).all() for path, array in grads().items())


# ------------------------------------------------------------------------------------ adaptive


@pytest.mark.parametrize("name", ["adaptive_clip", "adaptive_clip_"])
@pytest.mark.parametrize(
    "bad", [2, -3, (0, 0), (1, -1), (0, 5), "rows", "1", 1.5, True, ("1",), [0], {0}, object(), math.nan, math.inf]
)
@pytest.mark.parametrize("how", ["itself", "called"])
def test_axes(name: str, bad: Any, how: str) -> None:
    def call(path: str, shape: tuple[int, ...]) -> Any:
        return bad

    with refuses("axis=", "", "Pass the axes to reduce over: 'all_but_first'") as given:
        CALLS[name](given, axis=bad if how == "itself" else call)


@pytest.mark.parametrize("good", [0, -1, (0,), (0, 1), (), None, np.int64(1), "all_but_first", "all_but_last"])
def test_axes_that_are_meant(good: Any) -> None:
    assert gc.adaptive_clip_(grads(), grads(), axis=good).clipped


@pytest.mark.parametrize(
    ("params", "asked", "seen", "error"),
    [
        ({"w": np.ones((2, 3))}, "gradient 'b'", "there is no parameter at that path; there are 'w'", None),
        (
            {"b": np.ones(1), "w": np.ones((3, 2))},
            "gradient 'w'",
            "its shape is (2, 3), and that of its parameter (3, 2)",
            None,
        ),
        (
            {"w": np.ones((2, 3)), "b": np.ones(())},
            "gradient 'b'",
            "its shape is (1,), and that of its parameter ()",
            None,
        ),
        ([np.ones((2, 3)), np.ones(1)], "gradient 'w'", "there is no parameter at that path", None),
        (None, "gradient 'w'", "there is no parameter", None),
        ({"w": np.full((2, 3), np.nan), "b": np.ones(1)}, "params 'w'", "infinities or NaNs", None),
        ({"w": np.ones((2, 3)), "b": np.full(1, np.inf)}, "params 'b'", "infinities or NaNs", None),
        ({"w": np.ones((2, 3), int), "b": np.ones(1)}, "'w'", "int64", gc.UnsupportedArrayError),
        (3.0, "'0'", "builtins.float is no array", gc.UnsupportedArrayError),
        ({1, 2}, "", "a set has no order", gc.ContainerError),
    ],
)
def test_parameters_that_do_not_match(params: Any, asked: str, seen: str, error: type[gc.GradClipError] | None) -> None:
    with refuses(asked, seen, "", error or gc.InvalidArgumentError) as given:
        gc.adaptive_clip_(given, params, axis="all_but_first")
