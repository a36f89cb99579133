"""Inside of a CUDA graph: one call to warm up, then nothing that capturing forbids, and replays that see the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import contents, cp, fetch, on_device, some, told
from tests.gpu.cupy.lanes import lane
from tests.gpu.standin import Machine
from tests.gpu.standin.jax_cuda import JaxCudaArray
from tests.refusals import check_sentence

RULES: dict[str, Any] = {
    "global": lambda: gc.GlobalNorm(1.0),
    "global 1": lambda: gc.GlobalNorm(1.0, 1),
    "general": lambda: gc.GlobalNorm(1.0, 3.5),
    "array": lambda: gc.ArrayNorm(1.0),
    "groups": lambda: gc.GroupNorm({1: 1.0, 3: 0.5, 4: None}, len),
    "value": lambda: gc.Value((-0.5, 0.25)),
    "chain": lambda: gc.Chain(gc.Value(1.0), gc.GlobalNorm(1.0)),
    "unit": lambda: gc.UnitNorm(on_device(some(7)), 0.1, axis="all_but_first"),
}
WARM_UP = "Clip once with the same gradients, on this stream, before capturing: that allocates and compiles"


def put(grads: Any, host: Any) -> None:
    """Other gradients, in the same memory."""
    for x, new in zip(grads.values(), host.values(), strict=True):
        if new.size:
            x.set(new)


def captured(stream: Any, call: Any) -> tuple[Any, Any]:
    """The graph of a call, and what it gave back."""
    stream.begin_capture()
    try:
        result = call()
    finally:
        graph = stream.end_capture()
    return graph, result


@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
@pytest.mark.parametrize("rule", RULES)
def test_replays_clip_what_is_there_then(standin: Machine, rule: str, policy: str) -> None:
    grads, asked = on_device(some()), RULES[rule]()
    stream = cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_(grads, asked, nonfinite=policy)
        standin.log.clear()
        graph, info = captured(stream, lambda: gc.clip_(grads, asked, nonfinite=policy))
        assert all(entry.captured for entry in standin.log.of("launch", "memset"))
        assert not standin.log.of("alloc", "sync", "h2d", "d2h", "load", "query")
        bad = some(5, 2.0)
        bad["b"][3] = np.nan
        # Large, small enough to be left alone, not finite, large again.
        for host in (some(1, 9.0), some(2, 1e-6), bad, some(3, 4.0)):
            put(grads, host)
            graph.launch(stream)
            expected, theirs = gc.clip(host, _on_host(asked), nonfinite=policy, backend="numpy")
            if rule != "general":
                assert contents(grads) == contents(expected)
        assert theirs.clipped
        if rule != "general":
            assert told(info) == told(theirs)  # those of the last replay
            put(grads, some(2, 1e-6))
            graph.launch(stream)
            assert told(info) == told(theirs), "once read, it stays"
        assert info.norm == pytest.approx(theirs.norm, rel=1e-12)


def _on_host(rule: Rule) -> Rule:
    if isinstance(rule, gc.UnitNorm):
        return gc.UnitNorm(fetch(rule.params), rule.clipping, rule.eps, axis=rule.axis)
    return rule


@pytest.mark.parametrize("standin", [lane("ptx-90")], indirect=True)
def test_a_replay_that_clips_nothing_writes_nothing(standin: Machine) -> None:
    grads, stream = on_device({"w": np.ones(5000, np.float32)}), cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_by_global_norm_(grads, 1e9, nonfinite="skip")
        standin.log.clear()
        graph, _ = captured(stream, lambda: gc.clip_by_global_norm_(grads, 1e9, nonfinite="skip"))
        graph.launch(stream)
    for entry in standin.log.of("launch"):
        assert entry.traffic is not None
        assert grads["w"].data.ptr not in {address for address, _ in entry.traffic.written}


def test_float64_and_tables(standin: Machine) -> None:
    host = {str(n): x for n, x in enumerate(np.random.default_rng(0).standard_normal((90, 60)))}
    grads, stream = on_device(host), cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
        graph, info = captured(stream, lambda: gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip"))
        for scale in (1e200, 1.0, 1e-200):
            new = {name: x * scale for name, x in host.items()}
            put(grads, new)
            graph.launch(stream)
            expected, theirs = gc.clip_by_global_norm(new, 1.0, backend="numpy")
            assert contents(grads) == contents(expected)
        assert told(info) == told(theirs)


def test_eager_calls_and_replays_do_not_disturb_each_other(standin: Machine) -> None:
    """A graph keeps the workspace that it was captured with; later calls on the stream get another."""
    one, other = on_device(some()), on_device(some(4))
    stream = cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_by_global_norm_(one, 1.0, nonfinite="skip")
        graph, held = captured(stream, lambda: gc.clip_by_global_norm_(one, 1.0, nonfinite="skip"))
        infos = []
        for seed in range(5):
            hosts = some(seed, 5.0), some(seed + 10, 3.0)
            put(one, hosts[0])
            put(other, hosts[1])
            before = gc.clip_by_global_norm_(other, 2.0, nonfinite="skip")
            graph.launch(stream)
            after = gc.clip_by_norm_(other, 0.5, nonfinite="skip")
            expected = [gc.clip_by_global_norm(h, m, backend="numpy") for h, m in zip(hosts, (1.0, 2.0), strict=True)]
            second, report = gc.clip_by_norm(expected[1][0], 0.5, backend="numpy")
            assert (contents(one), contents(other)) == (contents(expected[0][0]), contents(second))
            infos.append((before, expected[1][1]))
            infos.append((after, report))
        assert [told(ours) for ours, _ in infos] == [told(theirs) for _, theirs in infos]
        assert told(held) == told(expected[0][1])


def test_two_graphs_and_two_clips_in_one(standin: Machine) -> None:
    one, other = on_device(some()), on_device(some(4))
    stream = cp().cuda.Stream(non_blocking=True)

    def both() -> list[gc.ClipInfo]:
        return [gc.clip_by_norm_(g, 1.0, nonfinite="skip") for g in (one, other)]

    with stream:
        both()
        first, infos = captured(stream, both)
        both()
        second, more = captured(stream, both)
        for graph, told_by in ((first, infos), (second, more), (first, None)):
            hosts = some(8, 6.0), some(9, 7.0)
            put(one, hosts[0])
            put(other, hosts[1])
            graph.launch(stream)
            expected = [gc.clip_by_norm(host, 1.0, backend="numpy") for host in hosts]
            assert [contents(one), contents(other)] == [contents(x) for x, _ in expected]
            if told_by is not None:
                assert [told(info) for info in told_by] == [told(info) for _, info in expected]


def test_a_dropped_info_leaves_its_graph_its_memory(standin: Machine) -> None:
    grads, stream = on_device(some()), cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
        graph, info = captured(stream, lambda: gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip"))
        del info
        eager = [gc.clip_by_global_norm_(on_device(some(n)), 0.5, nonfinite="skip") for n in range(4)]
        put(grads, some(6, 3.0))
        graph.launch(stream)
        assert contents(grads) == contents(gc.clip_by_global_norm(some(6, 3.0), 1.0, backend="numpy")[0])
    assert [told(info) for info in eager] == [
        told(gc.clip_by_global_norm(some(n), 0.5, backend="numpy")[1]) for n in range(4)
    ]


def test_a_plan_in_a_graph(standin: Machine) -> None:
    grads, stream = on_device(some()), cp().cuda.Stream(non_blocking=True)

    def planned() -> gc.Plan:
        plan = gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        plan.apply_(grads)
        return plan

    with stream:
        planned()
        graph, plan = captured(stream, planned)
        put(grads, some(6, 3.0))
        graph.launch(stream)
        expected, info = gc.clip_by_global_norm(some(6, 3.0), 1.0, backend="numpy")
        assert (contents(grads), plan.scale) == (contents(expected), info.scale)


def test_a_loss_scale_on_the_device(standin: Machine) -> None:
    """As a GradScaler's, which changes between replays."""
    grads, stream = on_device(some()), cp().cuda.Stream(non_blocking=True)
    with stream:
        scale = cp().asarray(np.float32(1))
        gc.clip_by_global_norm_(grads, 1.0, loss_scale=scale, nonfinite="skip")
        graph, _ = captured(stream, lambda: gc.clip_by_global_norm_(grads, 1.0, loss_scale=scale, nonfinite="skip"))
        for value in (64.0, 1024.0):
            scale.fill(value)
            put(grads, some(1, 300.0))
            graph.launch(stream)
            expected, _ = gc.clip_by_global_norm(some(1, 300.0), 1.0, loss_scale=value, backend="numpy")
            assert contents(grads) == contents(expected)


