"""``cupy.cuda.runtime``: thin calls that check as CUDA does and hand over to the machine."""

from __future__ import annotations

from dataclasses import dataclass

from tests.gpu.standin.errors import CUDARuntimeError
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import Machine, machine
from tests.gpu.standin.memory import HOST, as_bytes
from tests.gpu.standin.work import Queue

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)  # noqa: N816
memoryTypeUnregistered, memoryTypeHost, memoryTypeDevice, memoryTypeManaged = range(4)  # noqa: N816
streamDefault, streamNonBlocking = 0, 1  # noqa: N816
streamLegacy, streamPerThread = 1, 2  # noqa: N816
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4  # noqa: N816
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)  # noqa: N816
streamCaptureStatusNone, streamCaptureStatusActive, streamCaptureStatusInvalidated = range(3)  # noqa: N816
cudaDevAttrMaxThreadsPerBlock, cudaDevAttrMaxSharedMemoryPerBlock, cudaDevAttrWarpSize = 1, 8, 10  # noqa: N816
cudaDevAttrMultiProcessorCount, cudaDevAttrMaxThreadsPerMultiProcessor = 16, 39  # noqa: N816
cudaDevAttrL2CacheSize, cudaDevAttrMaxGridDimX, cudaDevAttrCooperativeLaunch = 38, 5, 95  # noqa: N816
is_hip = False

_INVALID_DEVICE = -2
_NOT_READY = 600


@dataclass(frozen=True)
class PointerAttributes:
    """What CUDA knows about an address."""

    device: int
    devicePointer: int  # noqa: N815
    hostPointer: int  # noqa: N815
    type: int


def attributes(simulated: Machine) -> dict[str, int]:
    """A device's attributes, under CuPy's names."""
    return {
        "MaxThreadsPerBlock": 1024,
        "MaxSharedMemoryPerBlock": 48 * 1024,
        "WarpSize": 32,
        "MultiProcessorCount": simulated.faults.multiprocessors,
        "MaxThreadsPerMultiProcessor": 2048,
        "L2CacheSize": 50 << 20,
        "MaxGridDimX": 2**31 - 1,
        "CooperativeLaunch": 1,
    }


def getDeviceCount() -> int:  # noqa: N802
    machine().check_driver()
    return machine().devices


def getDevice() -> int:  # noqa: N802
    machine().check_driver()
    return machine().device


def setDevice(device: int) -> None:  # noqa: N802
    machine().thread.device = machine().check_device(device)


def driverGetVersion() -> int:  # noqa: N802
    # CUDA's way of saying that there is no driver; it raises nothing here.
    return 0 if machine().faults.no_driver else machine().faults.driver_version


def runtimeGetVersion() -> int:  # noqa: N802
    return machine().faults.runtime_version


def deviceGetAttribute(attrib: int, device: int) -> int:  # noqa: N802
    known = attributes(machine())
    machine().check_device(device)
    for name, value in known.items():
        if globals()[f"cudaDevAttr{name}"] == attrib:
            return value
    raise CUDARuntimeError(1)


def deviceSynchronize() -> None:  # noqa: N802
    machine().check_driver()
    machine().synchronise(None, None, "deviceSynchronize")


def streamCreateWithFlags(flags: int) -> int:  # noqa: N802
    return machine().new_queue(blocking=not flags & streamNonBlocking).handle


def streamDestroy(stream: int) -> None:  # noqa: N802
    # Its handle stays good here: work that is queued on it outlives it on a GPU too.
    machine().queue(stream)


def streamSynchronize(stream: int) -> None:  # noqa: N802
    machine().synchronise(None, machine().queue(stream), "streamSynchronize")


def streamQuery(stream: int) -> int:  # noqa: N802
    queue = machine().queue(stream)
    machine().work.refuse_capture(queue)
    machine().log.add(Entry("query", queue.device, queue.handle))
    return 0 if machine().work.poll(queue, queue.tail) else _NOT_READY


def streamWaitEvent(stream: int, event: int, flags: int = 0) -> None:  # noqa: N802
    queue, state = machine().queue(stream), machine().event(event)
    with machine().lock:
        machine().reap()
        machine().work.wait(queue, state)
        machine().log.add(Entry("wait", queue.device, queue.handle))


