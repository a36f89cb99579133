"""The backend without kernels, through other frameworks than NumPy: the same suite, the same bits."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import protocol, testing
from gradclip_core.protocol import Buffer
from gradclip_core.reference import widen

pytest.importorskip("array_api_compat")
backend: Any = importlib.import_module("gradclip_backends.array_api.backend")
floats: Any = importlib.import_module("gradclip_backends.array_api.floats")
frameworks: Any = importlib.import_module("gradclip_backends.array_api.frameworks")


class ThroughTorch(backend.ArrayApiBackend):  # type: ignore[misc]
    """Host memory as PyTorch's tensors."""

    def host_array(self, buffer: Buffer) -> Any:
        torch = importlib.import_module("torch")
        tensor = torch.from_numpy(buffer.as_numpy())
        return tensor.view(torch.bfloat16) if buffer.dtype is protocol.BFLOAT16 else tensor


class ThroughStrict(backend.ArrayApiBackend):  # type: ignore[misc]
    """Host memory as arrays that have what the array API standard has, and nothing else."""

    def host_array(self, buffer: Buffer) -> Any:
        strict = importlib.import_module("array_api_strict")
        memory = buffer.as_numpy()
        array = strict.asarray(memory, copy=False)
        assert np.shares_memory(np.asarray(array), memory)
        return array


class Flushing(frameworks.NumpyFramework):  # type: ignore[misc]
    """NumPy, used as a framework whose float32 operations flush subnormals: CuPy's way through integers."""

    flushes = True


def held_to_the_suite(mine: Any, dtype: str, least: int = 250) -> None:
    ran = 0
    for check in testing.checks(mine, dtypes=[dtype]):
        check.run()
        ran += 1
    assert ran > least


@pytest.mark.parametrize("dtype", protocol.BASE_DTYPES)
def test_through_torch(dtype: str) -> None:
    pytest.importorskip("torch")
    held_to_the_suite(ThroughTorch(), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_through_the_standard_alone(dtype: str) -> None:
    pytest.importorskip("array_api_strict")
    held_to_the_suite(ThroughStrict(), dtype)


@pytest.mark.parametrize("dtype", protocol.BASE_DTYPES)
def test_by_integers_where_subnormals_are_flushed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flushing = Flushing(frameworks.framework_of(np.ones(1)).xp)
    monkeypatch.setattr(backend, "framework_of", lambda array: flushing)
    assert isinstance(floats.floats_for(flushing, protocol.FLOAT32), floats.ByBits)
    held_to_the_suite(backend.ArrayApiBackend(), dtype)


def test_mixed_tables_through_torch() -> None:
    pytest.importorskip("torch")
    for check in testing.checks(ThroughTorch(), thorough=False):
        if "-table" in check.topic:
            check.run()


# ---- float32 by integers, every corner ---------------------------------------------------------------


def by_bits(dtype: protocol.DType) -> Any:
    return floats.ByBits(frameworks.framework_of(np.ones(1)).xp, dtype)


def test_every_bfloat16_and_a_float32_of_every_exponent_is_widened_and_narrowed() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype, stored in ((protocol.BFLOAT16, every), (protocol.FLOAT32, (every.astype(np.uint32) << 16).view("f4"))):
        with np.errstate(all="ignore"):
            wide = by_bits(dtype).widen(stored)
            np.testing.assert_array_equal(wide, widen(stored, dtype).astype(np.float64))
            assert (np.signbit(wide) == np.signbit(widen(stored, dtype)))[~np.isnan(wide)].all()
            back = by_bits(dtype).narrow(wide, stored.dtype)
        finite = ~np.isnan(wide)
        assert back[finite].tobytes() == stored[finite].tobytes()
        assert np.isnan(by_bits(dtype).widen(back)[~finite]).all()


def test_products_round_once() -> None:
    """Halfway cases among subnormals, and beside them by less than float64 can hold at a smaller scale."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 1 << 31, 400_000, np.int64).astype(np.uint32).view(np.float32)
    b = rng.integers(0, 1 << 31, 400_000, np.int64).astype(np.uint32).view(np.float32)
    odd = (rng.integers(0, 1 << 23, 200_000) * 2 + 1).astype(np.float32)
    a, b = np.concatenate([a, odd * np.float32(2.0**-149)]), np.concatenate([b, np.full(200_000, 0.5, np.float32)])
    near = np.nextafter(np.float32(0.5), np.float32(1)), np.nextafter(np.float32(0.5), np.float32(0))
    a, b = np.concatenate([a, odd, -odd]), np.concatenate([b, *(np.full(200_000, n, np.float32) for n in near)])
    b[-400_000:] *= np.float32(2.0**-130)
    with np.errstate(all="ignore"):
        expected = (a * b).astype(np.float64)
        got = by_bits(protocol.FLOAT32).rounded(a.astype(np.float64) * b.astype(np.float64))
    np.testing.assert_array_equal(got, expected)
    assert (np.signbit(got) == np.signbit(expected))[~np.isnan(expected)].all()


# ---- what cannot be worked on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "seen"),
    [
        (protocol.Request(frozenset({"opencl:0"}), frozenset()), "these arrays are on opencl:0"),
        (protocol.Request(frozenset({"mps:0", "cpu"}), frozenset()), "works on one device"),
        (protocol.Request(frozenset({"cpu", "cuda:0"}), frozenset(), frozenset({"torch"})), "works on one device"),
        (protocol.Request(frozenset({"cpu"}), frozenset({"int8"})), "it has no int8"),
        (protocol.Request(frozenset({"cpu"}), frozenset(protocol.DTYPES)), "it has no float8_e4m3fn, float8_e5m2$"),
        (protocol.Request(frozenset({"cuda:0"}), frozenset(), frozenset({"jaxlib"})), "cupy and torch.*of jaxlib"),
    ],
)
def test_reasons(request_: protocol.Request, seen: str) -> None:
    reasons = backend.ArrayApiBackend().not_supported_reasons(request_)
    assert len(reasons) == 1
    assert re.search(seen, reasons[0])


def test_a_framework_without_parts_of_complex_numbers_is_refused_before_anything_is_written() -> None:
    strict = pytest.importorskip("array_api_strict")
    framework = frameworks.framework_of(strict.ones(1))
    with pytest.raises(gc.BackendError, match="no view of complex numbers as their two parts"):
        framework.parts(strict.ones((1, 3), dtype=strict.complex64))


def test_without_a_gpu_the_suite_is_held_to_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_driver", lambda: False)
    mine = backend.ArrayApiBackend()
    assert mine.memory_for_checks() is None
    asked = protocol.Request(frozenset({"cuda"}), frozenset(protocol.BASE_DTYPES))
    assert mine.not_supported_reasons(asked) == ["there is no NVIDIA driver on this machine"]
    monkeypatch.setattr(backend, "_has_driver", lambda: True)
    assert mine.not_supported_reasons(asked) == []


def test_by_name_on_the_host() -> None:
    grads = [np.random.default_rng(0).standard_normal((300, 40))[:, ::3].astype(np.float32)[:, ::2], np.ones(3) * 1e200]
    expected, info = gc.clip_by_global_norm(grads, 1.0, backend="numpy")
    made, ours = gc.clip_by_global_norm(grads, 1.0, backend="array_api")
    assert (ours.backend, ours.norm) == ("array_api", info.norm)
    assert [x.tobytes() for x in made] == [x.tobytes() for x in expected]
