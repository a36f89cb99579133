"""The bracket around a threshold: the same bits with it as without, also where the sample misleads."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradclip_core.forms import Passes, Reading
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Buffer, DType
from gradclip_core.reference_forms import NumpyPasses, load, store
from gradclip_core.sets import bracket
from gradclip_core.sets.exact import as_units
from gradclip_core.sets.threshold import Threshold, find_threshold

from .test_threshold import Counting

Array = np.ndarray[Any, np.dtype[Any]]
SIZE = 30_011
DTYPES = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets from samples in proportion, so that plain Python gets through."""
    monkeypatch.setattr(bracket, "WORTH", 1 << 14)
    monkeypatch.setattr(bracket, "_SAMPLE", 1 << 11)


def buffers_of(parts: Sequence[Array], dtype: DType) -> list[Buffer]:
    stored = [store(part, dtype, Reading()) for part in parts]
    return [Buffer(x.ctypes.data, x.size, dtype, owner=x) for x in stored]


def without_bracket(
    passes: Passes, buffers: list[Buffer], reading: Reading, radius: Fraction, signed: bool
) -> Threshold:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bracket, "WORTH", 1 << 60)
        return find_threshold(passes, buffers, reading, radius, signed=signed)


def largest_of(buffers: list[Buffer], reading: Reading) -> float:
    return max(float(np.abs(load(b.as_numpy()[0], b.dtype, reading)).max(initial=0)) for b in buffers)


def every_passes() -> list[Passes]:
    try:
        from gradclip_backends.numba_cpu.passes import PASSES
    except ImportError:
        return [NumpyPasses()]
    return [NumpyPasses(), PASSES]


def draw(kind: str, size: int = SIZE) -> Array:
    rng = np.random.default_rng(len(kind))
    if kind == "normal":
        return rng.standard_normal(size)
    if kind == "heavy":  # many decades, within the bracket's 2^17
        return rng.standard_normal(size) * 2.0 ** rng.integers(-6, 6, size)
    if kind == "uniform":
        return rng.uniform(-1, 1, size)
    return np.round(rng.standard_normal(size) * 4) / 4  # ties


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "heavy", "uniform", "ties"])
@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.1, 0.5])
@pytest.mark.parametrize("signed", [False, True])
def test_the_same_threshold_with_and_without(dtype: str, kind: str, share: float, signed: bool) -> None:
    u = draw(kind)
    buffers = buffers_of(np.split(u, [100, SIZE // 3]), DTYPES[dtype])
    reading = Reading(inverse=2.0**-3)
    radius = Fraction(float(np.abs(u).sum()) / 8 * share)
    largest = largest_of(buffers, reading)
    for passes in every_passes():
        found = find_threshold(passes, buffers, reading, radius, signed=signed, largest=largest)
        assert found == without_bracket(passes, buffers, reading, radius, signed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.1])
def test_a_bracket_is_used_and_saves_the_histogram_of_everything(dtype: str, share: float) -> None:
    """Otherwise the test above compares the histograms with themselves."""
    u = draw("normal")
    (buffer,) = buffers_of([u], DTYPES[dtype])
    radius = float(np.abs(u).sum()) * share
    found = bracket.find_bracket(
        NumpyPasses(), [buffer], Reading(), radius, largest_of([buffer], Reading()), signed=False
    )
    assert found is not None
    stored = np.abs(load(buffer.as_numpy()[0], buffer.dtype, Reading()))
    above = np.sort(stored)[::-1][: found.above]
    assert found.total == sum(as_units(v) for v in above.tolist())
    assert found.values.size < SIZE / 4  # of bfloat16 many are equal


@pytest.mark.parametrize("where", ["on the sample", "off the sample"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_sample_that_misleads(where: str, signed: bool) -> None:
    """All that is large lies where the sample looks, or where it does not."""
    step = SIZE // bracket._SAMPLE
    u = np.random.default_rng(0).uniform(0.5, 1, SIZE)
    u[:: step if where == "on the sample" else 1] *= 8
    if where == "off the sample":
        u[::step] /= 8
    (buffer,) = buffers_of([u], FLOAT32)
    radius = Fraction(float(u.sum()) / 50)
    for passes in every_passes():
        assert bracket.find_bracket(passes, [buffer], Reading(), float(radius), 8.0, signed=signed) is None
        found = find_threshold(passes, [buffer], Reading(), radius, signed=signed, largest=8.0)
        assert found == without_bracket(passes, [buffer], Reading(), radius, signed)


@pytest.mark.parametrize(
    ("what", "reading", "dtype", "largest"),
    [
        ("float64", Reading(), FLOAT64, 8.0),
        ("a scale that is no power of two", Reading(1 / 3), FLOAT32, 8.0),
        ("other units", Reading(1.0, 4), FLOAT32, 8.0),
        ("one huge element", Reading(), FLOAT32, 1e30),
        ("nothing known of the largest", Reading(), FLOAT32, np.inf),
    ],
)
def test_no_bracket_where_sums_would_be_rounded(what: str, reading: Reading, dtype: DType, largest: float) -> None:
    u = np.clip(draw("normal"), -8, 8)
    u[7] = min(largest, 1e30)
    passes, buffers = Counting(), buffers_of([u], dtype)
    radius = float(np.abs(np.delete(u, 7)).sum()) / 10
    assert bracket.find_bracket(passes, buffers, reading, radius, largest, signed=False) is None, what
    found = find_threshold(NumpyPasses(), buffers, reading, Fraction(radius), signed=False, largest=largest)
    assert found == without_bracket(NumpyPasses(), buffers, reading, Fraction(radius), False)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0**-149])
def test_all_alike(value: float) -> None:
    buffers = buffers_of([np.full(SIZE, value)], FLOAT32)
    for signed in (False, True):
        for radius in (Fraction(1), Fraction(SIZE), Fraction(1, 10**9)):
            for passes in every_passes():
                found = find_threshold(passes, buffers, Reading(), radius, signed=signed, largest=abs(value))
                assert found == without_bracket(passes, buffers, Reading(), radius, signed)


@pytest.mark.jit
@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.3])
def test_at_the_size_from_which_it_is_worth_it(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.undo()
    u = draw("normal", bracket.WORTH + 12_345)
    (buffer,) = buffers_of([u], FLOAT32)
    radius, largest = Fraction(float(np.abs(u).sum()) * share), largest_of([buffer], Reading())
    expected = without_bracket(NumpyPasses(), [buffer], Reading(), radius, False)
    for passes in every_passes():
        assert find_threshold(passes, [buffer], Reading(), radius, signed=False, largest=largest) == expected
        assert bracket.find_bracket(passes, [buffer], Reading(), float(radius), largest, signed=False) is not None