# ---- what cannot be captured -------------------------------------------------------------------------


def refused(stream: Any, grads: Any, **how: Any) -> gc.GradClipError:
    """The error of a call in a capture, with nothing written."""
    before = contents(grads)
    with stream:
        stream.begin_capture()
        with pytest.raises(gc.GradClipError) as caught:
            gc.clip_by_global_norm_(grads, 1.0, **how)
        with pytest.raises(cp().cuda.runtime.CUDARuntimeError):
            stream.end_capture()
    assert contents(grads) == before
    return caught.value


@pytest.mark.parametrize("how", ["nothing was compiled", "another stream", "more gradients"])
def test_without_a_call_before_it(standin: Machine, how: str) -> None:
    grads, stream = on_device(some(scale=5.0)), cp().cuda.Stream(non_blocking=True)
    if how == "another stream":
        gc.clip_by_global_norm_(grads, 1e9)
    if how == "more gradients":
        with stream:
            gc.clip_by_global_norm_(grads, 1e9)
        grads["more"] = on_device(np.full(2_000_000, 4, np.float16))
    error = refused(stream, grads, nonfinite="skip")
    check_sentence(error, gc.BackendError, "cupy_raw, ", "operation not permitted when stream is capturing", WARM_UP)
    # Afterwards everything works.
    with stream:
        assert gc.clip_by_global_norm_(grads, 1.0).clipped


