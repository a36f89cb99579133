"""The driver, as far as it goes without one: what it says, and what it asks CUDA for."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gradclip_backends.gpu.driver import Queue
from gradclip_backends.numba_cuda import BACKEND
from gradclip_backends.numba_cuda.driver import NumbaDriver
from gradclip_backends.numba_cuda.failures import failing_as, why_not_started

from gradclip_core.errors import BackendError
from gradclip_core.protocol import Request
from tests.gpu.toolkit.needs import needs_numba_cuda

ROOT = Path(__file__).parents[3]
QUEUE = Queue(0, 7)


def test_to_import_it_takes_neither_a_device_nor_numba() -> None:
    code = "import sys, gradclip_backends.numba_cuda; assert not {'numba', 'cuda', 'cupy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT / "backends", env=_environment())


@needs_numba_cuda
def test_to_import_the_kernels_compiles_nothing() -> None:
    code = (
        "from gradclip_backends.numba_cuda.kernels import KERNELS\n"
        "assert all(not kernel.function.overloads for kernel in KERNELS.values())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "backends", env=_environment())


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}", "PATH": ""}


def test_without_a_device_it_says_so() -> None:
    reasons = BACKEND.driver.unavailable()
    if not reasons:
        pytest.skip("there is a device")
    assert BACKEND.not_supported_reasons(Request(frozenset({"cuda:0"}), frozenset({"float32"}))) == reasons
    assert all(len(reason) > 20 for reason in reasons)


@needs_numba_cuda
def test_without_a_device_nothing_raises_but_this_librarys_error() -> None:
    if not BACKEND.driver.unavailable():
        pytest.skip("there is a device")
    driver = NumbaDriver()
    for call in (
        lambda: driver.devices(),
        lambda: driver.processors(0),
        lambda: driver.prepare(0, ["apply_table"]),
        lambda: driver.allocate(QUEUE, 8),
        lambda: driver.clear(QUEUE, 256, 8),
        lambda: driver.upload(QUEUE, 256, np.zeros(8, np.uint8)),
        lambda: driver.read(QUEUE, 256, 8),
        lambda: driver.mark(QUEUE),
        lambda: driver.order(QUEUE, QUEUE),
    ):
        with pytest.raises(BackendError, match=r"numba_cuda, .*(no NVIDIA driver|CUDA)"):
            call()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("CUDA driver library cannot be found.", "no NVIDIA driver"),
        ("Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)", "CUDA_VISIBLE_DEVICES"),
        ("CUDA is disabled due to setting NUMBA_DISABLE_CUDA=1", "NUMBA_DISABLE_CUDA=1 is set"),
        ("Call to cuInit results in CUDA_ERROR_UNKNOWN", "does not start (Call to cuInit"),
    ],
)
def test_why_cuda_does_not_start(said: str, told: str) -> None:
    assert told in why_not_started(said)


@pytest.mark.parametrize(
    ("what", "said", "told"),
    [
        ("allocating 8 bytes", "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", "is out of memory"),
        ("reading", "Call to x results in CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "before capturing"),
        ("launching", "Call to x results in CUDA_ERROR_INVALID_HANDLE", "not one of cuda:0"),
        ("compiling apply_table", "\nFailed in cuda mode pipeline", "does not compile (Failed in"),
        ("launching", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_LAUNCH_BLOCKING"),
    ],
)
def test_what_fails_is_told_with_a_cure(what: str, said: str, told: str) -> None:
    with pytest.raises(BackendError, match=re.escape(told)) as caught, failing_as(what, QUEUE):
        raise RuntimeError(said)
    assert caught.value.asked == f"numba_cuda, {what} on cuda:0"
    with pytest.raises(BackendError, match="as it is"), failing_as(what):
        raise BackendError("x", "as it is", "y")


class _Cuda:
    """CUDA's driver over host memory. Each call has the arguments that NVIDIA's bindings take."""

    def __init__(self) -> None:
        self.bindings = importlib.import_module("cuda.bindings.driver")
        self.calls: list[str] = []
        self.status = 0

    def __getattr__(self, name: str) -> Any:
        signature = getattr(self.bindings, name).__doc__.strip().partition(")")[0]
        count = signature.count(",") + 1

        def call(*args: Any) -> Any:
            assert len(args) == count, f"{name} takes {signature}"
            self.calls.append(name)
            return getattr(self, f"_{name}", lambda *_: None)(*args)

        return call

    def _cuMemsetD8Async(self, pointer: int, value: int, size: int, _stream: int) -> None:  # noqa: N802
        _view(pointer, size)[:] = value

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, _stream: int) -> None:  # noqa: N802
        _view(target, size)[:] = _view(source, size)

    _cuMemcpyDtoHAsync = _cuMemcpyHtoDAsync  # noqa: N815

    def _cuStreamIsCapturing(self, _stream: int) -> Any:  # noqa: N802
        return self.bindings.CUstreamCaptureStatus(self.status)

    def _cuPointerGetAttribute(self, attribute: Any, pointer: Any) -> int:  # noqa: N802
        from numba.cuda.cudadrv.driver import CudaAPIError

        if int(pointer) == 0xDEAD:
            raise CudaAPIError(1, "freed")
        kind = 1 if int(pointer) == 0xF00 else 2
        return kind if attribute.name.endswith("MEMORY_TYPE") else 3


def _view(pointer: int, size: int) -> Any:
    from gradclip_core.protocol import host_view

    return host_view(pointer, (size,), np.dtype(np.uint8), None)


@needs_numba_cuda
def test_what_it_asks_cuda_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda

    fake, done = _Cuda(), [False]
    monkeypatch.setattr(NumbaDriver, "_cuda", fake)
    monkeypatch.setattr(NumbaDriver, "_on", lambda _self, _device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "event", lambda timing: SimpleNamespace(handle=11, query=lambda: done[0]))
    driver = NumbaDriver()
    memory = np.full(32, 9, np.uint8)
    pointer = memory.ctypes.data
    driver.clear(QUEUE, pointer, 8)
    data = np.arange(16, dtype=np.uint8)
    driver.upload(QUEUE, pointer + 8, data)
    data[:] = 99
    assert memory.tolist() == [0] * 8 + list(range(16)) + [9] * 8
    driver.upload(QUEUE, pointer, data)
    assert len(driver._uploads) == 2  # kept until the device has come past them
    done[0] = True
    driver.upload(QUEUE, pointer, data)
    assert len(driver._uploads) == 1
    assert driver.read(QUEUE, pointer, 4).tolist() == [99] * 4
    assert fake.calls[-2:] == ["cuMemcpyDtoHAsync", "cuStreamSynchronize"]
    driver.order(QUEUE, Queue(0, 8))
    assert fake.calls[-2:] == ["cuEventRecord", "cuStreamWaitEvent"]
    assert [driver.device_of(address) for address in (0xBEEF, 0xF00, 0xDEAD)] == [3, None, None]
    assert not driver.capturing(QUEUE)
    fake.status = 1
    assert driver.capturing(QUEUE)
    assert not driver.capturing(Queue(0, 1))  # the default stream cannot be captured
