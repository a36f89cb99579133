"""Nothing is waited for, and nothing comes out of order: work runs late here, and only if somebody ordered it."""

from __future__ import annotations

import gc as collector
import importlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import cp, told
from tests.gpu.standin import Machine
from tests.gpu.standin.jax_cuda import JaxCudaArray
from tests.gpu.standin.torch_cuda import cuda_tensors

WANTED, _ = gc.clip_by_global_norm([np.full(5000, 3.0, np.float32)], 1.0, backend="numpy")


def backend() -> Any:
    return importlib.import_module("gradclip_backends.cupy_raw").BACKEND


def stream() -> Any:
    """One that nothing waits for by itself."""
    return cp().cuda.Stream(non_blocking=True)


def ready(value: float = 0.0, n: int = 5000) -> Any:
    """An array that is there for every stream."""
    x = cp().full(n, value, np.float32)
    cp().cuda.runtime.deviceSynchronize()
    return x


def host_of(x: Any) -> Any:
    """What is in memory now, whatever is still to come."""
    return x._host()


def warm_up(*streams: Any) -> None:
    """Workspaces, and a record for each answer."""
    for each in streams:
        with each:
            gc.clip_by_global_norm_([ready(1.0)], 1.0, nonfinite="skip")
    cp().cuda.runtime.deviceSynchronize()


@pytest.mark.parametrize("how", ["default", "non-blocking", "blocking", "per thread"])
def test_work_goes_to_cupys_current_stream(late: Machine, how: str) -> None:
    cuda = cp().cuda
    makers: dict[str, Callable[[], Any]] = {
        "default": lambda: cuda.Stream.null,
        "non-blocking": stream,
        "blocking": lambda: cuda.Stream(),
        "per thread": lambda: cuda.Stream.ptds,
    }
    made = makers[how]()
    x = ready()
    with made:
        x.fill(3)  # still queued when the call is made
        late.log.clear()
        info = gc.clip_by_global_norm_([x], 1.0, nonfinite="skip")
    assert {entry.stream for entry in late.log.of("launch", "memset")} == {made.ptr or 1}
    assert late.log.counts()["sync"] == 0
    assert not late.log.of("wait")
    assert [entry.ran for entry in late.log.of("launch")] == [0, 0, 0]
    with made:
        assert x.get().tobytes() == WANTED[0].tobytes()
    assert info.clipped


def test_out_of_place_and_plans_are_ordered_too(late: Machine) -> None:
    x, here = ready(), stream()
    with here:
        x.fill(3)
        made, info = gc.clip_by_global_norm([x], 1.0, nonfinite="skip")
        plan = gc.plan([x], gc.GlobalNorm(1.0), nonfinite="skip")
        x.fill(6)  # behind the reads
        assert made[0].get().tobytes() == WANTED[0].tobytes()
    assert info.norm == plan.info.norm == float(np.sqrt(5000 * 9.0))


def test_results_may_be_used_and_dropped_at_once(late: Machine) -> None:
    here = stream()
    with here:
        x = cp().full(5000, 3.0, np.float32)
        made, info = gc.clip_by_global_norm([x[::-1]], 1.0, nonfinite="skip")
        del x
        total = made[0].sum()
        del made, info
        collector.collect()
        assert total.get() == WANTED[0].sum()


@pytest.mark.parametrize("way", ["in place", "new", "plan"])
def test_two_producers_are_ordered_both_ways(late: Machine, way: str) -> None:
    """The second's values are waited for, and its next write waits for our kernels."""
    one, two = stream(), stream()
    x, y = ready(), ready()
    warm_up(one)
    with one:
        x.fill(3)
    docked: list[Any] = []
    with two:
        y.fill(4)
    expected, theirs = gc.clip_by_global_norm([np.full(5000, v, np.float32) for v in (3, 4)], 1.0, backend="numpy")
    with _streams_of({id(x): one, id(y): two}):
        if way == "in place":
            info = gc.clip_by_global_norm_([x, y], 1.0, nonfinite="skip")
            docked = [x, y]
        elif way == "new":
            docked, info = gc.clip_by_global_norm([x, y], 1.0, nonfinite="skip")
        else:
            plan = gc.plan([x, y], gc.GlobalNorm(1.0), nonfinite="skip")
            info = plan.info
    if way == "in place":
        copies = []
        for made, array in ((one, x), (two, y)):
            with made:
                copies.append(array.copy())
                array.fill(9)  # behind the write pass, or it would be clipped away
        docked = copies
    else:
        with two:
            y.fill(9)  # behind the read pass, or the norm is another
    two.synchronize()
    if way != "in place":
        assert host_of(y).tolist() == [9] * 5000
    assert told(info) == told(theirs)
    if way != "plan":
        one.synchronize()
        assert [host_of(array).tobytes() for array in docked] == [x.tobytes() for x in expected]


