"""The backend: the protocol's passes and decisions as launches of a driver's kernels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from gradclip_backends.gpu.answers import GpuAnswer
from gradclip_backends.gpu.check_memory import DriverMemory
from gradclip_backends.gpu.driver import Driver, Queue
from gradclip_backends.gpu.held import Held
from gradclip_backends.gpu.memory import Workspace, Workspaces
from gradclip_backends.gpu.passes import Passes, has_float64, kernels_for, scale_of
from gradclip_backends.gpu.records import Contents, read_record, write_record
from gradclip_backends.gpu.rules import rule_of
from gradclip_backends.gpu.strides import gather, scatter
from gradclip_backends.gpu.tables import put_rows, queue_of
from gradclip_core.device import Answer, Case, Strided, Weights
from gradclip_core.errors import UnsafeMemoryError
from gradclip_core.protocol import (
    BASE_DTYPES,
    FLOAT64,
    Actions,
    Buffer,
    DType,
    Measurements,
    Request,
    What,
    segments,
)

_NO_SCALE = scale_of(1.0, None)


class GpuBackend:
    """Serves the memory of CUDA devices, one device a call, on the stream of the memory's producer."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.name = name
        self.driver = driver
        self.workspaces = Workspaces(driver)
        self.held = Held(driver)
        self._process: int | None = None
        """The process that has used CUDA."""

    # ---- whom it serves ------------------------------------------------------------------------

    def not_supported_reasons(self, request: Request) -> list[str]:
        """See ``Backend.not_supported_reasons``."""
        if foreign := sorted(device for device in request.devices if device.partition(":")[0] != "cuda"):
            return [f"it reads the memory of CUDA devices, and these arrays are on {', '.join(foreign)}"]
        if len(request.devices) > 1:
            return [f"a call works on one device, and these arrays are on {', '.join(sorted(request.devices))}"]
        reasons = []
        if unknown := sorted(request.dtypes - set(BASE_DTYPES)):
            reasons.append(f"it has no {', '.join(unknown)}")
        if self._process not in (None, os.getpid()):
            return [
                *reasons,
                "CUDA does not survive a fork, and this process was forked from one that uses it: spawn it",
            ]
        if missing := self.driver.unavailable():
            return reasons + missing
        for device in request.devices:
            index = int(device.partition(":")[2] or 0)
            if index >= self.driver.devices():
                reasons.append(f"there is no {device}: {self.driver.devices()} devices are visible")
        return reasons

    # ---- the protocol's passes -----------------------------------------------------------------

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """See ``Backend.measure``. Waits for the device."""
        if not segments(buffers):
            return Measurements.empty(0)
        with self._call(buffers, buffers) as workspace:
            float64 = has_float64(buffers)
            self._prepare(workspace, kernels_for(what.power, float64), len(buffers))
            lease = workspace.record(segments(buffers))
            rows = put_rows(workspace, buffers, buffers, "rows")
            passes = Passes(workspace, rows, lease.address, _NO_SCALE, sanitize=what.sanitize)
            if what.bounds is not None:
                contents = Contents.empty(rows.segments)
                contents.column("low")[:], contents.column("high")[:] = what.bounds
                write_record(workspace, lease.address, contents)
            passes.measure(what.power, own_bounds=what.bounds is not None)
            again = what.power not in (1, 2) or what.exponents is not None or (what.carry and float64)
            if again:
                # The first pass has chosen exponents and units of its own: these are the caller's.
                contents = read_record(workspace, lease.address, rows.segments)
                contents.column("exponents")[:] = 0 if what.exponents is None else what.exponents
                contents.column("units")[:] = 1.0 if what.units is None else what.units
                write_record(workspace, lease.address, contents)
            if what.power not in (1, 2):
                passes.powers(what.power)
            elif what.exponents is not None and float64:
                passes.rescale(what.power, gate=0)
            if what.carry and float64:
                passes.carries(what.power, gate=0)
            return read_record(workspace, lease.address, rows.segments).measurements()

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """See ``Backend.apply``."""
        if not segments(buffers):
            return
        with self._call(buffers, out) as workspace:
            self._prepare(workspace, ["apply"], len(buffers))
            lease = workspace.record(segments(buffers))
            contents = Contents.empty(segments(buffers))
            contents.fill(actions)
            write_record(workspace, lease.address, contents)
            self._apply(workspace, buffers, out, lease.address, sanitize=actions.sanitize)

    # ---- decisions on the device ---------------------------------------------------------------

    def prepare(self, device: str, dtypes: Sequence[DType], rules: Sequence[tuple[float, bool]]) -> None:
        """See ``DeviceBackend.prepare``."""
        suffix = "inline" if len(dtypes) <= self.driver.inline_rows else "table"
        names = {name for ord, value in rules for name in kernels_for(ord, FLOAT64 in dtypes, value=value)}
        self.driver.prepare(int(device.partition(":")[2] or 0), [f"{name}_{suffix}" for name in sorted(names)])

    def decide(self, buffers: Sequence[Buffer], case: Case, after: Answer | None = None) -> GpuAnswer:
        """See ``DeviceBackend.decide``."""
        weights = case.weights
        others = [*([case.loss_scale] if case.loss_scale else []), *(weights.buffers if weights else [])]
        with self._call(buffers, others) as workspace:
            lease = workspace.record(segments(buffers))
            answer = GpuAnswer(workspace, lease, segments(buffers), case)
            if not segments(buffers):
                return answer
            value = case.bounds is not None
            float64 = has_float64(buffers)
            names = kernels_for(case.ord, float64, value=value)
            self._prepare(workspace, names, len(buffers))
            if weights is not None:
                self._prepare(workspace, kernels_for(2.0, has_float64(weights.buffers)), len(buffers))
                answer.weights = self._measure_weights(workspace, weights)
            scale = scale_of(case.inverse, case.loss_scale)
            rows = put_rows(workspace, buffers, buffers, "rows")
            passes = Passes(workspace, rows, lease.address, scale, sanitize=case.nonfinite == "sanitize")
            bounds = dict(case.bounds) if case.bounds is not None and not case.symmetric else None
            passes.measure(case.ord, bounds=bounds)
            rule = rule_of(
                workspace,
                case,
                list(buffers),
                lease.address,
                scale,
                previous=after.lease.address if isinstance(after, GpuAnswer) else 0,
                weights=answer.weights.lease.address if answer.weights is not None else 0,
            )
            if isinstance(after, GpuAnswer):
                answer.previous = after
            if case.ord not in (1, 2, math.inf):
                passes.powers(case.ord)
                passes.decide("decide_general", rule)
                return answer
            if float64 and case.ord != math.inf:
                passes.rescale(case.ord)
                if not value:
                    passes.decide("ask_for_carries", rule)
                    passes.carries(case.ord)
            passes.decide("decide_value" if value else "decide_norms", rule)
            return answer

    def act(self, buffers: Sequence[Buffer], out: Sequence[Buffer], answer: Answer) -> None:
        """See ``DeviceBackend.act``."""
        assert isinstance(answer, GpuAnswer)
        if not segments(buffers):
            return
        with self._call(buffers, out) as workspace:
            self._prepare(workspace, ["apply"], len(buffers))
            sanitize = answer.case.nonfinite == "sanitize"
            with answer.used_on(workspace):
                self._apply(workspace, buffers, out, answer.lease.address, sanitize=sanitize)

    def measure_clipped(self, buffers: Sequence[Buffer], ord: float, answer: Answer) -> GpuAnswer:
        """See ``DeviceBackend.measure_clipped``."""
        assert isinstance(answer, GpuAnswer)
        with self._call(buffers, buffers) as workspace:
            lease = workspace.record(segments(buffers))
            after = GpuAnswer(workspace, lease, segments(buffers), Case(ord, "propagate", 1.0))
            if not segments(buffers):
                return after
            self._prepare(workspace, kernels_for(ord, has_float64(buffers), value=True), len(buffers))
            rows = put_rows(workspace, buffers, buffers, "rows")
            passes = Passes(workspace, rows, lease.address, _NO_SCALE, sanitize=False)
            passes.measure(ord, gate=answer.address_of("clipped"))
            if has_float64(buffers):
                passes.rescale(ord)
            return after

    def pack(self, strided: Strided) -> Buffer:
        """See ``DeviceBackend.pack``."""
        with self._call([strided.like], [strided.like]) as workspace:
            self.driver.prepare(workspace.queue.device, ["gather"])
            return gather(workspace, strided)

    def unpack(self, packed: Buffer, strided: Strided, answer: Answer | None, first: int) -> None:
        """See ``DeviceBackend.unpack``."""
        assert answer is None or isinstance(answer, GpuAnswer)
        with self._call([packed], [strided.like]) as workspace:
            self.driver.prepare(workspace.queue.device, ["scatter"])
            with answer.used_on(workspace) if answer is not None else nullcontext():
                scatter(workspace, packed, strided, answer, first)

    def memory_for_checks(self, device: int = 0) -> DriverMemory:
        """A device's memory, for ``gradclip_core.testing.checks(backend, memory=...)``."""
        return DriverMemory(self.driver, device)

    # ---- what they share -----------------------------------------------------------------------

    @contextmanager
    def _call(self, buffers: Sequence[Buffer], others: Sequence[Buffer]) -> Iterator[Workspace]:
        """The workspace of the buffers' queue, locked; other producers' streams are ordered around it."""
        queue = queue_of(buffers) if buffers else Queue(0, 1)
        streams = {buffer.stream or 1 for buffer in (*buffers, *others)} - {queue.stream}
        foreign = [Queue(queue.device, stream) for stream in sorted(streams)]
        self._process = os.getpid()
        self._refuse_freed(queue, [*buffers, *others])
        workspace = self.workspaces.on(queue)
        with workspace.lock:
            for other in foreign:
                self.driver.order(other, queue)
            try:
                yield workspace
            finally:
                for other in foreign:
                    self.driver.order(queue, other)
                self.held.until_done(queue, [*buffers, *others])

    def _refuse_freed(self, queue: Queue, buffers: Sequence[Buffer]) -> None:
        """A kernel that touches memory that is not there ends CUDA for the whole process."""
        for buffer in buffers:
            if buffer.lent and buffer.pointer and self.driver.device_of(buffer.pointer) != queue.device:
                seen = f"its address, {buffer.pointer:#x}, is not in the memory of cuda:{queue.device}: it was freed"
                raise UnsafeMemoryError("an array that came in by DLPack", seen, "Pass an array that is still alive")

    def _prepare(self, workspace: Workspace, names: Sequence[str], buffers: int) -> None:
        """Compile before the first launch: what fails to compile must not leave half of a call behind."""
        suffix = "inline" if buffers <= self.driver.inline_rows else "table"
        self.driver.prepare(workspace.queue.device, [f"{name}_{suffix}" for name in names])

    def _measure_weights(self, workspace: Workspace, weights: Weights) -> GpuAnswer:
        """What the limits come of: the weights' sums stay on the device too."""
        buffers = weights.buffers
        lease = workspace.record(segments(buffers))
        rows = put_rows(workspace, buffers, buffers, "weights")
        passes = Passes(workspace, rows, lease.address, _NO_SCALE, sanitize=False)
        passes.measure(2.0)
        if has_float64(buffers):
            passes.rescale(2.0)
        return GpuAnswer(workspace, lease, rows.segments, Case(2.0, "propagate", 1.0))

    def _apply(
        self,
        workspace: Workspace,
        buffers: Sequence[Buffer],
        out: Sequence[Buffer],
        record: int,
        *,
        sanitize: bool,
    ) -> None:
        in_place = all(a.pointer == b.pointer for a, b in zip(buffers, out, strict=True))
        # In place the decision's table serves again; another one would take its place in memory, call by call.
        rows = put_rows(workspace, buffers, out, "rows" if in_place else "moved")
        Passes(workspace, rows, record, _NO_SCALE, sanitize=sanitize).apply(in_place=in_place)
