"""Records: made on the device, read by the host, and for the host's own decisions written by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.gpu.driver import Bytes
from gradclip_backends.gpu.layout import COLUMNS, STATE, column_offset, record_bytes
from gradclip_backends.gpu.memory import Workspace
from gradclip_core.protocol import Actions, Measurements

_ACTIONS = ("op", "factor", "coarse", "fine", "low", "high")


class Contents:
    """A record's bytes in host memory."""

    def __init__(self, data: Bytes, segments: int) -> None:
        self.data = data
        self.segments = segments

    @classmethod
    def empty(cls, segments: int) -> Contents:
        """All zeros."""
        return cls(np.zeros(record_bytes(segments), np.uint8), segments)

    @property
    def state(self) -> npt.NDArray[Any]:
        """The fields in front of the arrays, as an array of one."""
        return self.data[: STATE.itemsize].view(STATE)

    def column(self, name: str) -> npt.NDArray[Any]:
        """One of the arrays, an entry a segment."""
        kind = np.dtype(dict(COLUMNS)[name])
        offset = column_offset(name, self.segments)
        return self.data[offset : offset + self.segments * kind.itemsize].view(kind)

    def measurements(self) -> Measurements:
        """What the read passes left."""
        fields = ("sums", "largest", "infs", "nans", "outside", "carries")
        return Measurements(*(self.column(name).copy() for name in fields))

    def actions(self, *, sanitize: bool) -> Actions:
        """What the decision left."""
        op, factor, coarse, fine, low, high = (self.column(name).copy() for name in _ACTIONS)
        return Actions(op, factor, coarse, fine, low, high, sanitize)

    def fill(self, actions: Actions) -> None:
        """Write a decision that the host made."""
        for name in _ACTIONS:
            self.column(name)[:] = getattr(actions, name)
        self.state["acts"] = bool((actions.op != 0).any())


def read_record(workspace: Workspace, address: int, segments: int) -> Contents:
    """All of it. Waits for the device."""
    return Contents(workspace.driver.read(workspace.queue, address, record_bytes(segments)), segments)


def read_state(workspace: Workspace, address: int) -> npt.NDArray[Any]:
    """The state alone. Waits for the device."""
    return workspace.driver.read(workspace.queue, address, STATE.itemsize).view(STATE)


def write_record(workspace: Workspace, address: int, contents: Contents) -> None:
    """Put a record's bytes on the device."""
    workspace.driver.upload(workspace.queue, address, contents.data)