class _streams_of:  # noqa: N801 - reads like a function
    """Let arrays belong to streams of their own, as those of two frameworks in one call do."""

    def __init__(self, streams: dict[int, Any]) -> None:
        self.streams = streams

    def __enter__(self) -> None:
        door: Any = importlib.import_module("gradclip_core.arrays.cupy_door")
        self.door, self.dock = door.CupyDoor, door.CupyDoor.dock
        streams, original = self.streams, self.dock

        def dock(door: Any, x: Any) -> Any:
            docked = original(door, x)
            docked.stream = streams[id(x)].ptr if id(x) in streams else docked.stream
            return docked

        self.door.dock = dock

    def __exit__(self, *args: object) -> None:
        self.door.dock = self.dock


@pytest.mark.parametrize("consumer", ["torch", "cupy"])
def test_torchs_current_stream(late: Machine, consumer: str) -> None:
    """PyTorch's own, whatever CuPy's is; mixed with a CuPy array each has its own."""
    torch = pytest.importorskip("torch")
    ours, theirs = stream(), stream()
    x, y = ready(), torch.full((5000,), 3.0)
    with cuda_tensors(late, y) as fake, fake.stream(theirs.ptr):
        late.log.clear()
        if consumer == "torch":
            info = gc.clip_by_global_norm_([y], 1.0, nonfinite="skip")
            assert {entry.stream for entry in late.log.of("launch")} == {theirs.ptr}
            assert not late.log.of("wait")
            expected, report = gc.clip_by_global_norm([np.full(5000, 3, np.float32)], 1.0, backend="numpy")
        else:
            with ours:
                x.fill(4)
                info = gc.clip_by_global_norm_([x, y], 1.0, nonfinite="skip")
            assert {entry.stream for entry in late.log.of("launch") if "cupy" not in entry.kernel} == {ours.ptr}
            expected, report = gc.clip_by_global_norm(
                [np.full(5000, 4, np.float32), np.full(5000, 3, np.float32)], 1.0, backend="numpy"
            )
        theirs.synchronize()  # what PyTorch waits for
        assert y.tolist() == expected[-1].tolist()
    assert told(info) == told(report)


# ---- DLPack ------------------------------------------------------------------------------------------


def test_dlpack_producers_are_asked_for_the_default_stream(late: Machine) -> None:
    x = JaxCudaArray(np.full(5000, 3, np.float32))
    made, info = gc.clip_by_global_norm([x], 1.0, nonfinite="skip")
    assert x.streams == [1]
    assert host_of(x).tobytes() != np.full(5000, 3, np.float32).tobytes(), "somebody has waited"
    assert np.asarray(made[0]).tobytes() == WANTED[0].tobytes()
    assert np.asarray(x).tobytes() == np.full(5000, 3, np.float32).tobytes()
    assert info.clipped


@pytest.mark.parametrize("call", ["clip", "plan", "weights", "scale"])
def test_lent_memory_is_held_until_the_work_has_run(late: Machine, call: str) -> None:
    held = backend().held
    x: Any = JaxCudaArray(np.full(5000, 3, np.float32))
    gone = weakref.ref(x)
    mine = ready(2.0)
    result: Any = None
    if call == "clip":
        result = gc.clip_by_global_norm([x], 1.0, nonfinite="skip")[1]
    elif call == "plan":
        result = gc.plan([x], gc.GlobalNorm(1.0), nonfinite="skip")
    elif call == "weights":
        result = gc.adaptive_clip_([mine], [x], axis=None, nonfinite="skip")
    else:
        x = JaxCudaArray(np.full((), 4, np.float32))
        gone = weakref.ref(x)
        result = gc.clip_by_global_norm_([mine], 1.0, loss_scale=x, nonfinite="skip")
    del x
    collector.collect()
    assert gone() is not None
    assert len(held) >= 1
    info = result.info if call == "plan" else result
    assert info.norm == {"scale": 5000**0.5 * 0.5, "weights": 5000**0.5 * 2}.get(call, float(np.sqrt(45000.0)))
    if call in ("weights", "scale"):  # what an info is computed of may hold these
        del info, result
    for _ in range(2):  # each call lets go of what has run
        gc.clip_by_global_norm_([mine], 1.0, nonfinite="skip")
        cp().cuda.runtime.deviceSynchronize()
    gc.clip_by_global_norm_([mine], 1.0, nonfinite="skip")
    collector.collect()
    assert gone() is None
    assert len(held) == 0


