"""A JAX-like producer: its streams are ordered, its memory is a device's, and it cannot be written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.standin import Machine
from tests.gpu.standin.jax_cuda import JaxCudaArray


def test_it_is_taken_by_dlpack(standin: Machine, cp: Any) -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = JaxCudaArray(host, device=1)
    assert x.__dlpack_device__() == (2, 1)
    assert 'capsule object "dltensor"' in repr(x.__dlpack__(stream=-1, max_version=(1, 1)))
    y = cp.from_dlpack(x)
    assert (y.device.id, y.shape, y.dtype) == (1, (2, 3), np.float32)
    assert cp.cuda.runtime.pointerGetAttributes(y.data.ptr).device == 1
    assert y.get().tolist() == np.asarray(x).tolist() == host.tolist()
    assert x.streams == [-1, 1]
    with pytest.raises(TypeError, match="immutable"):
        x[0] = 1
    made = x.__array_namespace__().asarray(host + 1, device=None)
    assert np.asarray(made).tolist() == (host + 1).tolist()


@pytest.mark.parametrize(("stream", "ready"), [("own", True), (1, True), (None, True), (-1, False)])
def test_the_consumers_stream_waits(late: Machine, cp: Any, stream: Any, ready: bool) -> None:
    own = cp.cuda.Stream(non_blocking=True)
    x = JaxCudaArray(np.ones(2, np.float32))
    handle = own.ptr if stream == "own" else stream
    capsule = x.__dlpack__(stream=handle, max_version=(1, 1))
    assert x.streams == [handle]
    cp.cuda.runtime.streamSynchronize(own.ptr if stream == "own" else 0)
    assert (x._host().tolist() == [1, 1]) is ready
    del capsule
    with pytest.raises(ValueError, match="forbids"):
        x.__dlpack__(stream=0)


def test_the_memory_lives_as_long_as_its_capsule(standin: Machine, cp: Any) -> None:
    y = cp.from_dlpack(JaxCudaArray(np.ones(2, np.float32)))
    cp.empty(1)
    assert y.get().tolist() == [1, 1]
    address = y.data.ptr
    del y
    standin.reap()
    assert cp.cuda.runtime.pointerGetAttributes(address).type == 0
