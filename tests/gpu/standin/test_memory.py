"""Allocations, arrays, copies, and a machine that is broken on demand."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.gpu.engine import KernelFault
from tests.gpu.standin import Machine, dlpack
from tests.gpu.standin.memory import FREED, FRESH, as_bytes
from tests.gpu.standin.python_engine import ZEROS

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64, np.complex128]


def test_fresh_and_freed_memory(standin: Machine, cp: Any) -> None:
    x = cp.empty(3, np.float32)
    address = x.data.ptr
    assert address % 512 == 0
    assert set(x.get().tobytes()) == {FRESH}
    owner = standin.memory.find(address)
    del x
    cp.zeros(1)
    assert owner is not None
    assert standin.memory.find(address) is None
    assert set(as_bytes(owner.address, 12).tolist()) == {FREED}
    assert cp.empty(0).data.ptr == 0


def test_a_write_before_an_allocation_is_found_when_it_is_freed(cp: Any) -> None:
    x = cp.ones(5, np.float32)
    as_bytes(x.data.ptr - 1, 1)[:] = 0
    del x
    with pytest.raises(KernelFault, match="before this allocation was freed"):
        cp.empty(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays(cp: Any, dtype: Any) -> None:
    host = np.arange(24).reshape(2, 3, 4).astype(dtype)
    x = cp.asarray(host)
    for got, want in [
        (x, host),
        (x[1], host[1]),
        (x[..., ::-2], host[..., ::-2]),
        (x.T, host.T),
        (x.transpose(1, 0, 2), host.transpose(1, 0, 2)),
        (x.reshape(6, -1), host.reshape(6, -1)),
        (x[0, 1, 2], host[0, 1, 2, ...]),
        (x[:, :0], host[:, :0]),
    ]:
        assert (got.shape, got.strides, got.dtype) == (want.shape, want.strides, want.dtype)
        assert (got.size, got.nbytes, got.ndim, got.itemsize) == (want.size, want.nbytes, want.ndim, want.itemsize)
        assert got.flags.c_contiguous == want.flags.c_contiguous
        assert got.flags.f_contiguous == want.flags.f_contiguous
        assert got.get().tobytes() == want.tobytes()
    assert x[1].data.ptr == x.data.ptr + host.strides[0]
    assert cp.asarray(np.asfortranarray(host)).strides == np.asfortranarray(host).strides
    assert cp.empty_like(x.T).strides == host.T.strides
    assert cp.asarray(x) is x
    assert cp.asnumpy(cp.ascontiguousarray(x.T)).tobytes() == host.T.tobytes()


def test_arithmetic(standin: Machine, cp: Any) -> None:
    host = np.array([1, 4, 9], np.float32)
    x = cp.asarray(host)
    y = (2 * x + x / 2 - 1) * np.float32(3)
    assert y.dtype == np.float32
    assert y.get().tolist() == ((2 * host + host / 2 - 1) * np.float32(3)).tolist()
    standin.log.clear()
    x *= np.float32(2)
    assert standin.log.counts() == {**ZEROS, "launch": 1}
    x[1:] = -x[1:]
    assert x.get().tolist() == [2, -8, -18]
    assert float(x.sum()) == -24
    assert (cp.sqrt(cp.full(2, 4.0)) == 2).get().all()
    for mix in (lambda: x + host, lambda: host + x, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match=r"Unsupported type|Implicit conversion"):
            mix()
    with pytest.raises(ValueError, match="cannot be used for fill"):
        x[:] = host
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


def test_counts(standin: Machine, cp: Any) -> None:
    x = cp.zeros(4, np.float32)
    assert standin.log.counts() == {**ZEROS, "alloc": 1, "memset": 1}
    standin.log.clear()
    x.set(np.ones(4, np.float32))
    host = np.empty(4, np.float32)
    run = cp.cuda.runtime
    run.memcpyAsync(host.ctypes.data, x.data.ptr, 16, run.memcpyDeviceToHost, 0)
    assert host.tolist() == [1, 1, 1, 1]
    assert standin.log.counts() == {**ZEROS, "h2d": 1, "d2h": 1, "sync": 1}
    assert standin.log.of("sync")[0].why == "memcpyAsync into pageable memory"


def test_what_cuda_knows_of_a_pointer(cp: Any) -> None:
    run = cp.cuda.runtime
    with cp.cuda.Device(1):
        x = cp.empty(4)
    on_device = run.pointerGetAttributes(x.data.ptr + 31)
    assert (on_device.type, on_device.device) == (2, 1)
    unknown = run.pointerGetAttributes(np.empty(4).ctypes.data)
    assert (unknown.type, unknown.device) == (0, -2)
    pinned = cp.cuda.alloc_pinned_memory(16)
    assert run.pointerGetAttributes(pinned.ptr).type == 1
    assert np.frombuffer(pinned, np.float32, 4).ctypes.data == pinned.ptr
    assert cp.cuda.UnownedMemory(x.data.ptr, 32, x).device_id == 1
    with pytest.raises(run.CUDARuntimeError, match="invalid argument"):
        run.memsetAsync(x.data.ptr, 0, 33, 0)
    with pytest.raises(run.CUDARuntimeError, match="invalid argument"):
        run.memcpyAsync(x.data.ptr, x.data.ptr, 8, run.memcpyHostToDevice, 0)


def test_dlpack_round_trip(cp: Any) -> None:
    for dtype in DTYPES:
        x = cp.asarray(np.arange(6).reshape(2, 3).astype(dtype)).T
        y = cp.from_dlpack(x)
        assert (y.data.ptr, y.shape, y.strides, y.dtype) == (x.data.ptr, x.shape, x.strides, x.dtype)
    capsule = x.__dlpack__(max_version=(1, 0))
    assert 'capsule object "dltensor_versioned"' in repr(capsule)
    dlpack.consume(capsule)
    with pytest.raises(BufferError, match="used already"):
        dlpack.consume(capsule)
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported"):
        cp.from_dlpack(np.ones(3))
    with pytest.raises(ValueError, match="stream=0"):
        x.__dlpack__(stream=0)


def test_capsules_are_freed(cp: Any) -> None:
    before = len(dlpack._exported)
    x = cp.ones(3)
    unused, y = x.__dlpack__(), cp.from_dlpack(x)
    assert len(dlpack._exported) == before + 2
    del unused, y
    assert len(dlpack._exported) == before


@pytest.mark.parametrize(("fault", "status"), [("no_driver", 35), ("no_device", 100)])
def test_no_gpu(standin: Machine, cp: Any, fault: str, status: int) -> None:
    setattr(standin.faults, fault, True)
    run = cp.cuda.runtime
    assert not cp.cuda.is_available()
    assert run.driverGetVersion() == (0 if fault == "no_driver" else 13000)
    for call in (run.getDeviceCount, lambda: cp.empty(3), cp.cuda.Stream, cp.RawModule(code="scale").compile):
        with pytest.raises(run.CUDARuntimeError) as caught:
            call()
        assert caught.value.status == status


def test_out_of_memory(standin: Machine, cp: Any) -> None:
    standin.faults.out_of_memory_at = 2
    x = cp.empty(10, np.uint8)
    for _ in range(2):
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match=r"allocating 800 bytes .*far: 10 bytes"):
            cp.empty(100)
    standin.faults.out_of_memory_at = None
    assert cp.empty_like(x).size == 10


def test_devices(standin: Machine, cp: Any) -> None:
    assert cp.cuda.runtime.getDeviceCount() == 2
    device = cp.cuda.Device(1)
    assert (device.attributes["MultiProcessorCount"], device.compute_capability) == (4, "90")
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"), cp.cuda.Device(2):
        pass
    assert cp.cuda.Device().id == 0
    device.use()
    assert cp.cuda.Device().id == 1
