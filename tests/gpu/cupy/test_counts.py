"""What a call asks of the device in steady state: launches and nothing else, and never that the host waits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import cp, on_device, some
from tests.gpu.standin import Machine

SYNCS = 2
"""A copy into the host's pageable memory returns when it is done, and the stream is waited for besides."""
NOTHING = {"launch": 0, "alloc": 0, "sync": 0, "h2d": 0, "d2h": 0, "memset": 0}
MEASURE, SCALED = ["measure_squares"], ["measure_squares", "rescale", "ask_for_carries", "carries"]
WIDE = [*SCALED, "decide_norms", "apply"]
# Rule -> the kernels that it takes for float32 and narrower, and for float64.
KERNELS: dict[str, tuple[Rule, list[str], list[str]]] = {
    "global": (gc.GlobalNorm(1.0), [*MEASURE, "decide_norms", "apply"], WIDE),
    "nothing over": (gc.GlobalNorm(1e9), [*MEASURE, "decide_norms", "apply"], WIDE),
    "global 1": (
        gc.GlobalNorm(1.0, 1),
        ["measure_magnitudes", "decide_norms", "apply"],
        ["measure_magnitudes", "rescale", "ask_for_carries", "carries", "decide_norms", "apply"],
    ),
    "global inf": (
        gc.GlobalNorm(1.0, math.inf),
        [*MEASURE, "decide_norms", "apply"],
        [*MEASURE, "decide_norms", "apply"],
    ),
    "global 3.5": (gc.GlobalNorm(1.0, 3.5), [*MEASURE, "powers", "decide_general", "apply"], []),
    "array": (gc.ArrayNorm(1.0), [*MEASURE, "decide_norms", "apply"], WIDE),
    "groups": (gc.GroupNorm(1.0, len), [*MEASURE, "decide_norms", "apply"], WIDE),
    "value": (
        gc.Value(0.5),
        [*MEASURE, "decide_value", "apply", "measure_squares"],
        [*MEASURE, "rescale", "decide_value", "apply", "measure_squares", "rescale"],
    ),
    "chain": (
        gc.Chain(gc.ArrayNorm(9.0), gc.GlobalNorm(1.0)),
        [*MEASURE, "decide_norms", "apply"] * 2,
        [*SCALED, "decide_norms", "apply"] * 2,
    ),
}
POLICIES = ("skip", "zero", "sanitize", "propagate")


