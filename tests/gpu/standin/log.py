"""What the host asked of the GPU, in order: the ground for tests that count launches, copies and synchronisations."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.gpu.engine import Dim3, Traffic

COUNTED = ("launch", "alloc", "sync", "h2d", "d2h", "memset")


@dataclass
class Entry:
    """One request. What does not apply is left at its default."""

    kind: str
    """One of ``COUNTED``, or ``d2d``, ``load``, ``record``, ``wait``, ``query``, ``capture``, ``replay``."""
    device: int = 0
    stream: int = 0
    nbytes: int = 0
    why: str = ""
    """Which call it was, for synchronisations."""
    kernel: str = ""
    grid: Dim3 = (0, 0, 0)
    block: Dim3 = (0, 0, 0)
    args: tuple[bytes, ...] = ()
    traffic: Traffic | None = None
    """What the engine saw; ``None`` until the work has run. After a replay, that of the last one."""
    captured: bool = False
    """Recorded into a graph instead of run."""
    ran: int = 0
    """How often the work has run by now."""


@dataclass
class Log:
    """The entries since the last ``clear``."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> Entry:
        """Append, and hand back for what is learned later."""
        self.entries.append(entry)
        return entry

    def counts(self) -> dict[str, int]:
        """How many of each kind that costs: all of them, zeros included, so that tests compare with ``==``."""
        return {kind: sum(entry.kind == kind for entry in self.entries) for kind in COUNTED}

    def of(self, *kinds: str) -> list[Entry]:
        """The entries of some kinds."""
        return [entry for entry in self.entries if entry.kind in kinds]

    def kernels(self) -> list[str]:
        """The launched kernels' names, in order."""
        return [entry.kernel for entry in self.of("launch")]

    def clear(self) -> None:
        """Forget everything so far."""
        self.entries.clear()
