"""``cupy``'s functions that make arrays, and the few that work on them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.standin import dlpack, runtime
from tests.gpu.standin.array import elementwise, ndarray
from tests.gpu.standin.devices import Device, get_current_stream
from tests.gpu.standin.pointers import MemoryPointer, UnownedMemory

Shape = int | tuple[int, ...]


def empty(shape: Shape, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Shape, dtype: Any = float, order: str = "C") -> ndarray:
    new = ndarray(shape, dtype, order=order)
    new.data.memset_async(0, new.nbytes)
    return new


def full(shape: Shape, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    new = ndarray(shape, np.array(fill_value).dtype if dtype is None else dtype, order=order)
    new.fill(fill_value)
    return new


def ones(shape: Shape, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def _like(a: ndarray, order: str) -> str:
    return "F" if order == "F" or (order in "AK" and a.flags.f_contiguous and not a.flags.c_contiguous) else "C"


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Shape | None = None
) -> ndarray:
    new_shape = prototype.shape if shape is None else shape
    alike = prototype.flags.c_contiguous or prototype.flags.f_contiguous
    if order == "K" and shape is None and not alike:
        # As CuPy: dense, with the axes in the order of their strides.
        kind = np.dtype(dtype or prototype.dtype)
        strides, step = [0] * prototype.ndim, kind.itemsize
        for axis in sorted(range(prototype.ndim), key=lambda i: (abs(prototype.strides[i]), -i)):
            strides[axis] = step
            step *= prototype.shape[axis]
        return ndarray(new_shape, kind, strides=tuple(strides))
    return empty(new_shape, dtype or prototype.dtype, _like(prototype, order))


def zeros_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Shape | None = None
) -> ndarray:
    return zeros(a.shape if shape is None else shape, dtype or a.dtype, _like(a, order))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """A new array on the current device, from the host or from an array that is on it."""
    if isinstance(obj, ndarray):
        wanted = obj.dtype if dtype is None else np.dtype(dtype)
        if obj.data.device_id != runtime.getDevice():
            raise NotImplementedError("the stand-in copies no arrays between devices")
        same_order = order in "AK" or (obj.flags.c_contiguous if order == "C" else obj.flags.f_contiguous)
        return obj if not copy and wanted == obj.dtype and same_order else obj.astype(wanted, order)
    host = np.array(obj, dtype, order=order)  # type: ignore[call-overload]
    host = host if host.ndim >= ndmin else host.reshape((1,) * (ndmin - host.ndim) + host.shape)
    new = ndarray(host.shape, host.dtype, order="F" if not host.flags.c_contiguous else "C")
    if new.size:
        new.set(host)
        if blocking:
            get_current_stream().synchronize()
    return new


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy, order or "K", blocking=blocking)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, False, "C", ndmin=1)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: NDArray[Any] | None = None, *, blocking: bool = True
) -> NDArray[Any]:
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """The producer's memory, once the current stream has been made to wait for it."""
    kind, index = array.__dlpack_device__()
    if int(kind) != dlpack.CUDA:
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))` instead."
        )
    with Device(int(index)):
        stream = get_current_stream().ptr or 1
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 1))
        except TypeError:
            capsule = array.__dlpack__(stream=stream)
    got = dlpack.consume(capsule)
    size = int(np.prod(got.shape)) * got.dtype.itemsize
    memory = UnownedMemory(got.address, size, got.owner, got.device)
    return ndarray(got.shape, got.dtype, MemoryPointer(memory, 0), got.strides)


def sqrt(x: ndarray, out: ndarray | None = None) -> ndarray:
    return elementwise(np.sqrt, (x,), out)


def isfinite(x: ndarray, out: ndarray | None = None) -> ndarray:
    return elementwise(np.isfinite, (x,), out)


def get_array_module(*args: Any) -> Any:
    return sys.modules["cupy"] if any(isinstance(x, ndarray) for x in args) else np
