"""A step that clips nothing writes nothing: the gradients' pages are write-protected meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.testing.protect import dies_when_protected

SIZE = 30_000
INSIDE: dict[str, Callable[[Any, str], Any]] = {
    "global norm": lambda g, b: gc.clip_by_global_norm_(g, 1e6, backend=b),
    "global norm, exactly at the threshold": lambda g, b: gc.clip_by_global_norm_(g, gc.global_norm(g), backend=b),
    "group norm": lambda g, b: gc.clip_by_group_norm_(g, 1e6, groups=lambda path: path, backend=b),
    "array norm, ord inf": lambda g, b: gc.clip_by_norm_(g, 1e6, ord=np.inf, backend=b),
    "value": lambda g, b: gc.clip_by_value_(g, 100.0, backend=b),
    "value, one-sided": lambda g, b: gc.clip_by_value_(g, (-np.inf, 100.0), backend=b),
    "value, not symmetric": lambda g, b: gc.clip_by_value_(g, (-6.0, 1e3), backend=b),
    "agc": lambda g, b: gc.adaptive_clip_(g, [1e6 * np.ones(SIZE)], axis=None, backend=b),
    "chain": lambda g, b: gc.clip_(g, gc.Chain(gc.Value(100.0), gc.GlobalNorm(1e6)), backend=b),
    "plan": lambda g, b: gc.plan(g, gc.GlobalNorm(1e-3), backend=b),
    "new arrays": lambda g, b: gc.clip_by_global_norm(g, 1e-3, backend=b),
    "norm": lambda g, b: gc.global_norm(g, backend=b),
    "every policy": lambda g, b: [
        gc.clip_by_global_norm_(g, 1e6, nonfinite=policy, backend=b)
        for policy in ("raise", "skip", "zero", "sanitize", "propagate")
    ],
}


def gradients(dtype: str) -> list[Any]:
    values = np.random.default_rng(0).standard_normal(SIZE)
    if dtype == "bfloat16":
        return [values.astype(pytest.importorskip("ml_dtypes").bfloat16)]
    return [values.astype(dtype)]


def protected(grads: list[Any], call: Callable[[], Any]) -> bool | None:
    return dies_when_protected(grads[0].ctypes.data, grads[0].nbytes, lambda: call() and None)


@pytest.fixture(params=["numpy", "numba_cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "numba_cpu":
        pytest.importorskip("numba")
    return name


@pytest.mark.jit
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rule", INSIDE)
def test_nothing_is_written(rule: str, dtype: str, backend: str) -> None:
    grads = gradients(dtype)
    assert protected(grads, lambda: INSIDE[rule](grads, backend)) is False


@pytest.mark.jit
def test_the_protection_would_notice(backend: str) -> None:
    grads = gradients("float32")
    assert protected(grads, lambda: gc.clip_by_global_norm_(grads, 1e6, loss_scale=2.0, backend=backend)) is True
    assert protected(grads, lambda: grads[0].__setitem__(slice(None), grads[0].copy())) is True


@pytest.mark.jit
def test_skipped_and_refused_steps_write_nothing(backend: str) -> None:
    grads = gradients("float32")
    grads[0][777] = np.nan

    def refused() -> None:
        with pytest.raises(gc.NonFiniteGradientError):
            gc.clip_by_global_norm_(grads, 1.0, backend=backend)

    assert protected(grads, refused) is False
    assert protected(grads, lambda: gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip", backend=backend)) is False


@pytest.mark.jit
def test_only_the_arrays_that_need_it_are_written(backend: str) -> None:
    large, small = 1e3 * np.ones(SIZE, np.float32), np.ones(SIZE, np.float32)
    grads = [small, large]

    def clip_the_large() -> None:
        large[:] = 1e3
        assert gc.clip_by_norm_(grads, 1e4, backend=backend).clipped
        large[:] = 1e3
        assert gc.clip_by_value_(grads, 2.0, backend=backend).clipped

    assert protected(grads, clip_the_large) is False
