"""``cupy.cuda``'s handles: devices, streams, events and graphs."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from tests.gpu.standin import runtime
from tests.gpu.standin.errors import CUDARuntimeError
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import machine
from tests.gpu.standin.work import Op


class Device:
    """A device by its number, current inside of ``with``."""

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = runtime.getDevice() if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        self._before.append(runtime.getDevice())
        runtime.setDevice(self.id)
        return self

    def __exit__(self, *args: object) -> None:
        runtime.setDevice(self._before.pop())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        runtime.setDevice(self.id)

    def synchronize(self) -> None:
        with self:
            runtime.deviceSynchronize()

    @property
    def attributes(self) -> dict[str, int]:
        machine().check_device(self.id)
        return runtime.attributes(machine())

    @property
    def compute_capability(self) -> str:
        machine().check_device(self.id)
        return machine().faults.compute_capability


class Event:
    """A point in a stream's work."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.ptr = runtime.eventCreateWithFlags(0)

    @property
    def done(self) -> bool:
        return runtime.eventQuery(self.ptr) == 0

    def record(self, stream: Any = None) -> None:
        runtime.eventRecord(self.ptr, (get_current_stream() if stream is None else stream).ptr)

    def synchronize(self) -> None:
        runtime.eventSynchronize(self.ptr)


class Graph:
    """What a capture recorded. Kernels and addresses are baked in; memory is not kept from being freed."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("currently this class cannot be initiated by the user; use stream capture")

    _ops: list[Op]
    _buffers: list[Any]

    def launch(self, stream: Any = None) -> None:
        """Run it again, on a stream."""
        queue = machine().queue((get_current_stream() if stream is None else stream).ptr)
        if queue.capture is not None:
            raise NotImplementedError("the stand-in captures no graph inside of a graph")

        def run() -> None:
            for op in self._ops:
                if op.run is not None:
                    op.run()

        machine().ask(queue, Entry("replay"), run)

    def upload(self, stream: Any = None) -> None:
        """Nothing to prepare."""


class _BaseStream:
    ptr: int
    device_id: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"

    def __enter__(self) -> _BaseStream:
        stacks = _stacks()
        stacks.setdefault(machine().device, []).append(self)
        self._entered = [*getattr(self, "_entered", []), machine().device]
        return self

    def __exit__(self, *args: object) -> None:
        _stacks()[self._entered.pop()].pop()

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def use(self) -> _BaseStream:
        _stacks()[machine().device] = [self]
        return self

    @property
    def done(self) -> bool:
        return runtime.streamQuery(self.ptr) == 0

    @property
    def is_non_blocking(self) -> bool:
        return not machine().queue(self.ptr).blocking

    def synchronize(self) -> None:
        runtime.streamSynchronize(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        runtime.eventRecord(event.ptr, self.ptr)
        return event

    def wait_event(self, event: Event) -> None:
        runtime.streamWaitEvent(self.ptr, event.ptr)

    def begin_capture(self, mode: int | None = None) -> None:
        """Stricter than CuPy, whose default is the relaxed mode: ``None`` is the global mode of PyTorch here."""
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        runtime.streamBeginCapture(self.ptr, runtime.streamCaptureModeGlobal if mode is None else mode)

    def end_capture(self) -> Graph:
        graph = Graph.__new__(Graph)
        graph._ops = machine().work.end(machine().queue(self.ptr))
        # A replay after the memory was freed must go wrong, and must not take the test's process with it.
        graph._buffers = machine().memory.owners()
        return graph

    def is_capturing(self) -> bool:
        return runtime.streamIsCapturing(self.ptr)


class Stream(_BaseStream):
    """A stream of the current device."""

    null: ClassVar[Stream]
    ptds: ClassVar[Stream]

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.device_id = -1
        if null or ptds:
            self.ptr = runtime.streamPerThread if ptds else 0
            return
        self.device_id = runtime.getDevice()
        self.ptr = runtime.streamCreateWithFlags(int(non_blocking))

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        """A stream of another library, by its ``__cuda_stream__``."""
        made = cls.__new__(cls)
        made.ptr, made.device_id = int(obj.__cuda_stream__()[1]), -1
        return made


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


class ExternalStream(_BaseStream):
    """A stream of another library, by its handle."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        warnings.warn(
            "ExternalStream is deprecated. Use Stream.from_external() instead to interoperate with external "
            "streams that implement the CUDA stream protocol.",
            DeprecationWarning,
            stacklevel=2,
        )
        self.ptr, self.device_id = ptr, device_id


def _stacks() -> dict[int, list[_BaseStream]]:
    """The current streams of this thread, by device."""
    local = machine().thread
    if not hasattr(local, "streams"):
        local.streams = {}
    stacks: dict[int, list[_BaseStream]] = local.streams
    return stacks


def get_current_stream(device_id: int = -1) -> Any:
    """This thread's current stream of a device."""
    machine().check_driver()
    stack = _stacks().get(machine().device if device_id < 0 else device_id)
    return stack[-1] if stack else Stream.null


def get_device_id() -> int:
    return runtime.getDevice()


def is_available() -> bool:
    try:
        return runtime.getDeviceCount() > 0
    except CUDARuntimeError:
        return False
