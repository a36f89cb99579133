"""What a JAX array on a GPU is to a DLPack consumer: immutable, unversioned, and ready in its own time.

It is computed on a stream of its own that nobody else waits for, as XLA's are; the stream that a consumer passes
is made to wait for it. JAX itself needs no patching: nothing here imports it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.standin import dlpack
from tests.gpu.standin.array import order_streams
from tests.gpu.standin.devices import Device
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import machine
from tests.gpu.standin.memory import as_bytes


class JaxCudaArray:
    """An array on a simulated device. ``streams`` is what consumers have passed, in order."""

    def __init__(self, values: NDArray[Any], device: int = 0) -> None:
        here = machine()
        values = np.array(values, order="C")
        self._machine, self._device_id = here, device
        self._shape, self._dtype = values.shape, values.dtype
        self.streams: list[int | None] = []
        self._taken: object = None
        with Device(device):
            self._queue = here.new_queue(blocking=False)
            self._address = here.allocate(values.nbytes, self._queue.handle, self, device).address
            # The result is there when XLA has computed it.
            here.ask(self._queue, Entry("launch", kernel="xla"), lambda: self._host().__setitem__(..., values))

    @classmethod
    def taking(cls, array: Any) -> JaxCudaArray:
        """The memory of a CuPy array, as ``jax.dlpack.from_dlpack`` takes it: on a stream of JAX's own."""
        taken = object.__new__(cls)
        taken._machine, taken._device_id = machine(), array.device.id
        taken._shape, taken._dtype, taken._address, taken.streams = array.shape, array.dtype, array.data.ptr, []
        with Device(taken._device_id):
            taken._queue = taken._machine.new_queue(blocking=False)
            taken._taken = array.__dlpack__(stream=taken._queue.handle), array
        return taken

    shape = property(lambda self: self._shape)
    dtype = property(lambda self: self._dtype)
    ndim = property(lambda self: len(self._shape))
    size = property(lambda self: int(np.prod(self._shape, dtype=np.int64)))
    nbytes = property(lambda self: self.size * self._dtype.itemsize)

    def _host(self) -> Any:
        return _at(self._address, self._shape, self._dtype)

    def block_until_ready(self) -> JaxCudaArray:
        """Wait on the host."""
        self._machine.synchronise(None, self._queue, "block_until_ready")
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # JAX converts implicitly, by a blocking copy.
        self._machine.log.add(Entry("d2h", self._device_id, self._queue.handle, self.nbytes))
        self.block_until_ready()
        return np.array(self._host(), dtype)

    def __setitem__(self, key: object, value: object) -> None:
        raise TypeError("JAX arrays are immutable and do not support in-place item assignment.")

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        def asarray(values: Any, *, device: Any = None) -> JaxCudaArray:
            return JaxCudaArray(np.asarray(values), self._device_id)

        return SimpleNamespace(asarray=asarray, from_dlpack=JaxCudaArray.taking, __name__="jax.numpy")

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device_id

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        self.streams.append(stream)
        if stream == 0:
            raise ValueError("stream=0 is ambiguous, and the standard forbids it")
        with Device(self._device_id):
            order_streams(self._queue.handle, stream)
        dtype = np.dtype(self._dtype)
        strides = np.empty(self._shape, dtype).strides
        return dlpack.export(self, self._address, self._shape, strides, dtype, self._device_id)


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    seen: NDArray[Any] = as_bytes(address, size).view(dtype).reshape(shape)
    return seen
