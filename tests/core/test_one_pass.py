"""Clipping by value in one pass: the same memory and the same info as in three."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core import one_pass

pytestmark = pytest.mark.jit
pytest.importorskip("numba")

SIZES = (0, 1, 5, 255, 256, 257, 4096, 4097, 70_000)
LIMITS = (1.0, 0.0, 1e-3, 1e30, (-1.0, 0.5), (-np.inf, 0.25), (0.5, np.inf), (0.25, 0.5))
ml_dtypes: Any = pytest.importorskip("ml_dtypes")
DTYPES = (np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)


def gradients(dtype: Any, odd: bool = False) -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(dtype) for n in SIZES]
    if odd:
        arrays[3][:4] = np.nan, np.inf, -np.inf, -0.0
        arrays[-1][60_000] = np.inf
        arrays[-1][10] = np.nan
    arrays[5] = np.zeros(257, dtype)
    return arrays


def both(arrays: list[Any], limit: Any, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    once, thrice = ([x.copy() for x in arrays] for _ in range(2))
    asked: list[object] = []
    right = one_pass.clamp_in_one_pass

    def seen(*args: Any) -> Any:
        asked.append(right(*args))
        return asked[-1]

    monkeypatch.setattr("gradclip_core.pipeline.clamp_in_one_pass", seen)
    info = gc.clip_by_value_(once, limit, nonfinite="propagate", backend="numba_cpu", **how)
    monkeypatch.setattr("gradclip_core.pipeline.clamp_in_one_pass", lambda *args: None)
    expected = gc.clip_by_value_(thrice, limit, nonfinite="propagate", backend="numba_cpu", **how)
    assert asked[0] is not None
    assert [x.tobytes() for x in once] == [x.tobytes() for x in thrice]
    assert repr(info) == repr(expected)
    assert {k: repr(v) for k, v in info.norms.items()} == {k: repr(v) for k, v in expected.norms.items()}
    assert info.scales == expected.scales
    assert info.counts == expected.counts


@pytest.mark.parametrize("odd", [False, True], ids=["finite", "not finite"])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_one_pass_is_three(dtype: Any, limit: Any, odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    both(gradients(dtype, odd), limit, monkeypatch)


@pytest.mark.parametrize("limit", [-0.0, *itertools.product((0.0, -0.0), repeat=2), (-1.0, -0.0), (-0.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_zeros_keep_and_get_their_signs(dtype: Any, limit: Any) -> None:
    once = [np.tile(np.array([-2, 2, 0.0, -0.0], dtype), n) for n in (1, 3000)]
    right = [x.copy() for x in once]
    for grads, backend in ((once, "numba_cpu"), (right, "numpy")):
        gc.clip_by_value_(grads, limit, nonfinite="propagate", backend=backend)
    assert [x.tobytes() for x in once] == [x.tobytes() for x in right]


@pytest.mark.parametrize("limit", [1.0, (-1.0, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_blocks_of_every_kind_after_every_other(dtype: Any, limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block had beyond the limit decides how the next one is walked, and nothing else."""
    kinds = (0.25, 4.0, np.nan, np.inf)
    arrays = []
    for first, second, third in itertools.product(kinds, repeat=3):
        x = np.full(3 * 4096 - 100, 0.125, dtype)
        x[[70, 4096 + 900, -1]] = first, second, third
        arrays.append(x)
    both(arrays, limit, monkeypatch)


@pytest.mark.parametrize("scale", [2.0, 3.0, 1e-6, 2.0**20])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_under_a_loss_scale(dtype: Any, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    both(gradients(dtype, odd=True), 0.5, monkeypatch, loss_scale=scale)


def test_signalling_nans_become_quiet_in_all_of_an_array_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros(20_000, np.float32)
    x.view(np.uint32)[5] = 0x7F800001
    x[-1] = 3.0
    y = x.copy()
    y[-1] = 0.0
    both([x, y], 1.0, monkeypatch)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.floats(0, 2.0**100, width=32))
def test_any_floats(values: list[float], limit: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        both([np.array(values, np.float32)], limit, patch)


@pytest.mark.parametrize(
    ("rule", "grads", "how"),
    [
        (gc.Value(1.0), [np.ones(3)], {}),
        (gc.Value(1.0), [np.ones((4, 4), np.float32)[:, ::2]], {}),
        (gc.Value((-1.0, 0.5)), [np.ones(3, np.float32)], {"loss_scale": 2.0}),
        (gc.Value(1.0), [np.ones(3, np.float32)], {"underflow": "count"}),
        (gc.Value(1.0), [np.ones(3, np.float32)], {"nonfinite": "sanitize"}),
        (gc.GlobalNorm(1.0), [np.ones(3, np.float32)], {}),
        (gc.Chain(gc.Value(1.0), gc.GlobalNorm(1.0)), [np.ones(3, np.float32)], {}),
    ],
)
def test_all_else_goes_the_long_way(rule: gc.Rule, grads: Any, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    right = one_pass.clamp_in_one_pass

    def seen(*args: Any) -> Any:
        said.append(right(*args))
        return said[-1]

    monkeypatch.setattr("gradclip_core.pipeline.clamp_in_one_pass", seen)
    gc.clip_(grads, rule, **{"nonfinite": "propagate", "backend": "numba_cpu", **how})
    assert set(said) == {None}


def test_blocks_without_anything_beyond_are_not_written() -> None:
    """A page that may not be written tells: only the second block of each array has something beyond."""
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE * 4)
    x = np.frombuffer(memory, np.float32)
    x[:] = 0.5
    x[-1] = 3.0
    libc = ctypes.CDLL(None)
    if libc.mprotect(ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(3 * 16384), 1):  # PROT_READ
        pytest.skip("memory cannot be protected here")
    try:
        info = gc.clip_by_value_(x, 1.0, nonfinite="propagate", backend="numba_cpu")
    finally:
        libc.mprotect(ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(3 * 16384), 3)
    assert info.clipped
    assert x[-1] == 1.0
