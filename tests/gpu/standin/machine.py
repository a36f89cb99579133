"""The simulated machine: devices, their memory and streams, the log, and the faults that a test asks for."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.gpu.engine import Dim3, Engine, Program
from tests.gpu.standin.errors import CUDADriverError, CUDARuntimeError, OutOfMemoryError
from tests.gpu.standin.log import Entry, Log
from tests.gpu.standin.memory import HOST, Block, Memory, as_bytes
from tests.gpu.standin.work import LEGACY, PER_THREAD, EventState, Op, Queue, Work


@dataclass
class Faults:
    """What is wrong with the machine; a test sets it at any time."""

    no_driver: bool = False
    no_device: bool = False
    driver_version: int = 13000
    runtime_version: int = 13000
    compute_capability: str = "90"
    multiprocessors: int = 4
    out_of_memory_at: int | None = None
    """The allocation that fails, counted from 1 and from when this is set; every later one fails too."""
    compile_log: str | None = None
    """No source compiles; this is what the compiler says."""


class Machine:
    """Everything that ``install`` makes."""

    def __init__(self, engine: Engine, devices: int, asynchronous: bool) -> None:
        self.engine = engine
        self.devices = devices
        self.log = Log()
        self.faults = Faults()
        self.memory = Memory()
        self.work = Work(asynchronous)
        self.events: dict[int, EventState] = {}
        self.programs: dict[tuple[str, tuple[str, ...]], Program] = {}
        self.loaded: set[tuple[int, int]] = set()
        """(program, device): where a module has been loaded."""
        self.lock = threading.RLock()
        self.thread = threading.local()
        self._dying: deque[Block] = deque()
        self._next = 0x5000_0010
        for device in range(devices):
            self.work.queues += [Queue(LEGACY, device), Queue(PER_THREAD, device)]

    # ---------------------------------------------------------------- devices and handles

    @property
    def device(self) -> int:
        """This thread's current device."""
        return int(getattr(self.thread, "device", 0))

    def check_device(self, device: int) -> int:
        """The number of devices is what CUDA says first."""
        self.check_driver()
        if not 0 <= device < self.devices:
            raise CUDARuntimeError(101)
        return device

    def check_driver(self) -> None:
        """Raise as every call does where CUDA cannot start."""
        if self.faults.no_driver:
            raise CUDARuntimeError(35)
        if self.faults.no_device:
            raise CUDARuntimeError(100)

    def _handle(self) -> int:
        self._next += 16
        return self._next

    def new_queue(self, blocking: bool) -> Queue:
        """A stream on the current device."""
        self.check_driver()
        queue = Queue(self._handle(), self.device, blocking)
        self.work.queues.append(queue)
        return queue

    def queue(self, handle: int, *, here: bool = False) -> Queue:
        """A stream by its handle; ``here`` demands that it is the current device's."""
        self.check_driver()
        for queue in self.work.queues:
            if queue.handle == (handle or LEGACY) and (handle > PER_THREAD or queue.device == self.device):
                if here and queue.device != self.device:
                    break
                return queue
        raise CUDARuntimeError(400)

    def new_event(self) -> EventState:
        """An event on the current device."""
        self.check_driver()
        event = EventState(self._handle(), self.device)
        self.events[event.handle] = event
        return event

    def event(self, handle: int) -> EventState:
        """An event by its handle."""
        self.check_driver()
        if handle not in self.events:
            raise CUDARuntimeError(400)
        return self.events[handle]

    # ---------------------------------------------------------------- memory

    def allocate(self, size: int, stream: int, keeper: Any, device: int | None = None) -> Block:
        """Memory on the current device, or page-locked on the host, for as long as ``keeper`` lives."""
        device = self.device if device is None else device
        self.check_driver()
        with self.lock:
            self.reap()
            self.work.refuse_capture()
            if self.faults.out_of_memory_at is not None:
                self.faults.out_of_memory_at -= 1
                if self.faults.out_of_memory_at <= 0:
                    raise OutOfMemoryError(size, self.memory.used(device))
            self.log.add(Entry("alloc", device, stream, size))
            block = self.memory.allocate(size, device, stream)
        # Garbage is collected at any moment, even inside of this class: only note it here.
        weakref.finalize(keeper, self._dying.append, block).atexit = False
        return block

    def adopt(self, address: int, size: int, device: int, owner: Any) -> Block:
        """Let memory that somebody else allocated be a device's."""
        block = Block(address, size, device, owner, 0, guarded=False)
        self.memory.adopt(block)
        return block

    def disown(self, block: Block) -> None:
        """End ``adopt``."""
        self.memory.disown(block)

    def reap(self) -> None:
        """Take back what the host has let go of: in the order of the stream that it was allocated on."""
        while self._dying:
            block = self._dying.popleft()
            queue = None if block.device == HOST else self._queue_of(block)
            if queue is None or queue.tail is None or queue.tail.done or queue.capture is not None:
                self.memory.retire(block)
            else:
                self.work.add(queue, lambda block=block: self.memory.retire(block))  # type: ignore[misc]
        self.memory.bury(self.work.pending)

    def _queue_of(self, block: Block) -> Queue | None:
        handle = block.stream or LEGACY
        return next((q for q in self.work.queues if q.handle == handle and q.device == block.device), None)

    def inside(self, address: int, size: int) -> Block:
        """The device memory that holds these bytes, or CUDA's error."""
        block = self.memory.find(address, size)
        if block is None or block.device == HOST:
            raise CUDARuntimeError(1)
        return block

    # ---------------------------------------------------------------- work

    def ask(self, queue: Queue, entry: Entry, run: Callable[[], None] | None) -> Op:
        """Log it, and put it behind what the stream has been asked."""
        with self.lock:
            self.reap()
            self.work.refuse_legacy(queue)
            entry.device, entry.stream, entry.captured = queue.device, queue.handle, queue.capture is not None
            self.log.add(entry)

            def running() -> None:
                entry.ran += 1
                if run is not None:
                    run()

            return self.work.add(queue, running)

    def synchronise(self, op: Op | None, queue: Queue | None, why: str) -> None:
        """Block the host until work has run; without an op, until all work of a stream or the device has."""
        with self.lock:
            self.reap()
            self.work.refuse_capture(queue)
            handle, device = (queue.handle, queue.device) if queue is not None else (0, self.device)
            self.log.add(Entry("sync", device, handle, why=why))
            if op is not None:
                self.work.finish(op)
            elif queue is None:
                self.work.finish_device(device)
            elif queue.is_legacy:  # an empty piece of work waits for what the legacy stream waits for
                self.work.finish(self.work.add(queue, None))
            else:
                self.work.finish(queue.tail)

    def fill(self, queue: Queue, address: int, value: int, size: int) -> None:
        """A memset."""
        if size:
            if self.inside(address, size).device != queue.device:
                raise CUDARuntimeError(1)
            self.ask(queue, Entry("memset", nbytes=size), lambda: as_bytes(address, size).fill(value & 0xFF))

    def launch(
        self, queue: Queue, program: Program, kernel: str, grid: Dim3, block: Dim3, args: Sequence[bytes]
    ) -> None:
        """Run a kernel when its time comes, with the arguments of now and the memory of then."""
        entry = Entry("launch", kernel=kernel, grid=grid, block=block, args=tuple(args))

        def run() -> None:
            entry.traffic = program.launch(kernel, grid, block, entry.args, self.memory.regions(queue.device))
            self.memory.check(None, kernel)

        if queue.device != self.device:
            raise CUDADriverError(400)
        self.ask(queue, entry, run)


_installed: list[Machine] = []


def machine() -> Machine:
    """The machine behind the stand-in that is installed now."""
    if not _installed:
        raise RuntimeError("the stand-in for CuPy is used after it was taken out")
    return _installed[-1]


def plug_in(new: Machine) -> None:
    """From now on ``machine()`` is this one."""
    _installed.append(new)


def unplug(old: Machine) -> None:
    """End ``plug_in``."""
    _installed.remove(old)
