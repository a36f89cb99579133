"""What a call leaves behind: records that come back, and infos that keep their own numbers."""

from __future__ import annotations

import gc as collector
import importlib
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import contents, cp, fetch, on_device, some, told
from tests.gpu.standin import Machine

GLOBAL = gc.GlobalNorm(1.0)


def workspaces() -> Any:
    return importlib.import_module("gradclip_backends.cupy_raw").BACKEND.workspaces


def free_records() -> int:
    """How many records wait to be used again."""
    collector.collect()
    return sum(len(free) for known in workspaces()._known.values() for free in known.free_records.values())


def test_records_come_back_when_the_info_is_dropped(standin: Machine) -> None:
    grads = on_device(some())
    info = gc.clip_(grads, GLOBAL, nonfinite="skip")
    assert free_records() == 1
    del info
    assert free_records() == 2
    infos = [gc.clip_(grads, GLOBAL, nonfinite="skip") for _ in range(5)]
    assert free_records() == 1
    del infos
    assert free_records() == 6
    plan = gc.plan(grads, gc.Chain(GLOBAL, gc.ArrayNorm(0.5)), nonfinite="skip")
    assert free_records() == 4
    info = plan.info
    del plan
    assert free_records() == 4, "what has not been read is still there"
    assert info.clipped
    del info
    assert free_records() == 6
    with pytest.raises(gc.NonFiniteGradientError):
        gc.clip_(on_device([np.full(3, np.nan, np.float32)]), GLOBAL)
    assert free_records() == 6 + 2


@pytest.mark.parametrize("rule", [GLOBAL, gc.Value(0.5), gc.Chain(gc.ArrayNorm(2.0), gc.Value(0.01))], ids=str)
def test_an_info_that_is_read_late_has_its_own_values(standin: Machine, rule: Rule) -> None:
    expected, infos = [], []
    grads = on_device(some())
    for seed in range(8):
        host = some(seed, 1.0 + seed)
        for x, new in zip(grads.values(), host.values(), strict=True):
            if new.size:
                x.set(new)
        infos.append(gc.clip_(grads, rule, nonfinite="skip"))
        expected.append(told(gc.clip(host, rule, backend="numpy")[1]))
    for _ in range(40):
        gc.clip_(grads, gc.ArrayNorm(1e-3), nonfinite="skip")
    assert [told(info) for info in infos] == expected


def test_a_record_comes_back_from_garbage_whole(standin: Machine) -> None:
    """An info in a cycle, as an error's traceback makes one: its memory must outlive the cycle's collection."""
    grads = on_device(some())
    for _ in range(3):
        cycle: list[Any] = [gc.clip_(grads, GLOBAL, nonfinite="skip")]
        cycle.append(cycle)
        del cycle
        assert free_records() == 2
    assert gc.clip_(grads, GLOBAL, nonfinite="skip").norm <= 1.0


def test_plans_keep_their_decision(standin: Machine) -> None:
    hosts = [some(seed, 2.0 + seed) for seed in range(4)]
    plans = [gc.plan(on_device(host), GLOBAL, nonfinite="skip") for host in hosts]
    for _ in range(20):
        gc.clip_(on_device(some()), gc.ArrayNorm(1e-3), nonfinite="skip")
    for host, plan in zip(hosts, plans, strict=True):
        theirs = gc.plan(host, GLOBAL, backend="numpy")
        assert contents(plan.apply(on_device(hosts[0]))) == contents(theirs.apply(hosts[0]))
        assert (plan.scale, told(plan.info)) == (theirs.scale, told(theirs.info))
        grads = on_device(host)
        plan.apply_(grads)
        assert contents(grads) == contents(theirs.apply(host))


@pytest.mark.parametrize("kind", ["info", "plan"])
def test_no_gradients_are_kept_alive(standin: Machine, kind: str) -> None:
    grads = on_device(some())
    alive = [weakref.ref(x.data.mem) for x in grads.values() if x.size]
    kept: Any = None
    if kind == "info":
        made, kept = gc.clip(grads, gc.Chain(gc.Value(0.5), GLOBAL), nonfinite="skip")
        alive += [weakref.ref(x.data.mem) for x in made.values() if x.size]
        del made
    else:
        kept = gc.plan(grads, gc.Chain(gc.Value(0.5), GLOBAL), nonfinite="skip")
    del grads
    collector.collect()
    assert [ref() for ref in alive] == [None] * len(alive)
    assert (kept if kind == "info" else kept.info).clipped


@pytest.mark.parametrize("where", ["host", "device"])
def test_weights_may_change_before_the_info_is_read(standin: Machine, where: str) -> None:
    """The optimizer changes them next: what is told is what was decided."""
    host, weights = some(scale=5.0), some(1)
    _, expected = gc.adaptive_clip(host, some(1), 0.05, axis=None, backend="numpy")
    params = weights if where == "host" else on_device(weights)
    info = gc.adaptive_clip_(on_device(host), params, 0.05, axis=None, nonfinite="skip")
    plan = gc.plan(on_device(host), gc.UnitNorm(params, 0.05, axis=None), nonfinite="skip")
    for x in params.values():
        x[...] = 1e6
    assert told(info) == told(expected)
    assert told(plan.info) == told(expected)


def test_the_loss_scale_may_change_before_the_info_is_read(standin: Machine) -> None:
    host, scale = some(scale=500.0), cp().asarray(np.float32(64))
    _, expected = gc.clip_by_global_norm(host, 1.0, loss_scale=64.0, backend="numpy")
    info = gc.clip_by_global_norm_(on_device(host), 1.0, loss_scale=scale, nonfinite="skip")
    scale.fill(128.0)
    assert told(info) == told(expected)


def test_nothing_leaks(standin: Machine) -> None:
    grads, weights = on_device(some()), on_device(some(1))

    def calls() -> None:
        gc.clip_(grads, GLOBAL, nonfinite="skip")
        gc.adaptive_clip_(grads, weights, axis="all_but_last", nonfinite="zero")
        gc.clip(grads, gc.Chain(gc.Value(0.1), GLOBAL), nonfinite="skip")
        gc.plan(grads, gc.Value(0.1)).apply_(grads)

    def used() -> tuple[int, int]:
        collector.collect()
        standin.reap()
        return standin.memory.used(0), free_records()

    for _ in range(5):
        calls()
    before = used()
    for _ in range(100):  # of four each
        calls()
    assert used() == before


def test_the_workspace_is_one_for_each_stream(standin: Machine) -> None:
    grads = on_device(some())
    streams = [cp().cuda.Stream(non_blocking=True) for _ in range(3)]
    for _ in range(3):
        for stream in streams:
            with stream:
                gc.clip_(grads, GLOBAL, nonfinite="skip")
    assert len(workspaces()._known) == 3
    standin.log.clear()
    bigger = on_device({str(n): np.ones(4000, np.float32) for n in range(200)})
    for _ in range(2):
        gc.clip_(bigger, GLOBAL, nonfinite="skip")
        counts = standin.log.counts()
        standin.log.clear()
    assert counts["alloc"] == 0


def test_an_info_travels(standin: Machine) -> None:
    """By pickle, read before: what is on the device stays there."""
    host = some(scale=3.0)
    info = gc.clip_(on_device(host), GLOBAL)
    again = pickle.loads(pickle.dumps(info))
    assert told(again) == told(info)
    assert again == info
    assert fetch(None) is None
