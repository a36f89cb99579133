"""A bug is a text in a kernel's file and what stands there instead; an engine that compiles with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from tests.gpu.engine import Engine, Program

Lane = Literal["bits", "order", "asan", "tsan", "ptx", "compiled"]
_PARTS = re.compile(r'^#line \d+ "([a-z_]+\.cuh?)"\n', re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    """``unit`` is the .cu file that is built with it; the others stay as they are, and are built already."""

    name: str
    file: str
    unit: str
    old: str
    new: str
    lane: Lane
    scenarios: str
    """Those that the lane runs, separated by blanks."""
    says: str
    """A pattern in what the lane says: it has to find the bug, not something else."""

    def seed(self, source: str) -> str:
        """A unit's text with the bug in it; texts of other units as they are."""
        if not source.startswith(f'#line 1 "{self.unit}"\n'):
            return source
        pieces = _PARTS.split(source)  # text, then in turn the file and the text from there on
        found = 0
        for i in range(1, len(pieces), 2):
            if pieces[i] == self.file:
                found += pieces[i + 1].count(self.old)
                pieces[i + 1] = pieces[i + 1].replace(self.old, self.new)
        if found != 1:
            raise ValueError(f"bug {self.name}: its text is {found} times in {self.unit}")
        marks = [match[0] for match in _PARTS.finditer(source)]
        return pieces[0] + "".join(mark + text for mark, text in zip(marks, pieces[2::2], strict=True))

    def stale(self) -> str:
        """Why the bug does not fit the present sources. Empty: it does."""
        kernels = resources.files("gradclip_backends.cupy_raw") / "kernels"
        count = (kernels / self.file).read_text(encoding="utf-8").count(self.old)
        return "" if count == 1 else f"its text is {count} times in {self.file}"


class MutantEngine:
    """An engine whose kernels have a bug. None: they have none."""

    def __init__(self, engine: Engine, bug: Bug | None) -> None:
        self.engine = engine
        self.bug = bug
        self.name = engine.name

    def compile(self, source: str, options: Sequence[str]) -> Program:
        """See ``Engine.compile``."""
        return self.engine.compile(source if self.bug is None else self.bug.seed(source), options)
