"""The search for the threshold of the L1 ball and the simplex: every level, every adversary, few passes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.forms import Gathered, Reading, Tally
from gradclip_core.protocol import FLOAT64, Buffer
from gradclip_core.reference_forms import NumpyPasses
from gradclip_core.sets.threshold import SORTED, find_threshold

from .test_l1 import ADVERSARIES, UNIT, Array, exact_threshold, normal, slow_for_michelot, units


class Counting(NumpyPasses):
    """The reference, counting passes."""

    def __init__(self) -> None:
        self.tallies = self.gathers = 0

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        self.tallies += 1
        return super().tally(buffers, reading, signed=signed, prefix=prefix, used=used)

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        self.gathers += 1
        return super().gather(buffers, reading, signed=signed, low=low, high=high)


def buffer_of(x: Array) -> Buffer:
    return Buffer(x.ctypes.data, x.size, FLOAT64, owner=x)


def alike(bits: int, count: int, rng: np.random.Generator) -> Array:
    """Numbers from 1 on that share their leading ``bits`` bits and differ in the 16 after them."""
    return 1.0 + rng.integers(0, 1 << 16, count) * 2.0 ** (12 - bits - 16)


LEVELS = {"no bits": 1, "16 bits": 2, "32 bits": 3, "48 bits": 4, "all bits": 4}


def of_level(level: str, count: int) -> Array:
    rng = np.random.default_rng(3)
    if level == "no bits":
        return 2.0 ** rng.integers(-300, 300, count) * rng.uniform(1, 2, count)
    if level == "all bits":
        return np.full(count, np.pi)
    return alike(int(level.split()[0]), count, rng)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_of_the_tally(level: str, signed: bool) -> None:
    """The threshold lies among numbers that the histograms so far could not tell apart."""
    x = of_level(level, SORTED + 20_000)
    wide = float(np.median(x)) if level == "no bits" else 1.0
    elements = units(x)
    # The radius for which the median is the threshold, and half way to its neighbour: τ ends among the others.
    middle = sorted(elements)[len(elements) // 2]
    radius = Fraction(sum(max(u - middle, 0) for u in elements), UNIT) or Fraction(wide) / 1000
    passes = Counting()
    found = find_threshold(passes, [buffer_of(x)], Reading(), radius, signed=signed)
    tau, count = exact_threshold(elements, radius, signed)
    assert found.above == count
    assert abs(Fraction(found.high) + Fraction(found.low) - tau / UNIT) <= tau / UNIT * Fraction(2) ** -105
    assert 1 <= passes.tallies <= LEVELS[level]
    if level not in ("no bits", "all bits"):
        assert passes.tallies == LEVELS[level]
    assert passes.gathers <= 1


@pytest.mark.parametrize("size", [SORTED - 1, SORTED, SORTED + 1])
@pytest.mark.parametrize("signed", [False, True])
def test_around_the_size_that_is_sorted(size: int, signed: bool) -> None:
    x = np.random.default_rng(size).standard_normal(size)
    passes = Counting()
    found = find_threshold(passes, [buffer_of(x)], Reading(), Fraction(100), signed=signed)
    tau, count = exact_threshold(units(x), Fraction(100), signed)
    assert (passes.tallies > 0) == (size > SORTED)
    assert found.above == count
    assert abs(Fraction(found.high) + Fraction(found.low) - tau / UNIT) <= abs(tau) / UNIT * Fraction(2) ** -105


def test_the_slow_case_is_slow_for_michelot() -> None:
    active, rounds = [Fraction(u) for u in slow_for_michelot(100)], 0
    while True:
        tau = (sum(active) - Fraction(1, 2)) / len(active)
        kept = [u for u in active if u > tau]
        rounds += 1
        if len(kept) == len(active):
            break
        active = kept
    assert rounds >= 90


@pytest.mark.parametrize("case", ADVERSARIES)
@pytest.mark.parametrize("signed", [False, True])
def test_few_passes_whatever_the_values_and_the_same_where_nothing_is_sorted(
    case: str, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no elements sorted, the histograms alone find the same threshold."""
    arrays, radius = ADVERSARIES[case]
    x = np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])
    expected = find_threshold(NumpyPasses(), [buffer_of(x)], Reading(), Fraction(radius), signed=signed)
    for most in (0, 3):
        monkeypatch.setattr("gradclip_core.sets.threshold.SORTED", most)
        passes = Counting()
        assert find_threshold(passes, [buffer_of(x)], Reading(), Fraction(radius), signed=signed) == expected
        assert passes.tallies <= 4
        assert passes.tallies + passes.gathers <= 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("signed", [False, True])
def test_large_arrays_through_both_backends(dtype: Any, signed: bool) -> None:
    """More than is sorted, in several arrays of several dtypes: the same bits, and a sum that is right."""
    pytest.importorskip("numba")
    grads = {"a": normal(150, 300).astype(dtype), "b": normal(20_000, seed=1), "c": np.zeros(0)}
    onto = sets.Simplex(700.0) if signed else sets.L1Ball(700.0)
    ours, info = gc.clip_by_projection(grads, onto, backend="numba_cpu")
    theirs, other = gc.clip_by_projection(grads, onto, backend="numpy")
    assert [x.tobytes() for x in ours.values()] == [x.tobytes() for x in theirs.values()]
    assert info.certificate == other.certificate
    total = sum(float(np.abs(x).sum(dtype=np.float64)) for x in ours.values())
    assert abs(total / 700 - 1) < (1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.jit
def test_ten_million_elements_all_but_three_of_them_zero() -> None:
    pytest.importorskip("numba")
    grads = np.zeros(10_000_000, np.float32)
    grads[[5, 4_999_999, 9_999_999]] = [1.0, -3.0, 0.5]
    info = gc.clip_by_projection_(grads, sets.L1Ball(2.5), backend="numba_cpu")
    assert np.flatnonzero(grads).tolist() == [5, 4_999_999]
    assert sum(abs(Fraction(float(grads[i]))) for i in (5, 4_999_999)) <= Fraction(5, 2)
    assert np.allclose(grads[[5, 4_999_999]], [0.25, -2.25], rtol=1e-6)
    assert info.certificate is not None
    assert info.certificate.optimality < 1e-6
