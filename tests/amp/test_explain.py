"""``explain``: one sentence for each thing that can have happened."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.rules import Rule
from tests.refusals import says

INF, NAN = math.inf, math.nan


def said(grads: Any, rule: Rule, **how: Any) -> str:
    """The same of a plan as of what was done."""
    sentence = gc.explain(gc.clip(grads, rule, **how)[1])
    assert gc.explain(gc.plan(grads, rule, **how).info) == sentence
    return sentence


@pytest.mark.parametrize(
    ("grads", "rule", "sentence"),
    [
        ([[3.0, 4.0]], gc.GlobalNorm(9.0), "norm 5 over 1 array"),
        ([[3.0, 4.0]], gc.GlobalNorm(1.0), "norm 5 over 1 array; clipped to 1"),
        ([[3.0, 4.0]], gc.GlobalNorm(0.0), "norm 5 over 1 array; clipped to 0"),
        ([[3.0], [4.0], [0.5]], gc.GlobalNorm(9.0), "norm 5.02 over 3 arrays, of which '1' 80%"),
        ([[3.0, 0.0], [4.0], [12.0]], gc.GlobalNorm(1.0), "norm 13 over 3 arrays, of which '2' 92%; clipped to 1"),
        ([[1.0]] * 3, gc.GlobalNorm(9.0), "norm 1.73 over 3 arrays, of which '0' 58%"),
        ([[1.0]] * 4, gc.GlobalNorm(9.0), "norm 2 over 4 arrays"),  # half is not telling
        ([[0.0], [0.0]], gc.GlobalNorm(9.0), "norm 0 over 2 arrays"),
        ([], gc.GlobalNorm(9.0), "norm 0 over 0 arrays"),
        ([[]], gc.GlobalNorm(9.0), "norm 0 over 1 array"),
        ([[3e9, 4e9]], gc.GlobalNorm(2e-9), "norm 5e+09 over 1 array; clipped to 2e-09"),
        ([[3.0, 4.0]], gc.GlobalNorm(3.5, 1), "norm 7 over 1 array; clipped to 3.5"),
        ([[3.0, 4.0]], gc.GlobalNorm(9.0, INF), "norm 4 over 1 array"),
        ([[3.0, 4.0], [6.0]], gc.ArrayNorm(5.0), "norm 7.81 over 2 arrays, of which '1' 77%; clipped to 7.07"),
        ([[3.0, 4.0]], gc.Value(3.0), "norm 5 over 1 array; clipped to 4.24"),
        ([[3.0, 4.0]], gc.Value(4.0), "norm 5 over 1 array"),
        ([[3.0, 4.0]], gc.Project(sets.L1Ball(1.0)), "norm 7 over 1 array; clipped to 1"),
        ([[3.0, 4.0]], gc.Project(sets.L1Ball(8.0)), "norm 7 over 1 array"),  # its own norm
        ([[3.0, 4.0]], gc.Project(sets.Simplex(1.0)), "norm 7 over 1 array; clipped to 1"),
        ([[3.0, 4.0]], gc.Chain(gc.Value(3.0), gc.GlobalNorm(1.0)), "norm 5 over 1 array; clipped to 1"),
        ([[3.0, 4.0]], gc.Chain(gc.Value(3.0), gc.GlobalNorm(9.0)), "norm 5 over 1 array; clipped to 4.24"),
    ],
)
def test_finite(grads: list[list[float]], rule: Rule, sentence: str) -> None:
    assert said([np.array(g) for g in grads], rule) == sentence


def test_the_paths_are_the_containers() -> None:
    grads = {"body": [np.array([3.0, 4.0])], "head": {"w": np.array([0.5])}}
    assert said(grads, gc.GlobalNorm(1.0)) == "norm 5.02 over 2 arrays, of which 'body.0' 100%; clipped to 1"


def test_the_norms_are_those_of_the_unscaled_gradients() -> None:
    grads = [np.array([3.0, 4.0], np.float16) * np.float16(1024)]
    assert said(grads, gc.GlobalNorm(9.0), loss_scale=1024.0) == "norm 5 over 1 array"
    assert said(grads, gc.GlobalNorm(1.0), loss_scale=1024.0) == "norm 5 over 1 array; clipped to 1"
    info = gc.to_half(grads, "float16", gc.GlobalNorm(1.0), loss_scale=1024.0)[1]
    assert gc.explain(info) == "norm 5 over 1 array; clipped to 1"


# ---- what is not finite -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grads", "trouble"),
    [
        ({"w": [INF, 1.0]}, "1 element of 'w' was infinite"),
        ({"w": [INF, -INF]}, "2 elements of 'w' were infinite"),
        ({"w": [NAN, 1.0]}, "1 element of 'w' was NaN"),
        ({"w": [NAN, 1.0, NAN, NAN]}, "3 elements of 'w' were NaN"),
        ({"w": [NAN, INF]}, "1 element of 'w' was infinite and 1 NaN"),
        ({"w": [NAN, INF, -INF, 0.0]}, "2 elements of 'w' were infinite and 1 NaN"),
        ({"a": [INF], "b": [1.0], "c": [NAN]}, "1 element of 'a' was infinite, 1 element of 'c' was NaN"),
        (
            {"a": [INF], "b": [INF], "c": [INF]},
            "1 element of 'a' was infinite, 1 element of 'b' was infinite, 1 element of 'c' was infinite",
        ),
        (
            {"a": [INF], "b": [NAN], "c": [INF], "d": [INF]},
            "1 element of 'a' was infinite, 1 element of 'b' was NaN, 1 element of 'c' was infinite, "
            "and some of 1 more array",
        ),
        (
            {name: [NAN] for name in "abcdefg"},
            "1 element of 'a' was NaN, 1 element of 'b' was NaN, 1 element of 'c' was NaN, and some of 4 more arrays",
        ),
    ],
)
def test_not_finite(grads: dict[str, list[float]], trouble: str) -> None:
    arrays = {path: np.array(g) for path, g in grads.items()}
    norm = "nan" if any(math.isnan(x) for g in grads.values() for x in g) else "inf"
    over = f"over {len(grads)} array{'s' if len(grads) > 1 else ''}"
    for policy, zeroed in (("skip", ""), ("zero", " and its gradients set to 0")):
        sentence = said(arrays, gc.GlobalNorm(1.0), nonfinite=policy)
        assert sentence == f"norm {norm} {over}; {trouble}, so the step was skipped{zeroed}"
    sentence = said(arrays, gc.GlobalNorm(1.0), nonfinite="propagate")
    assert sentence == f"norm {norm} {over}; NaN went through; {trouble}"


def test_sanitized() -> None:
    grads = {"a": np.array([INF, NAN], np.float16), "b": np.array([1.0], np.float16)}
    trouble = "1 element of 'a' was infinite and 1 NaN"
    sentence = said(grads, gc.GlobalNorm(1.0), nonfinite="sanitize")
    assert sentence == f"norm 6.55e+04 over 2 arrays, of which 'a' 100%; clipped to 1; {trouble}"
    sentence = said(grads, gc.GlobalNorm(1e6), nonfinite="sanitize")
    assert sentence == f"norm 6.55e+04 over 2 arrays, of which 'a' 100%; {trouble}"


def test_overflow_in_unscaling() -> None:
    """No element was infinite, and the step was skipped all the same."""
    grads = [np.array([60000.0, 1.0], np.float16)]
    how: dict[str, Any] = {"loss_scale": 0.5}
    for policy, zeroed in (("skip", ""), ("zero", " and its gradients set to 0")):
        sentence = said(grads, gc.GlobalNorm(1e9), nonfinite=policy, **how)
        why = "1 finite element was too large once unscaled, so the step was skipped"
        assert sentence == f"norm 1.2e+05 over 1 array; {why}{zeroed}"
    sentence = said(grads, gc.GlobalNorm(1e9), nonfinite="sanitize", **how)
    assert sentence == "norm 1.2e+05 over 1 array; 1 finite element was too large once unscaled"
    more = [np.array([60000.0, -60000.0, INF], np.float16)]
    sentence = said(more, gc.GlobalNorm(1e9), nonfinite="sanitize", **how)
    trouble = "1 element of '0' was infinite; 2 finite elements were too large once unscaled"
    assert sentence == f"norm 2.14e+05 over 1 array; {trouble}"


# ---- others -----------------------------------------------------------------------------------------


def test_explaining_is_not_heeding() -> None:
    info = gc.clip([np.array([INF])], gc.GlobalNorm(1.0), nonfinite="skip")[1]
    assert "skipped" in gc.explain(info)
    assert not info.heeded


def test_infos_of_other_functions() -> None:
    _, info = gc.clip_by_projection([np.array([3.0, 4.0])], sets.LinfBall(1.0))
    assert gc.explain(info) == "norm 5 over 1 array; clipped to 1.41"
    assert gc.explain(gc.clip_by_value_(np.array([3.0, 4.0]), 1.0)) == "norm 5 over 1 array; clipped to 1.41"
    clipper = gc.Clipper(gc.GlobalNorm(1.0))
    assert gc.explain(clipper.step_([np.array([3.0, 4.0])])) == "norm 5 over 1 array; clipped to 1"


@pytest.mark.parametrize("thing", [None, "norm 5", 5.0, {}, ([], None), gc.ClipInfo, gc.GlobalNorm(1.0)])
def test_no_info(thing: Any) -> None:
    with says(gc.InvalidArgumentError, "explain(", f"a {type(thing).__name__} is no report", "Pass the ClipInfo"):
        gc.explain(thing)


def test_the_pair_that_clip_returns_is_no_info() -> None:
    pair: Any = gc.clip([np.ones(2)], gc.GlobalNorm(1.0))
    with says(gc.InvalidArgumentError, "a tuple is no report"):
        gc.explain(pair)
