"""The asynchronous mode: what was not ordered does not happen in order, and what was not awaited has not happened."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from tests.gpu.engine import KernelFault
from tests.gpu.standin import Machine, install
from tests.gpu.standin.memory import FRESH
from tests.gpu.standin.python_engine import PythonEngine, kernel

POISON = np.frombuffer(bytes([FRESH]) * 4, np.float32)[0]
TWO, TEN = np.float32(2), np.float32(10)


def host_of(x: Any) -> Any:
    """What is in memory now, whatever is still to come."""
    return x._host().tolist()


def test_nothing_runs_before_somebody_waits(late: Machine, cp: Any) -> None:
    x = cp.zeros(2, np.float32)
    kernel(cp, "scale")((1,), (1,), (x, np.uint32(2), TWO))
    assert host_of(x) == [POISON] * 2
    assert [entry.ran for entry in late.log.of("memset", "launch")] == [0, 0]
    assert x.get(blocking=False).tolist() == [POISON] * 2
    cp.cuda.get_current_stream().synchronize()
    assert host_of(x) == [0, 0]
    assert [entry.ran for entry in late.log.of("memset", "launch")] == [1, 1]


def test_arguments_and_pageable_sources_are_those_of_the_call(late: Machine, cp: Any) -> None:
    source, by = np.ones(2, np.float32), np.zeros(1, np.float32)
    by[0] = 3
    x = cp.asarray(source)
    kernel(cp, "scale")((1,), (1,), (x, np.uint32(2), by))
    source[:], by[0] = 7, 7
    assert x.get().tolist() == [3, 3]


def test_page_locked_memory_is_read_and_written_late(late: Machine, cp: Any) -> None:
    run, pinned = cp.cuda.runtime, cp.cuda.alloc_pinned_memory(8)
    host = np.frombuffer(pinned, np.float32)
    host[:] = 1
    x = cp.empty(2, np.float32)
    run.memcpyAsync(x.data.ptr, pinned.ptr, 8, run.memcpyHostToDevice, 0)
    host[:] = 5
    x += TWO
    run.memcpyAsync(pinned.ptr, x.data.ptr, 8, run.memcpyDeviceToHost, 0)
    assert host.tolist() == [5, 5]
    assert late.log.counts()["sync"] == 0
    run.streamSynchronize(0)
    assert host.tolist() == [7, 7]


@pytest.mark.parametrize("ordered", [True, False])
def test_streams_are_ordered_by_events_alone(late: Machine, cp: Any, ordered: bool) -> None:
    producer, consumer = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    x, scale = cp.ones(2, np.float32), kernel(cp, "scale")
    cp.cuda.runtime.deviceSynchronize()
    with producer:
        x.fill(10)
        event = producer.record()
    if ordered:
        consumer.wait_event(event)
    scale((1,), (1,), (x, np.uint32(2), TWO), stream=consumer)
    consumer.synchronize()
    assert host_of(x) == ([20, 20] if ordered else [2, 2])
    assert event.done is ordered
    event.synchronize()
    assert host_of(x) == ([20, 20] if ordered else [10, 10])
    assert event.done


def test_the_whole_device_runs_unordered_work_the_other_way_round(late: Machine, cp: Any) -> None:
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    x = cp.empty(1, np.float32)
    with first:
        x.fill(1)
    with second:
        x.fill(2)
    cp.cuda.Device(0).synchronize()
    assert host_of(x) == [1]


def test_the_legacy_stream_waits_for_blocking_streams_and_they_for_it(late: Machine, cp: Any) -> None:
    stream, x = cp.cuda.Stream(), cp.ones(1, np.float32)
    with stream:
        x += TWO  # after the fill on the legacy stream
    x *= TEN
    cp.cuda.Stream.null.synchronize()
    assert host_of(x) == [30]
    with stream:
        x += TWO
    cp.cuda.Stream.null.synchronize()
    assert host_of(x) == [32]


def test_polling_comes_to_an_end(late: Machine, cp: Any) -> None:
    cp.ones(1)
    event = cp.cuda.Stream.null.record()
    assert [event.done, event.done] == [False, True]
    cp.ones(1)
    assert [cp.cuda.Stream.null.done, cp.cuda.Stream.null.done] == [False, True]


def test_freed_memory_is_reused_in_the_order_of_its_stream(late: Machine, cp: Any) -> None:
    other = cp.cuda.Stream(non_blocking=True)
    x, y, add = cp.ones(2, np.float32), cp.zeros(2, np.float32), kernel(cp, "add")
    add((1,), (1,), (y, x, np.uint32(2)))
    del x  # behind the launch, in the stream of the allocation: right
    assert y.get().tolist() == [1, 1]
    x = cp.ones(2, np.float32)
    event = cp.cuda.Stream.null.record()
    other.wait_event(event)
    add((1,), (1,), (y, x, np.uint32(2)), stream=other)
    del x  # nothing orders the other stream's launch before this
    gc.collect()
    cp.cuda.Stream.null.synchronize()
    with pytest.raises(KernelFault, match="no memory of this device"):
        other.synchronize()


def test_a_fault_is_reported_by_whoever_waits_once(late: Machine, cp: Any) -> None:
    kernel(cp, "scale")((1,), (1,), (np.uint64(64), np.uint32(2), TWO))
    with pytest.raises(KernelFault):
        cp.cuda.runtime.deviceSynchronize()
    cp.cuda.runtime.deviceSynchronize()


def test_current_streams(standin: Machine, cp: Any) -> None:
    with pytest.warns(DeprecationWarning, match="from_external"):
        assert cp.cuda.ExternalStream(5).ptr == 5
    stream = cp.cuda.Stream()
    with stream:
        assert cp.cuda.get_current_stream() == stream
        with cp.cuda.Device(1):
            assert cp.cuda.get_current_stream().ptr == 0
        assert cp.cuda.get_current_stream(0) == stream
    assert cp.cuda.get_current_stream() == cp.cuda.Stream.null
    assert cp.cuda.Stream.from_external(stream) == stream
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="invalid resource handle"):
        cp.cuda.Stream.from_external(cp.cuda.Stream.ptds).wait_event(type("E", (), {"ptr": 77}))


def test_at_once_is_the_default() -> None:
    with install(PythonEngine()) as standin:
        assert not standin.work.asynchronous