def streamIsCapturing(stream: int) -> bool:  # noqa: N802
    queue = machine().queue(stream)
    machine().work.refuse_legacy(queue)
    if queue.capture is not None and queue.capture.invalid:
        raise RuntimeError("the stream was capturing, but an error has invalidated the capture sequence")
    return queue.capture is not None


def streamBeginCapture(stream: int, mode: int = streamCaptureModeRelaxed) -> None:  # noqa: N802
    queue = machine().queue(stream)
    if queue.is_legacy:
        raise CUDARuntimeError(900)
    machine().work.begin(queue, mode == streamCaptureModeRelaxed)
    machine().log.add(Entry("capture", queue.device, queue.handle))


def eventCreate() -> int:  # noqa: N802
    return machine().new_event().handle


def eventCreateWithFlags(flags: int) -> int:  # noqa: N802
    return machine().new_event().handle


def eventDestroy(event: int) -> None:  # noqa: N802
    machine().event(event)
    del machine().events[event]


def eventRecord(event: int, stream: int) -> None:  # noqa: N802
    queue, state = machine().queue(stream), machine().event(event)
    if state.device != queue.device:
        raise CUDARuntimeError(400)
    with machine().lock:
        machine().reap()
        machine().work.refuse_legacy(queue)
        machine().work.record(state, queue)
        machine().log.add(Entry("record", queue.device, queue.handle))


def eventQuery(event: int) -> int:  # noqa: N802
    state = machine().event(event)
    if state.capture is not None:
        raise CUDARuntimeError(907)
    machine().work.refuse_capture()
    machine().log.add(Entry("query", state.device))
    return 0 if machine().work.poll(state, state.op) else _NOT_READY


def eventSynchronize(event: int) -> None:  # noqa: N802
    state = machine().event(event)
    if state.capture is not None:
        raise CUDARuntimeError(907)
    if state.op is None:
        machine().work.refuse_capture()
        machine().log.add(Entry("sync", state.device, why="eventSynchronize"))
    else:
        machine().synchronise(state.op, None, "eventSynchronize")


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:  # noqa: N802
    machine().fill(machine().queue(stream, here=True), ptr, value, size)


def memset(ptr: int, value: int, size: int) -> None:
    machine().fill(machine().queue(0), ptr, value, size)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
    _copy(dst, src, size, kind, machine().queue(stream), "memcpyAsync")


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    machine().work.refuse_capture()
    queue = machine().queue(0)
    _copy(dst, src, size, kind, queue, "")
    machine().synchronise(None, queue, "memcpy")


def _copy(dst: int, src: int, size: int, kind: int, queue: Queue, why: str) -> None:
    if not size:
        return
    here = machine()
    target, source = here.memory.find(dst, size), here.memory.find(src, size)
    on_device = [block is not None and block.device != HOST for block in (source, target)]
    if kind == memcpyDefault:
        kind = {(False, True): 1, (True, False): 2, (True, True): 3}.get((on_device[0], on_device[1]), 0)
    if on_device != [kind in (2, 3), kind in (1, 3)]:
        raise CUDARuntimeError(1)
    pageable = kind != memcpyDeviceToDevice and (source is None or target is None)
    if pageable and queue.capture is not None:
        here.work.refuse_capture(queue)
    entry = Entry(("h2h", "h2d", "d2h", "d2d")[kind], nbytes=size)
    if pageable and kind == memcpyHostToDevice:
        # Pageable memory is staged before the call returns, and may be reused at once.
        data = as_bytes(src, size).copy()
        here.ask(queue, entry, lambda: as_bytes(dst, size).__setitem__(slice(None), data))
        return
    op = here.ask(queue, entry, lambda: as_bytes(dst, size).__setitem__(slice(None), as_bytes(src, size)))
    if pageable and kind == memcpyDeviceToHost and why:
        # "Asynchronous" copies into pageable memory return only when they are complete.
        here.synchronise(op, queue, f"{why} into pageable memory")


def pointerGetAttributes(ptr: int) -> PointerAttributes:  # noqa: N802
    machine().check_driver()
    block = machine().memory.find(ptr)
    if block is None:
        return PointerAttributes(_INVALID_DEVICE, 0, ptr, memoryTypeUnregistered)
    if block.device == HOST:
        return PointerAttributes(machine().device, ptr, ptr, memoryTypeHost)
    return PointerAttributes(block.device, ptr, 0, memoryTypeDevice)