def test_a_plan_holds_no_gradients(late: Machine) -> None:
    x = ready(3.0)
    pointer = x.data.ptr
    plan = gc.plan([x], gc.GlobalNorm(1.0), nonfinite="skip")
    del x
    collector.collect()
    cp().cuda.runtime.deviceSynchronize()
    late.reap()
    assert cp().cuda.runtime.pointerGetAttributes(pointer).type == 0
    assert plan.scale < 1


# ---- plans between streams ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_a_plan_made_on_one_stream_and_applied_on_another(late: Machine, keep: bool) -> None:
    one, two = stream(), stream()
    warm_up(one, two)
    x, *small = (ready(value) for value in (0.0, *[0.001] * 4))
    with one:
        x.fill(3)
        done = one.record()
        plan = gc.plan([x], gc.GlobalNorm(1.0), nonfinite="skip")
    two.wait_event(done)
    with two:
        plan.apply_([x])
    kept = plan if keep else None
    del plan
    # The record comes back to the first stream's workspace; the second one's kernels have still to read it.
    with one:
        others = [gc.clip_by_global_norm_([y], 1.0, nonfinite="skip") for y in small]
    one.synchronize()
    two.synchronize()
    assert host_of(x).tobytes() == WANTED[0].tobytes()
    assert not any(info.clipped for info in others)
    assert kept is None or kept.info.clipped


def test_several_devices_one_after_the_other(late: Machine) -> None:
    infos, arrays = [], []
    for turn in range(4):
        with cp().cuda.Device(turn % 2):
            x = cp().full(5000, 3.0, np.float32)
        late.log.clear()
        # The current device is the other one.
        with cp().cuda.Device(1 - turn % 2):
            infos.append(gc.clip_by_global_norm_([x], 1.0, nonfinite="skip"))
        assert {entry.device for entry in late.log.of("launch", "memset")} == {turn % 2}
        arrays.append(x)
    assert [info.clipped for info in infos] == [True] * 4
    assert [x.get().tobytes() for x in arrays] == [WANTED[0].tobytes()] * 4
    plan = gc.plan([arrays[0]], gc.GlobalNorm(0.5), nonfinite="skip")
    with pytest.raises(gc.BackendError, match=r"the plan was made on cuda:0, the gradients are on cuda:1. Plan on"):
        plan.apply_([arrays[1]])
    assert arrays[1].get().tobytes() == WANTED[0].tobytes()


# ---- threads -----------------------------------------------------------------------------------------


def run_together(work: Callable[[int], None], count: int) -> None:
    """In threads; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("shared", [True, False], ids=["one stream", "a stream each"])
def test_threads(standin: Machine, shared: bool) -> None:
    """At once: what two threads share is the workspace, which belongs to a stream."""
    one = stream()
    streams = [one if shared else stream() for _ in range(4)]
    limits = (0.5, 1.0, 2.0, 1e9)
    host = [np.random.default_rng(n).standard_normal(3000 + 900 * n).astype(np.float32) for n in range(4)]
    expected = [gc.clip_by_global_norm(x, limit, backend="numpy") for x, limit in zip(host, limits, strict=True)]

    def work(number: int) -> None:
        with streams[number]:
            for _ in range(15):
                x = cp().asarray(host[number])
                info = gc.clip_by_global_norm_(x, limits[number], nonfinite="skip")
                assert told(info) == told(expected[number][1])
                assert x.get().tobytes() == expected[number][0].tobytes()

    run_together(work, 4)


def test_threads_on_a_cold_backend(standin: Machine) -> None:
    """The first calls of several threads compile, and make the workspace, at the same time."""
    host = np.full(5000, 3, np.float32)

    def work(number: int) -> None:
        with cp().cuda.Device(number % 2):
            x = cp().asarray(host)
            gc.clip_by_global_norm_(x, 1.0)
            assert x.get().tobytes() == WANTED[0].tobytes()

    run_together(work, 6)
    assert len(standin.log.of("load")) == len({(entry.device, n) for n in range(3) for entry in standin.log.of("load")})
