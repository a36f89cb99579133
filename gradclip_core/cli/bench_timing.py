"""How everything is timed: peers interleaved with ours, round by round, beside the machine's limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Call = Callable[[], object]
Seconds = dict[str, npt.NDArray[np.float64]]

OURS = "gradclip"
LIMIT = "limit"
READING = "reading them alone"
"""The names of three calls: what others are compared with, the machine's own, and its own on the very gradients."""
WARM_UP = 2
FEWEST_ROUNDS = 5
_LEAST_SECONDS = 2e-4
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Prepared:
    """What is timed: calls that do the same work, each time the same."""

    calls: dict[str, Call]
    arrays: int
    bytes: int
    """The least that the work moves, read and written."""


@dataclass(frozen=True)
class Case:
    """Something to time. Memory is taken when it is prepared, and given back with what was prepared."""

    benchmark: str
    work: str
    data: str
    prepare: Callable[[], Prepared]
    rounds: int = 21
    repeats: bool = False
    """Whether calls that are too short for the clock may be timed several at once."""
    budget: float = math.inf
    """Seconds after which no round is begun, once there are enough."""

    def rows(self, threads: int, after_round: Callable[[], None] = lambda: None) -> list[Row]:
        """Time it: a row for each call."""
        prepared = self.prepare()
        seconds = timed(prepared.calls, self.rounds, repeats=self.repeats, budget=self.budget, after_round=after_round)
        return summed_up(self, prepared, seconds, threads)


@dataclass(frozen=True)
class Row:
    """One line of the table, and of the CSV files. NaN: not measured."""

    benchmark: str
    work: str
    data: str
    who: str
    arrays: int = 0
    bytes: int = 0
    threads: int = 0
    rounds: int = 0
    ms_q25: float = math.nan
    ms_median: float = math.nan
    ms_q75: float = math.nan
    times_ours_q25: float = math.nan
    times_ours_median: float = math.nan
    """Its time over ours in the same round: the median is not that of the medians."""
    times_ours_q75: float = math.nan
    percent_of_limit: float = math.nan
    """100 times the limit's time over its own in the same round, the median."""
    peak_mb: float = math.nan
    """Memory beyond the gradients at the worst moment of a call, in 10^6 bytes."""

    @property
    def case(self) -> tuple[str, str, str, int, int]:
        """The same for everybody who did the same work."""
        return self.benchmark, self.work, self.data, self.arrays, self.bytes

    @property
    def gigabytes_per_second(self) -> float:
        """Of what the work moves at the least."""
        return self.bytes / self.ms_median / 1e6


def timed(
    calls: dict[str, Call],
    rounds: int,
    *,
    repeats: bool = False,
    budget: float = math.inf,
    after_round: Callable[[], None] = lambda: None,
) -> Seconds:
    """Seconds of each call in each round, after two rounds that do not count.

    Each round has an order of its own, the same in every run, so that nobody always finds caches and
    cores as the same one left them.
    """
    counts = [1] * len(calls)
    for i, call in enumerate(list(calls.values()) * WARM_UP):
        took = _once(call, 1)
        if repeats and i >= len(calls):  # the first one of all may compile
            counts[i % len(calls)] = max(1, min(_MOST_CALLS, round(_LEAST_SECONDS / took)))
    turns, order, seconds = list(calls.values()), np.random.default_rng(0), []
    end = time.perf_counter() + budget
    for i in range(rounds):
        if i >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        row = np.empty(len(turns))
        for column in order.permutation(len(turns)):
            row[column] = _once(turns[column], counts[column])
        seconds.append(row)
        after_round()
    table = np.array(seconds)
    return {name: table[:, column] for column, name in enumerate(calls)}


_SETTLED = 0.005
"""Seconds before each call: OpenMP's threads spin for some milliseconds after one, on the cores of the next."""


def _once(call: Call, count: int) -> float:
    settled = time.perf_counter() + _SETTLED
    while time.perf_counter() < settled:  # not asleep, or this core would have to wake up
        pass
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def summed_up(case: Case, prepared: Prepared, seconds: Seconds, threads: int) -> list[Row]:
    """Quartiles of the times, and of their ratios round by round."""
    ours, limit = seconds.get(OURS), seconds.get(LIMIT)
    rows = []
    for who, times in seconds.items():
        low, middle, high = _quartiles(1e3 * times)
        ratio = _quartiles(times / ours) if ours is not None else (math.nan,) * 3
        share = 100 * float(np.median(limit / times)) if limit is not None else math.nan
        about = (prepared.arrays, prepared.bytes, threads, times.size)
        rows.append(Row(case.benchmark, case.work, case.data, who, *about, low, middle, high, *ratio, share))
    return rows


def _quartiles(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def shrinking(bound: float, by: float = 0.99) -> Iterator[float]:
    """A bound for each clipped step, 1 % under the last, so that each has the same work to do."""
    while True:
        bound *= by
        yield bound


COLUMNS = ("work", "gradients", "gradclip", "GB/s", "of the limit", "peer", "takes", "times ours", "quartiles")
NUMBERS = ("gradclip", "GB/s", "of the limit", "takes", "times ours", "quartiles")


def table_of(rows: list[Row]) -> list[tuple[str, ...]]:
    """A line for each peer; the first of a case tells our own part."""
    lines: list[tuple[str, ...]] = []
    cases: dict[Any, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.who] = row
    for members in cases.values():
        ours = members.pop(OURS, None)
        members.pop(LIMIT, None)
        first = next(iter(members.values()), ours)
        if first is None:
            continue
        mine: tuple[str, ...] = (first.work, first.data, *(_own(ours) if ours else ("", "", "")))
        for cells in [_peers(row) for row in members.values()] or [("",) * 4]:
            lines.append((*mine, *cells))
            mine = ("",) * len(mine)
    return lines


def _own(row: Row) -> tuple[str, str, str]:
    if math.isnan(row.ms_median):
        return f"{row.peak_mb:.1f} MB", "", ""
    return duration(row.ms_median), f"{row.gigabytes_per_second:.3g}", percent(row.percent_of_limit)


def _peers(row: Row) -> tuple[str, str, str, str]:
    if math.isnan(row.ms_median):
        return row.who, f"{row.peak_mb:.1f} MB", "", ""
    quartiles = f"{times(row.times_ours_q25)} .. {times(row.times_ours_q75)}"
    return row.who, duration(row.ms_median), times(row.times_ours_median), quartiles


def duration(ms: float) -> str:
    """Three digits, in the unit that suits."""
    unit, size = next((pair for pair in (("s", 1e3), ("ms", 1.0)) if ms >= 0.9995 * pair[1]), ("µs", 1e-3))
    return f"{ms / size:#.3g}".rstrip(".") + f" {unit}"


def times(ratio: float) -> str:
    """How often our time: two digits after the point below 10."""
    return "" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.1f}"


def percent(share: float) -> str:
    """Whole percents."""
    return "" if math.isnan(share) else f"{share:.0f} %"