def test_an_info_cannot_be_read_in_the_capture(standin: Machine) -> None:
    grads, stream = on_device(some(scale=5.0)), cp().cuda.Stream(non_blocking=True)
    with stream:
        gc.clip_by_global_norm_(grads, 1e9)
        stream.begin_capture()
        info = gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
        with pytest.raises(gc.BackendError, match="read info after a replay"):
            info.norm  # noqa: B018
        stream.end_capture().launch(stream)
    assert info.clipped


def test_raise_cannot_be_captured(standin: Machine) -> None:
    """The host would have to know before the write pass is recorded: no warming up helps."""
    grads, stream = on_device(some(scale=5.0)), cp().cuda.Stream(non_blocking=True)
    before = contents(grads)
    with stream:
        gc.clip_by_global_norm_(grads, 1e9)
        stream.begin_capture()
        with pytest.raises(gc.GradClipError) as caught:
            gc.clip_by_global_norm_(grads, 1.0)
        stream.end_capture().launch(stream)
    assert contents(grads) == before
    seen, cure = "its stream is being captured into a CUDA graph", "pass another nonfinite than 'raise'"
    check_sentence(caught.value, gc.BackendError, "a result on the device", seen, cure)


def test_memory_that_is_lent_does_not_spoil_a_capture(standin: Machine) -> None:
    """Whether an earlier call's memory can be let go is not asked inside a capture; a captured one's is kept."""
    from gradclip_backends.cupy_raw import BACKEND

    cupy = cp()
    stream = cupy.cuda.Stream(non_blocking=True)
    g = cupy.asarray(np.full(9, 5, np.float32))
    with stream:
        gc.clip_by_global_norm_([g], 1.0, nonfinite="skip")
    gc.clip_by_global_norm([JaxCudaArray(np.ones(5, np.float32))], 1.0, nonfinite="skip")
    assert len(BACKEND.held) > 0
    with stream:
        stream.begin_capture()
        gc.clip_by_global_norm_([g], 0.5, nonfinite="skip")
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()
    assert float(np.linalg.norm(g.get())) <= 0.5
