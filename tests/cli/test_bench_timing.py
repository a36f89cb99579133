"""How ``gradclip bench`` times: the rounds, their ratios, the limit's loops, and the files."""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gradclip_core.cli import bench_limits, bench_timing
from gradclip_core.cli.bench_csv import FIELDS, Context, read, write
from gradclip_core.cli.bench_limits import Memory
from gradclip_core.cli.bench_timing import LIMIT, OURS, Call, Case, Prepared, Row, duration, summed_up, table_of, timed
from tests.cli import helpers  # noqa: F401 - skips where the extra is not installed


def test_each_round_calls_everybody_in_an_order_of_its_own() -> None:
    called: list[str] = []
    calls: dict[str, Call] = {name: partial(called.append, name) for name in "abc"}
    seconds = timed(calls, 20)
    assert "".join(called[:6]) == "abcabc"  # which do not count
    rounds = {"".join(called[start : start + 3]) for start in range(6, 66, 3)}
    assert rounds == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert all(times.shape == (20,) for times in seconds.values())
    first = called.copy()
    called.clear()
    timed(calls, 20)
    assert called == first


def test_a_budget_ends_the_rounds_when_there_are_enough() -> None:
    assert timed({"a": lambda: None}, 50, budget=0.0)["a"].size == bench_timing.FEWEST_ROUNDS


class _Clock:
    """Time that passes by being asked for, 10 microseconds each time, and in calls."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-5
        return self.now


def test_short_calls_are_timed_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, count = _Clock(), 0
    monkeypatch.setattr(bench_timing, "time", clock)

    def call(seconds: float) -> None:
        nonlocal count
        count += 1
        clock.now += seconds

    (seconds,) = timed({"a": partial(call, 1e-6)}, 2, repeats=True).values()
    at_once = 18  # 11 microseconds with the clock's own, in 200
    assert count == bench_timing.WARM_UP + 2 * at_once
    assert seconds == pytest.approx([1e-6 + 1e-5 / at_once] * 2)
    count = 0
    timed({"slow": partial(call, 1e-3)}, 2, repeats=True)
    assert count == bench_timing.WARM_UP + 2


def test_ratios_are_taken_round_by_round() -> None:
    case = Case("b", "work", "data", lambda: Prepared({}, 3, 6000))
    seconds = {OURS: np.array([1.0, 2.0, 4.0]), "peer": np.array([2.0, 8.0, 4.0]), LIMIT: np.array([0.5, 1.5, 1.0])}
    ours, peer, limit = summed_up(case, case.prepare(), seconds, 2)
    assert (ours.ms_median, peer.ms_median) == (2000, 4000)
    assert (peer.times_ours_q25, peer.times_ours_median, peer.times_ours_q75) == (1.5, 2, 3)  # of 2, 4 and 1
    assert (ours.percent_of_limit, limit.percent_of_limit) == (50, 100)  # of 50, 75 and 25
    assert (ours.arrays, ours.bytes, ours.threads, ours.rounds) == (3, 6000, 2, 3)
    assert ours.gigabytes_per_second == 3e-6
    without_peers = summed_up(case, case.prepare(), {"peer": seconds["peer"]}, 2)[0]
    assert math.isnan(without_peers.times_ours_median)


def test_the_table_has_a_line_for_each_peer() -> None:
    rows = [
        Row("b", "work", "data", who, 1, 10**9, 2, 5, 1.0, ms, 2.0, 0.5, ratio, 20.0, share)
        for who, ms, ratio, share in ((LIMIT, 10.0, 0.5, 100.0), (OURS, 20.0, 1.0, 50.0), ("x", 30.0, 1.5, 33.0))
    ]
    rows.append(Row("b", "work", "data", "y", 1, 10**9, 2, 5, 1.0, 60.0, 2.0, 2.0, 3.0, 4.0, 17.0))
    rows.append(Row("b", "memory", "data", OURS, peak_mb=1.25))
    assert table_of(rows) == [
        ("work", "data", "20.0 ms", "50", "50 %", "x", "30.0 ms", "1.50", "0.50 .. 20.0"),
        ("", "", "", "", "", "y", "60.0 ms", "3.00", "2.00 .. 4.00"),
        ("memory", "data", "1.2 MB", "", "", "", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(1234, "1.23 s"), (999.7, "1.00 s"), (123.4, "123 ms"), (1, "1.00 ms"), (0.9999, "1.00 ms"), (0.01234, "12.3 µs")],
)
def test_duration(ms: float, shown: str) -> None:
    assert duration(ms) == shown


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("bytes_", [0, 8, 1000, 1 << 16, (1 << 16) + 8])
def test_the_limit_touches_everything_once(monkeypatch: pytest.MonkeyPatch, threads: int, bytes_: int) -> None:
    monkeypatch.setattr(bench_limits, "_SMALLEST_SHARED_BYTES", 1 << 10)
    memory = Memory(bytes_, threads)
    assert memory._values.nbytes == max(8, bytes_)
    assert memory._values.ctypes.data % 64 == 0
    memory.read()
    assert (memory._values == 1).all()
    memory.read_then_scale()
    memory.scale()
    assert (memory._values == bench_limits._FACTOR * bench_limits._FACTOR).all()


def test_csv_there_and_back(tmp_path: Path) -> None:
    context = Context("2026-01-01", "abc", "a machine, 2 cores", "python 3, numpy 2")
    rows = [
        Row("b", "w, clipped", "d", "x", 1, 2, 3, 4, 0.12344, 12340.0, 1.0),
        Row("b", "w", "d", "y", peak_mb=2.5),
    ]
    text = io.StringIO()
    write(text, context, rows[:1])
    write(text, context, rows[1:], header=False)
    assert text.getvalue().splitlines()[0].split(",") == FIELDS
    path = tmp_path / "a.csv"
    path.write_text(text.getvalue())
    (first, one), (second, two) = read(path)
    assert first == second == context
    assert (one.work, one.ms_q25, one.ms_median) == ("w, clipped", 0.1234, 12340)
    assert math.isnan(one.peak_mb)
    assert (two.peak_mb, two.rounds) == (2.5, 0)