def kernels(standin: Machine) -> list[str]:
    return [name.removesuffix("_inline") for name in standin.log.kernels()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("rule", KERNELS)
def test_a_call_launches_and_waits_for_nothing(standin: Machine, rule: str, dtype: Any, policy: str) -> None:
    asked, narrow, wide = KERNELS[rule]
    expected = (wide or narrow) if dtype is np.float64 else narrow
    grads = on_device(some(scale=3.0, dtype=dtype))
    gc.clip_(grads, asked, nonfinite=policy)
    standin.log.clear()
    info = gc.clip_(grads, asked, nonfinite=policy)
    assert kernels(standin) == expected
    records = sum(name.startswith("measure") for name in expected)
    assert standin.log.counts() == {**NOTHING, "launch": len(expected), "memset": records}
    assert not standin.log.of("wait", "record", "query", "load"), "one stream is ordered by itself"
    standin.log.clear()
    assert repr(info) == "ClipInfo(on the device, backend='cupy_raw')"
    assert standin.log.counts() == NOTHING
    assert info.norm > 0
    answers = 2 if rule == "chain" else 1  # a rule's answer each; the norm after a by-value rule, where it clipped
    assert standin.log.counts() == {**NOTHING, "sync": SYNCS * answers, "d2h": answers}
    for name in ("norm", "clipped_norm", "scale", "clipped", "skipped", "nonfinite", "norms", "scales", "culprits"):
        getattr(info, name)
    assert repr(info).startswith("ClipInfo(norm=")
    assert standin.log.counts()["d2h"] == answers


@pytest.mark.parametrize("rule", ["global", "value", "groups"])
def test_raise_reads_a_few_bytes_once(standin: Machine, rule: str) -> None:
    """Before anything is written: whether to raise, the host has to know."""
    grads = on_device(some(scale=3.0))
    gc.clip_(grads, KERNELS[rule][0])
    standin.log.clear()
    gc.clip_(grads, KERNELS[rule][0])
    assert kernels(standin) == KERNELS[rule][1]
    records = sum(name.startswith("measure") for name in KERNELS[rule][1])
    launches = len(KERNELS[rule][1])
    assert standin.log.counts() == {**NOTHING, "launch": launches, "memset": records, "sync": SYNCS, "d2h": 1}
    assert [entry.nbytes for entry in standin.log.of("d2h")] == [56]
    kinds = [entry.kernel or entry.kind for entry in standin.log.entries]
    assert kinds.index("d2h") < kinds.index("apply_inline")


def test_unitwise(standin: Machine) -> None:
    grads, weights = on_device(some(scale=3.0)), on_device(some(1))
    host = some(1)

    def counts(params: Any, axis: Any) -> tuple[list[str], dict[str, int]]:
        for _ in range(2):
            standin.log.clear()
            gc.adaptive_clip_(grads, params, axis=axis, nonfinite="skip")
        return kernels(standin), standin.log.counts()

    names = ["measure_squares", "measure_squares", "decide_norms", "apply"]
    for axis in ("all_but_first", None):
        assert counts(weights, axis) == (names, {**NOTHING, "launch": 4, "memset": 2})
    packed = ["gather", "gather", *names, "scatter"]  # the units of "w" are its columns: they are packed
    assert counts(weights, "all_but_last") == (packed, {**NOTHING, "launch": 7, "memset": 2, "alloc": 2})
    # Weights on the host are measured there; the limits go along with a launch while they stay the same.
    assert counts(host, "all_but_first") == (names[1:], {**NOTHING, "launch": 3, "memset": 1})


@pytest.mark.parametrize("count", [81, 300])
def test_tables_stay_where_they_are(standin: Machine, count: int) -> None:
    grads = [on_device(np.ones(50, np.float32)) for _ in range(count)]
    for _ in range(2):
        standin.log.clear()
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    assert standin.log.kernels() == ["measure_squares_table", "decide_norms_table", "apply_table"]
    assert standin.log.counts() == {**NOTHING, "launch": 3, "memset": 1}
    standin.log.clear()
    grads[7] = on_device(np.ones(50, np.float32))
    standin.log.clear()
    gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    # Another array: the table goes up anew, as arguments of kernels, which need no copy that the host waits for.
    uploads = [name for name in standin.log.kernels() if name.startswith("store_")]
    assert uploads == (["store_chunk"] if count == 81 else ["store_large_chunk"])
    assert standin.log.counts() == {**NOTHING, "launch": 4, "memset": 1}


def test_out_of_place_allocates_the_result_alone(standin: Machine) -> None:
    grads = on_device(some())
    for _ in range(3):
        standin.log.clear()
        _, info = gc.clip_by_global_norm(grads, 1.0, nonfinite="skip")
    assert standin.log.counts() == {**NOTHING, "launch": 3, "memset": 1, "alloc": 3}  # one array has no elements
    assert {entry.nbytes for entry in standin.log.of("alloc")} == {97 * 55 * 4, 300 * 4, 4}
    assert info.clipped


def test_a_plan(standin: Machine) -> None:
    grads = on_device(some())
    gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="skip").apply_(grads)
    standin.log.clear()
    plan = gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="skip")
    assert (kernels(standin), standin.log.counts()) == (
        [*MEASURE, "decide_norms"],
        {**NOTHING, "launch": 2, "memset": 1},
    )
    plan.apply_(grads)
    assert standin.log.counts() == {**NOTHING, "launch": 3, "memset": 1}
    assert plan.scale <= 1
    assert standin.log.counts()["d2h"] == 1
    assert (plan.scale, plan.info.scale) == (plan.info.scale, plan.scale)
    assert standin.log.counts()["d2h"] == 1


def test_a_loss_scale_on_the_device_is_not_read(standin: Machine) -> None:
    grads, scale = on_device(some()), cp().asarray(np.float32(1024))
    for _ in range(2):
        standin.log.clear()
        gc.clip_by_global_norm_(grads, 1.0, loss_scale=scale, nonfinite="skip")
    assert standin.log.counts() == {**NOTHING, "launch": 3, "memset": 1}


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "dropped": lambda grads, kept: gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip"),
    "read": lambda grads, kept: gc.clip_by_global_norm_(grads, 1.0).norm,
    "a step later": lambda grads, kept: kept.append(gc.clip_by_norm_(grads, 1.0, nonfinite="zero")) or kept[-2:-1],
    "value": lambda grads, kept: gc.clip_by_value_(grads, 1.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_thousand_calls_allocate_nothing(standin: Machine, call: str) -> None:
    grads = on_device(some())
    kept: list[Any] = []
    for _ in range(3):
        CALLS[call](grads, kept)
    standin.log.clear()
    for _ in range(1000 if call == "dropped" else 100):
        CALLS[call](grads, kept)
        del kept[:-1]
    counts = standin.log.counts()
    assert (counts["alloc"], counts["h2d"]) == (0, 0)
    assert (counts["sync"], counts["d2h"]) == {"read": (200 * SYNCS, 200), "value": (100 * SYNCS, 100)}.get(
        call, (0, 0)
    )
