"""What a training run is summed up in. Steps that were skipped are counted, and their norms are not let in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.info import ClipInfo

_WAITING = 256
"""Infos of a device that nobody has read yet are kept, so that a step does not wait; the oldest are read then."""


@dataclass(slots=True)
class Statistics:
    """Of the steps of one Clipper. ``mean_norm`` and ``largest_norm`` are of the finite norms before clipping."""

    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    nonfinite: int = 0
    """Elements."""
    finite: int = 0
    """Steps with a finite norm, which the mean is of."""
    mean_norm: float = 0.0
    largest_norm: float = 0.0

    def add(self, info: ClipInfo) -> None:
        """One step more."""
        self.steps += 1
        self.clipped += info.clipped
        skipped = info.peek_skipped()
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.nonfinite += info.nonfinite
        if not skipped and math.isfinite(info.norm):
            self.finite += 1
            self.mean_norm += (info.norm - self.mean_norm) / self.finite
            self.largest_norm = max(self.largest_norm, info.norm)


def checked_statistics(state: object) -> Statistics:
    """From what ``Record.state`` returned; anything else is refused."""
    names = {field.name for field in fields(Statistics)}
    if (
        not isinstance(state, Mapping)
        or set(state) != names
        or not all(isinstance(v, (int, float)) for v in state.values())
    ):
        raise InvalidArgumentError(
            f"load_state_dict, statistics={show(state)}",
            "it is not a number for each of the statistics",
            "Pass what state_dict() returned, unchanged",
        )
    return Statistics(**state)


class Record:
    """Statistics that do not wait for a device."""

    def __init__(self) -> None:
        self._sums = Statistics()
        self._waiting: deque[ClipInfo] = deque()

    def add(self, info: ClipInfo) -> None:
        """A step; read now where that waits for nobody."""
        self._waiting.append(info)
        if info.known or len(self._waiting) > _WAITING:
            self._read(0 if info.known else _WAITING)

    def read(self) -> Statistics:
        """All of them."""
        self._read(0)
        return self._sums

    def _read(self, left: int) -> None:
        while len(self._waiting) > left:
            self._sums.add(self._waiting.popleft())

    def state(self) -> dict[str, float]:
        """As numbers."""
        return asdict(self.read())

    def load(self, sums: Statistics) -> None:
        """Go on from these."""
        self._sums = sums
        self._waiting.clear()
