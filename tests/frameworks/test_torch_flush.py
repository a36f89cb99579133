"""A thread in which torch flushes subnormals measures and scales them all the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.precision.environment import flushes_subnormals, ieee_arithmetic

torch = pytest.importorskip("torch")


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("backend", ["numpy", "numba_cpu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormals_count(flushing: None, backend: str, dtype: str) -> None:
    if backend == "numba_cpu":
        pytest.importorskip("numba")
    codes = np.arange(1, 5000, dtype=f"u{np.dtype(dtype).itemsize}")
    assert flushes_subnormals()
    norm = gc.global_norm([codes.view(dtype)], backend=backend)
    clipped, _ = gc.clip_by_value([codes.view(dtype).copy()], (-1.0, 0.5), loss_scale=0.5, backend=backend)
    assert flushes_subnormals(), "the caller's mode is put back"
    torch.set_flush_denormal(False)
    assert norm == gc.global_norm([codes.view(dtype)], backend="numpy") > 0
    assert (clipped[0].view(codes.dtype) == 2 * codes).all()


def test_the_mode_is_put_back_after_an_error(flushing: None) -> None:
    @ieee_arithmetic
    def fails() -> None:
        assert not flushes_subnormals()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fails()
    assert flushes_subnormals()
