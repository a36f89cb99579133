"""How cost grows: a straight line through what was timed, by the least squares of its relative errors.

Time of a call = a fixed part + a part for each array (of 64 to 1,024 elements), or for each byte of one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import OURS, Row, duration

HEAD = """\
| unclipped steps, float32 | who | fixed | and | furthest off |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Line:
    """``fixed + each · x``, in milliseconds."""

    fixed: float
    each: float
    furthest: float
    """The largest relative error."""

    @classmethod
    def through(cls, x: Sequence[float], ms: Sequence[float]) -> Line:
        """The line with the least squares of relative errors."""
        at, times = np.array(x, np.float64), np.array(ms, np.float64)
        parts = np.stack([1 / times, at / times], axis=1)
        (fixed, each), *_ = np.linalg.lstsq(parts, np.ones(times.size), rcond=None)
        return cls(float(fixed), float(each), float(np.abs((fixed + each * at) / times - 1).max()))


def table(found: Sequence[tuple[Context, Row]]) -> str:
    """In Markdown."""
    lines = [HEAD]
    for benchmark, what, size in (
        ("arrays", "1 to 10,000 arrays", attrgetter("arrays")),
        ("sizes", "one array of 1 KB to 1 GB", attrgetter("bytes")),
    ):
        for who in (OURS, "torch"):
            rows = [row for _, row in found if row.benchmark == benchmark and row.who == who]
            if len(rows) < 3:
                continue
            line = Line.through([size(row) for row in rows], [row.ms_median for row in rows])
            each = (
                f"{duration(line.each)} an array"
                if benchmark == "arrays"
                else f"1 ms for each {1e-6 / line.each:.3g} MB"
            )
            lines.append(f"| {what} | {who} | {duration(line.fixed)} | {each} | {100 * line.furthest:.0f} % |")
    return "\n".join(lines)
