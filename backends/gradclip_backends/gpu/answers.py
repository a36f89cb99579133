"""A decision that stays on the device until it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gradclip_backends.gpu.layout import FAULTS, state_offset
from gradclip_backends.gpu.memory import Lease, Workspace
from gradclip_backends.gpu.records import Contents, read_record, read_state
from gradclip_core.device import Case, Reading
from gradclip_core.errors import BackendError
from gradclip_core.protocol import Actions


class GpuAnswer:
    """See ``Answer``. It holds a record of the workspace, and gives it back when it is dropped."""

    def __init__(self, workspace: Workspace, lease: Lease, segments: int, case: Case) -> None:
        self.workspace = workspace
        self.lease = lease
        self.segments = segments
        self.case = case
        self.weights: GpuAnswer | None = None
        self.previous: GpuAnswer | None = None
        self._reading: Reading | None = None

    def address_of(self, field: str) -> int:
        """Where a field of the record's state is on the device."""
        return self.lease.address + state_offset(field)

    @contextmanager
    def used_on(self, workspace: Workspace) -> Iterator[None]:
        """Let another queue's work see this answer, and the record's next use wait for that work."""
        if workspace.queue.device != self.workspace.queue.device:
            seen = f"the plan was made on cuda:{self.workspace.queue.device}, the gradients are on"
            raise BackendError("plan.apply", f"{seen} cuda:{workspace.queue.device}", "Plan on the gradients' device")
        elsewhere = workspace.queue != self.workspace.queue
        if elsewhere:
            workspace.driver.order(self.workspace.queue, workspace.queue)
        yield
        if elsewhere:
            workspace.driver.order(workspace.queue, self.workspace.queue)

    def poisoned(self) -> bool:
        """See ``Answer.poisoned``."""
        if not self.segments:
            return False
        self._refuse_capture()
        with self.workspace.lock:
            state = read_state(self.workspace, self.lease.address)
        return bool(state["nonfinite"][0] or state["error"][0])

    def read(self) -> Reading:
        """See ``Answer.read``."""
        if self._reading is None:
            self._reading = self._read()
        return self._reading

    def _read(self) -> Reading:
        contents = self._contents()
        state = contents.state[0]
        fault = FAULTS[int(state["error"])]
        inverse = float(state["inverse"]) if self.segments else self.case.inverse
        return Reading(
            found=contents.measurements(),
            exponents=contents.column("exponents").copy(),
            units=contents.column("units").copy(),
            carried=bool(state["carry"]),
            inverse=inverse,
            actions=self._actions(contents),
            skipped=bool(state["skip"]),
            weights=self.weights.read() if self.weights is not None else None,
            fault=fault,
        )

    def _contents(self) -> Contents:
        if not self.segments:
            return Contents.empty(0)
        self._refuse_capture()
        with self.workspace.lock:
            return read_record(self.workspace, self.lease.address, self.segments)

    def _actions(self, contents: Contents) -> Actions:
        sanitize = self.case.nonfinite == "sanitize" and not contents.state["skip"][0]
        return contents.actions(sanitize=bool(sanitize))

    def _refuse_capture(self) -> None:
        if self.workspace.driver.capturing(self.workspace.queue):
            raise BackendError(
                "a result on the device",
                "its stream is being captured into a CUDA graph, and nothing has run that could be waited for",
                "Inside a capture pass another nonfinite than 'raise', and read info after a replay",
            )
