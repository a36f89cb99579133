"""Measurements of shards, added up: the bits of ``tree_sum``, the same everywhere, however many processes there are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.protocol import FLOAT32, FLOAT64, Buffer, FloatArray, Measurements, What
from gradclip_core.reference import BACKEND, tree_sum, tree_sum_carried
from gradclip_core.sharded import Shared, Together, _tree_sums, lines_of


class Meeting:
    """Threads that exchange numbers, as the processes along an axis of a mesh do."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=30)
        self._given: list[FloatArray] = [np.zeros(0)] * count

    def exchange(self, who: int, numbers: FloatArray) -> FloatArray:
        self._given[who] = numbers.copy()
        self._barrier.wait()
        found = np.stack(self._given)
        self._barrier.wait()
        return found


class Line:
    """One thread's end of a meeting. ``calls`` counts how often it was needed."""

    def __init__(self, meeting: Meeting, who: int) -> None:
        self._meeting, self._who, self.calls = meeting, who, 0

    @property
    def key(self) -> object:
        return id(self._meeting)

    def gather(self, numbers: FloatArray) -> FloatArray:
        self.calls += 1
        return self._meeting.exchange(self._who, numbers)


def side_by_side(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What each of some threads returns."""
    found: list[Any] = [None] * count

    def run(who: int) -> None:
        found[who] = work(who)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def buffer_of(values: np.ndarray, shared: Shared | None) -> Buffer:
    dtype = FLOAT32 if values.dtype == np.float32 else FLOAT64
    return Buffer(values.ctypes.data, values.size, dtype, owner=values, shared=shared)


def bits(found: Measurements) -> list[bytes]:
    parts = (found.sums, found.largest, found.infs, found.nans, found.outside, found.carries)
    return [part.tobytes() for part in parts]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 31, 64, 100, 255, 256, 257, 300, 5000])
def test_shards_add_up_in_the_order_of_the_tree(count: int) -> None:
    rng = np.random.default_rng(count)
    sums = rng.standard_normal((count, 3)) ** 2 * 2.0 ** rng.integers(-40, 40, (count, 3))
    carries = sums * 2.0**-54
    total, _ = _tree_sums(sums, np.zeros_like(sums))
    assert total.tolist() == [tree_sum(sums[:, i]) for i in range(3)]
    pairs = [tree_sum_carried(sums[:, i], carries[:, i]) for i in range(3)]
    assert [part.tolist() for part in _tree_sums(sums, carries)] == [[p[0] for p in pairs], [p[1] for p in pairs]]
    for i in range(3):  # a tree of all shards has up to 23 levels a block, each rounds by 2^-53 at most
        exact = sum(map(Fraction, sums[:, i].tolist()), Fraction(0))
        assert abs(Fraction(float(total[i])) - exact) <= exact * Fraction(46, 2**53)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "what", [What(), What(1.0), What(carry=True), What(bounds=(np.full(3, -1.0), np.full(3, 0.5)))], ids=repr
)
def test_measured_is_the_whole(what: What, dtype: Any) -> None:
    """A shard that is empty, an array that every process holds, infinities and NaNs; on each process the same bits."""
    count, rng = 3, np.random.default_rng(5)
    shards = [[rng.integers(-9, 9, n).astype(dtype) for n in ns] for ns in ((4, 2), (5, 0), (1, 3))]
    shards[2][0][0], shards[0][1][0] = np.inf, np.nan
    plain, meeting = np.arange(4).astype(dtype), Meeting(count)

    def work(who: int) -> tuple[Measurements, int]:
        line = Line(meeting, who)
        shares = [Shared(10, (line,), ""), None, Shared(5, (line,), "")]
        here = [shards[who][0], plain, shards[who][1]]
        buffers = [buffer_of(x, shared) for x, shared in zip(here, shares, strict=True)]
        return Together(BACKEND, lines_of(shares)).measure(buffers, what), line.calls

    found = side_by_side(count, work)
    assert [calls for _, calls in found] == [1] * count
    assert [bits(f) for f, _ in found] == [bits(found[0][0])] * count
    wholes = [np.concatenate([s[0] for s in shards]), plain, np.concatenate([s[1] for s in shards])]
    assert bits(found[0][0]) == bits(BACKEND.measure([buffer_of(x, None) for x in wholes], what))


def test_what_every_process_holds_is_made_the_same() -> None:
    """Along the lines that an array is not spread over too: two axes, an array along each, and one along both."""
    grid = {(i, j): float(1 + i * 2 + j) for i in range(2) for j in range(2)}
    rows, columns = ([Meeting(2) for _ in range(2)] for _ in range(2))

    def work(who: int) -> Measurements:
        i, j = divmod(who, 2)
        down, across = Line(columns[j], i), Line(rows[i], j)
        shares = [Shared(2, (across,), ""), Shared(2, (down,), ""), Shared(4, (down, across), ""), None]
        buffers = [buffer_of(np.array([grid[i, j]]), shared) for shared in shares]
        return Together(BACKEND, lines_of(shares)).measure(buffers, What(1.0))

    found = side_by_side(4, work)
    assert [bits(f) for f in found] == [bits(found[0])] * 4
    # Row sums are 3 and 7, column sums 4 and 6: of those the larger, as of the plain ones.
    assert found[0].sums.tolist() == [7.0, 6.0, 10.0, 4.0]


def test_calls_that_differ_are_refused_everywhere() -> None:
    """The processes that agree with all that they can see hear of it from the others."""
    rows, columns = ([Meeting(2) for _ in range(2)] for _ in range(2))

    def work(who: int) -> str:
        i, j = divmod(who, 2)
        together = Together(BACKEND, [Line(columns[j], i), Line(rows[i], j)])
        together.compare("clip_", "the same")
        try:
            together.compare("clip_", "another" if who == 3 else "the same")
        except gc.GradClipError as error:
            return error.seen
        return ""

    found = side_by_side(4, work)
    assert all(seen.startswith("not every process of the mesh") for seen in found), found
