"""What a first user stumbled over, once."""

from __future__ import annotations

import gc as collector
import pickle
import types
import weakref

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.errors import show


def test_a_group_without_gradients_this_step_is_still_a_group() -> None:
    """Mixtures of experts, frozen heads: the gradient is None, and the threshold is configured."""
    grads = {"body": np.full(2, 3.0), "head": None}
    for groups in (lambda path: path, {"body": ["body"], "head": ["head"]}):
        clipped, info = gc.clip_by_group_norm(grads, {"body": 1.0, "head": 1.0}, groups=groups)
        assert info.clipped
        assert clipped["head"] is None


def test_a_group_can_be_left_alone() -> None:
    grads = {"body": np.full(2, 3.0), "head": np.full(2, 3.0)}
    clipped, info = gc.clip_by_group_norm(grads, {"body": 1.0, "head": None}, groups=lambda path: path)
    assert clipped["head"].tolist() == [3.0, 3.0]
    assert info.scales["head"] == 1.0 > info.scales["body"]


def test_agc_refuses_lists_that_cannot_be_paired() -> None:
    """``[p.grad for p in params if p.grad is not None]`` shifts every gradient behind the gap."""
    params = [np.full((2, 2), size) for size in (100.0, 1.0, 0.01)]
    grads = [np.ones((2, 2)), np.ones((2, 2))]
    with pytest.raises(gc.InvalidArgumentError, match="3 parameters and 2 gradients, which are paired by position"):
        gc.adaptive_clip(grads, params, axis="all_but_first")
    with pytest.raises(gc.InvalidArgumentError, match="at 'layers' there are 3"):
        gc.adaptive_clip({"layers": grads}, {"layers": params}, axis="all_but_first")
    _, info = gc.adaptive_clip([None, *grads], params, axis="all_but_first")
    assert list(info.norms) == ["1", "2"]
    assert info.scales["1"] == pytest.approx(0.01)


def test_a_rule_made_of_a_generator_works_twice() -> None:
    rule = gc.UnitNorm((w for w in [np.ones((2, 2))]), axis=None)
    for _ in range(2):
        assert gc.clip([np.full((2, 2), 7.0)], rule)[1].clipped


def test_info_travels_between_processes() -> None:
    _, info = gc.clip_by_norm({"a": np.array([3.0, 4.0]), "b": np.ones(1)}, 1.0)
    again = pickle.loads(pickle.dumps(info))
    assert again == info
    assert hash(again) == hash(info)
    assert (again.norms, again.scales, again.culprits) == (info.norms, info.scales, info.culprits)


def test_swapped_arguments_do_not_bury_the_sentence() -> None:
    grads = [np.random.default_rng(0).standard_normal((50, 50)) for _ in range(50)]
    with pytest.raises(gc.InvalidArgumentError, match="a list cannot be read as one number") as caught:
        gc.clip_by_global_norm_(1.0, grads)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300
    assert len(show(grads)) == 80


def test_a_limit_has_its_own_sentence() -> None:
    with pytest.raises(gc.InvalidArgumentError, match=r"limit=-1: \[-v, v\] is empty or endless"):
        gc.clip_by_value(np.ones(2), -1)


@pytest.mark.parametrize("asked", ["abc", "0", "-1"])
def test_a_number_of_threads_that_is_none(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a reason against the backend: recorded when one is chosen, raised when it is named."""
    pytest.importorskip("numba")
    monkeypatch.setenv("GRADCLIP_NUM_THREADS", asked)
    _, info = gc.clip_by_norm([np.ones(2)], 1.0)
    assert info.backend == "numpy"
    assert "is no number of threads" in info.passed_over["numba_cpu"][0]
    with pytest.raises(gc.BackendError, match="is no number of threads"):
        gc.clip_by_norm([np.ones(2)], 1.0, backend="numba_cpu")


@pytest.mark.parametrize("rule", [gc.GlobalNorm(1.0), gc.Value(0.5), gc.Chain(gc.Value(0.5), gc.ArrayNorm(0.1))])
def test_an_info_or_a_plan_that_is_kept_keeps_no_gradients(rule: gc.GlobalNorm) -> None:
    """Who keeps the last step's info must not keep its gradients, and pay for two sets of them."""
    held: list[gc.Plan | gc.ClipInfo] = []
    for container in (dict, types.MappingProxyType):
        grads = container({"a": np.full(5, 3.0), "b": [np.ones(2)]})
        alive = weakref.ref(grads["a"])
        held.append(gc.clip_(grads, rule))
        held.append(gc.plan(grads, rule))
        del grads
        collector.collect()
        assert alive() is None
    infos = [kept.info if isinstance(kept, gc.Plan) else kept for kept in held]
    assert all(set(info.norms) == {"a", "b.0"} for info in infos)
