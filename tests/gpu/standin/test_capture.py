"""Stream capture: what may be recorded is replayed, and what CUDA forbids raises and spoils the capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.standin import Machine
from tests.gpu.standin.python_engine import ZEROS, kernel

N, TWO = np.uint32(2), np.float32(2)


def test_a_graph_is_recorded_and_replayed(standin: Machine, cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    x, y, scale = cp.ones(2, np.float32), cp.ones(2, np.float32), kernel(cp, "scale")
    standin.log.clear()
    stream.begin_capture()
    assert stream.is_capturing()
    cp.cuda.runtime.memsetAsync(y.data.ptr, 0, 8, stream.ptr)
    scale((1,), (1,), (x, N, TWO), stream=stream)
    kernel(cp, "add")((1,), (1,), (y, x, N), stream=stream)
    graph = stream.end_capture()
    assert not stream.is_capturing()
    assert (x.get().tolist(), y.get().tolist()) == ([1, 1], [1, 1])
    assert standin.log.counts() == {**ZEROS, "launch": 2, "memset": 1, "d2h": 2, "sync": 2}
    assert all(entry.captured for entry in standin.log.of("launch", "memset"))
    for _ in range(2):
        graph.launch(stream)
    assert (x.get().tolist(), y.get().tolist()) == ([4, 4], [4, 4])
    assert [entry.ran for entry in standin.log.of("launch")] == [2, 2]


def test_a_replay_waits_for_its_turn(late: Machine, cp: Any) -> None:
    stream = cp.cuda.Stream()
    x, scale = cp.ones(2, np.float32), kernel(cp, "scale")
    stream.begin_capture(cp.cuda.runtime.streamCaptureModeRelaxed)
    scale((1,), (1,), (x, N, TWO), stream=stream)
    graph = stream.end_capture()
    graph.launch(stream)
    assert late.log.of("launch")[-1].ran == 0
    assert x.get().tolist() == [2, 2]


FORBIDDEN: dict[str, Callable[[Any, Any, Any], object]] = {
    "alloc": lambda cp, stream, x: cp.empty(3),
    "pinned": lambda cp, stream, x: cp.cuda.alloc_pinned_memory(3),
    "stream": lambda cp, stream, x: stream.synchronize(),
    "another stream": lambda cp, stream, x: cp.cuda.Stream(non_blocking=True).synchronize(),
    "device": lambda cp, stream, x: cp.cuda.Device(0).synchronize(),
    "get": lambda cp, stream, x: x.get(stream),
    "set": lambda cp, stream, x: x.set(np.ones(2, np.float32), stream),
    "pageable": lambda cp, stream, x: cp.cuda.runtime.memcpyAsync(
        x.data.ptr, np.ones(2).ctypes.data, 8, cp.cuda.runtime.memcpyHostToDevice, stream.ptr
    ),
    "memcpy": lambda cp, stream, x: cp.cuda.runtime.memcpy(
        x.data.ptr, x.data.ptr, 8, cp.cuda.runtime.memcpyDeviceToDevice
    ),
    "load": lambda cp, stream, x: cp.RawModule(code="scale").get_function("scale"),
    "query": lambda cp, stream, x: stream.done,
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_no_capture_survives(cp: Any, what: str) -> None:
    stream, x = cp.cuda.Stream(non_blocking=True), cp.ones(2, np.float32)
    stream.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing") as caught:
        FORBIDDEN[what](cp, stream, x)
    assert caught.value.status == 900
    with pytest.raises(RuntimeError, match="has invalidated the capture"):
        stream.is_capturing()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        stream.end_capture()
    assert x.get().tolist() == [1, 1]


def test_page_locked_copies_are_captured(cp: Any) -> None:
    run, stream = cp.cuda.runtime, cp.cuda.Stream(non_blocking=True)
    x, pinned = cp.ones(2, np.float32), cp.cuda.alloc_pinned_memory(8)
    stream.begin_capture()
    run.memcpyAsync(pinned.ptr, x.data.ptr, 8, run.memcpyDeviceToHost, stream.ptr)
    graph = stream.end_capture()
    x.fill(9)
    graph.launch(stream)
    assert np.frombuffer(pinned, np.float32).tolist() == [9, 9]


def test_the_legacy_stream_during_a_capture(cp: Any) -> None:
    x, event = cp.ones(2, np.float32), cp.cuda.Event()
    uses = (lambda: x.fill(2), event.record, lambda: cp.cuda.runtime.streamIsCapturing(0))
    for use in uses:
        stream = cp.cuda.Stream()  # blocking
        stream.begin_capture()
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
            use()
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
            stream.end_capture()
    free = cp.cuda.Stream(non_blocking=True)
    free.begin_capture()
    for use in uses:
        use()
    free.end_capture()
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cp.cuda.Stream.null.begin_capture()


def test_a_fork_must_be_joined(cp: Any) -> None:
    one, two = (cp.cuda.Stream(non_blocking=True) for _ in range(2))
    x, scale = cp.ones(2, np.float32), kernel(cp, "scale")

    def fork() -> None:
        one.begin_capture()
        two.wait_event(one.record())
        scale((1,), (1,), (x, N, TWO), stream=two)
        assert two.is_capturing()

    fork()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Unjoined"):
        one.end_capture()
    fork()
    event = two.record()
    one.wait_event(event)
    one.end_capture().launch()
    assert x.get().tolist() == [2, 2]
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorCapturedEvent"):
        event.synchronize()


def test_captures_and_outside_work_do_not_mix(cp: Any) -> None:
    one, two = (cp.cuda.Stream(non_blocking=True) for _ in range(2))
    outside = two.record()
    one.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="StreamCaptureIsolation"):
        one.wait_event(outside)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
        one.end_capture()
    one.begin_capture()
    two.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="StreamCaptureMerge"):
        two.wait_event(one.record())


def test_memory_freed_before_a_replay_is_missed(cp: Any) -> None:
    from tests.gpu.engine import KernelFault

    stream, x = cp.cuda.Stream(non_blocking=True), cp.ones(2, np.float32)
    scale = kernel(cp, "scale")
    stream.begin_capture()
    scale((1,), (1,), (x, N, TWO), stream=stream)
    graph = stream.end_capture()
    del x
    with pytest.raises(KernelFault, match="no memory of this device"):
        graph.launch(stream)
