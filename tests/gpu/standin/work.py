"""The order in which a GPU may run what it was asked: streams, events and captures, without any memory or kernel.

Each piece of work knows what it needs to have run before. In the asynchronous mode nothing runs until somebody waits
for it, and then only that and what it needs: an ordering that the host forgot to ask for does not happen by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.gpu.standin.errors import CUDARuntimeError

LEGACY, PER_THREAD = 1, 2
"""The handles that CUDA reserves; 0 means the legacy default stream too."""


@dataclass(eq=False)
class Op:
    """A piece of work."""

    run: Callable[[], None] | None
    needs: list[Op]
    number: int
    done: bool = False


@dataclass(eq=False)
class Capture:
    """A stream capture in progress."""

    origin: Queue
    relaxed: bool
    ops: list[Op] = field(default_factory=list)
    queues: set[Queue] = field(default_factory=set)
    invalid: bool = False


@dataclass(eq=False)
class Queue:
    """A stream."""

    handle: int
    device: int
    blocking: bool = True
    """The legacy default stream waits for it, and it for the legacy default stream."""
    tail: Op | None = None
    capture: Capture | None = None
    mark: Op | None = None
    """The last piece of work in the capture."""
    polls: int = 0

    @property
    def is_legacy(self) -> bool:
        """It is its device's default stream."""
        return self.handle == LEGACY


@dataclass(eq=False)
class EventState:
    """An event: what had been asked of its stream when it was recorded last."""

    handle: int
    device: int
    op: Op | None = None
    capture: Capture | None = None
    polls: int = 0


class Work:
    """All streams of all devices."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.queues: list[Queue] = []
        self.captures: list[Capture] = []
        self.pending = 0
        self._number = 0

    def add(self, queue: Queue, run: Callable[[], None] | None, needs: Iterable[Op | None] = ()) -> Op:
        """Ask for work behind what the stream has been asked already."""
        self._number += 1
        if queue.capture is not None:
            op = Op(run, [n for n in (queue.mark, *needs) if n is not None], self._number)
            queue.capture.ops.append(op)
            queue.mark = op
            return op
        before = [queue.tail, *needs]
        if queue.blocking:
            before += [other.tail for other in self._implied(queue)]
        op = Op(run, [n for n in before if n is not None and not n.done], self._number)
        queue.tail, queue.polls = op, 0
        self.pending += 1
        if not self.asynchronous:
            self.finish(op)
        return op

    def _implied(self, queue: Queue) -> list[Queue]:
        return [
            other
            for other in self.queues
            if other is not queue and other.device == queue.device and other.blocking
            if queue.is_legacy or other.is_legacy
        ]

    def finish(self, op: Op | None) -> None:
        """Run this work, and what it needs before; nothing else."""
        stack = [op] if op is not None and not op.done else []
        while stack:
            top = stack[-1]
            missing = [need for need in top.needs if not need.done]
            if missing:
                stack += missing
                continue
            stack.pop()
            if not top.done:
                # Done even if it fails: a fault is reported once, not by every later wait.
                top.done, top.needs = True, []
                self.pending -= 1
                run, top.run = top.run, None
                if run is not None:
                    run()

    def finish_device(self, device: int) -> None:
        """Run all work of a device, the latest asked for first wherever nothing forbids it."""
        tails = [queue.tail for queue in self.queues if queue.device == device and queue.tail is not None]
        for op in sorted(tails, key=lambda op: -op.number):
            self.finish(op)

    def poll(self, thing: Queue | EventState, op: Op | None) -> bool:
        """Whether work has run. A second look finds it done, so that loops which poll come to an end."""
        if op is not None and not op.done and thing.polls:
            self.finish(op)
        thing.polls += 1
        return op is None or op.done

    # ---------------------------------------------------------------- captures

    def begin(self, queue: Queue, relaxed: bool) -> None:
        """Record what the stream is asked from now on."""
        if queue.capture is not None:
            raise CUDARuntimeError(1)
        capture = Capture(queue, relaxed, queues={queue})
        queue.capture, queue.mark = capture, None
        self.captures.append(capture)

    def end(self, queue: Queue) -> list[Op]:
        """What was recorded, in an order in which it may run."""
        capture = queue.capture
        if capture is None:
            raise CUDARuntimeError(1)
        if capture.origin is not queue:
            raise CUDARuntimeError(903)
        joined: set[int] = set()
        stack = [queue.mark]
        while stack:
            op = stack.pop()
            if op is not None and id(op) not in joined:
                joined.add(id(op))
                stack += op.needs
        self.captures.remove(capture)
        for each in capture.queues:
            each.capture = each.mark = None
        if capture.invalid:
            raise CUDARuntimeError(901)
        if any(id(op) not in joined for op in capture.ops):
            raise CUDARuntimeError(904)
        return capture.ops

    def refuse_capture(self, queue: Queue | None = None, status: int = 900) -> None:
        """Raise for what no capture survives: on this stream, or, without one, anywhere in the process.

        CUDA lets a capture in the relaxed mode pass the second kind; here that has to be asked for by name,
        although it is CuPy's default: ``torch.cuda.graph`` captures in the global mode.
        """
        if queue is not None and queue.capture is not None:
            hit = [queue.capture]
        else:
            hit = [capture for capture in self.captures if not capture.relaxed]
        self._invalidate(hit, status)

    def refuse_legacy(self, queue: Queue) -> None:
        """Raise where the legacy default stream would have to wait for a stream that is capturing."""
        if queue.is_legacy:
            hit = [other.capture for other in self._implied(queue) if other.capture is not None]
            self._invalidate(hit, 906)

    def _invalidate(self, captures: list[Capture], status: int) -> None:
        for capture in captures:
            capture.invalid = True
        if captures:
            raise CUDARuntimeError(status)

    # ---------------------------------------------------------------- events

    def record(self, event: EventState, queue: Queue) -> None:
        """Remember how far the stream has been asked."""
        event.op, event.capture, event.polls = self.add(queue, None), queue.capture, 0

    def wait(self, queue: Queue, event: EventState) -> None:
        """What the stream is asked from now on needs what the event has seen."""
        if event.capture is not None:
            if event.capture not in self.captures:
                raise CUDARuntimeError(907)
            if queue.capture is None:  # it is drawn into the capture
                queue.capture, queue.mark = event.capture, None
                event.capture.queues.add(queue)
            elif queue.capture is not event.capture:
                self._invalidate([queue.capture, event.capture], 902)
        elif queue.capture is not None and event.op is not None:
            self._invalidate([queue.capture], 905)
        self.add(queue, None, [event.op])
