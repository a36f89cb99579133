"""``cupy.ndarray``: an address with a shape. What it holds may change only in its stream's order.

Arithmetic is there as far as the tests of optimizers need it; each operation counts as a launch, as it is one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.gpu.standin import dlpack, runtime
from tests.gpu.standin.devices import Device, get_current_stream
from tests.gpu.standin.log import Entry
from tests.gpu.standin.machine import machine
from tests.gpu.standin.pointers import MemoryPointer, alloc

_IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device."""

    __array_priority__: ClassVar[int] = 100
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape: tuple[int, ...] = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        if strides is None:
            strides = _dense(self.shape, self.dtype.itemsize, order)
        self.strides: tuple[int, ...] = tuple(strides)
        self.data = alloc(self.nbytes) if memptr is None else memptr

    # ---------------------------------------------------------------- what it is

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device(self) -> Device:
        return self.data.device

    @property
    def flags(self) -> Any:
        return SimpleNamespace(
            c_contiguous=_is_dense(self.shape, self.strides, self.itemsize),
            f_contiguous=_is_dense(self.shape[::-1], self.strides[::-1], self.itemsize),
        )

    @property
    def T(self) -> ndarray:  # noqa: N802
        return self.transpose()

    def _host(self) -> Any:
        """The memory as NumPy sees it: for work whose turn it is, and for shapes."""
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        reach = [(n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)]
        low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + self.itemsize
        memory: Any = (ctypes.c_uint8 * (high - low)).from_address(self.data.ptr + low)
        return np.ndarray(self.shape, self.dtype, memory, -low, self.strides)

    def _seen_as(self, view: NDArray[Any]) -> ndarray:
        """The array with the same memory as a view of ``_host``."""
        offset = view.__array_interface__["data"][0] - self.data.ptr if view.size else 0
        return ndarray(view.shape, view.dtype, self.data + offset, view.strides)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.get())

    # ---------------------------------------------------------------- views

    def __getitem__(self, key: Any) -> ndarray:
        host = self._host()
        view = host[key if isinstance(key, tuple) else (key,)] if key is not Ellipsis else host[...]
        if not isinstance(view, np.ndarray):  # CuPy has no scalars: an element is an array of no axes
            view = host[(*(key if isinstance(key, tuple) else (key,)), ...)]
        if view.size and not np.may_share_memory(view, host):
            raise NotImplementedError("the stand-in indexes by numbers and slices alone")
        return self._seen_as(view)

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> ndarray:
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        view = self._host().reshape(wanted, order=order)
        if view.size and not np.may_share_memory(view, self._host()):
            return self.copy(order).reshape(wanted, order=order)
        return self._seen_as(view)

    def ravel(self, order: str = "C") -> ndarray:
        return self.reshape(-1, order=order)

    def transpose(self, *axes: Any) -> ndarray:
        return self._seen_as(self._host().transpose(*axes))

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return self._seen_as(self._host() if dtype is None else self._host().view(dtype))

    # ---------------------------------------------------------------- to and from the host

    def get(
        self, stream: Any = None, order: str = "C", out: NDArray[Any] | None = None, blocking: bool = True
    ) -> NDArray[Any]:
        """A copy on the host; without ``blocking`` it is there when the stream has got that far."""
        host = np.full(self.nbytes, 0xAB, np.uint8).view(self.dtype).reshape(self.shape, order=order)  # type: ignore[call-overload]
        host = host if out is None else out
        with self.device:
            queue = machine().queue((get_current_stream() if stream is None else stream).ptr)
            if queue.capture is not None:
                machine().work.refuse_capture(queue)
            op = machine().ask(queue, Entry("d2h", nbytes=self.nbytes), lambda: host.__setitem__(..., self._host()))
            if blocking:
                machine().synchronise(op, queue, "get")
        result: NDArray[Any] = host
        return result

    def set(self, arr: NDArray[Any], stream: Any = None) -> None:
        """Overwrite with a host array, as it is now."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        with self.device:
            queue = machine().queue((get_current_stream() if stream is None else stream).ptr)
            if queue.capture is not None:
                machine().work.refuse_capture(queue)
            now = arr.copy()
            machine().ask(queue, Entry("h2d", nbytes=self.nbytes), lambda: self._host().__setitem__(..., now))

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise TypeError(_IMPLICIT)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.data.device_id

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; ``stream`` is made to wait for the current one."""
        if stream == 0:
            raise ValueError("On CUDA, `stream=0` is ambiguous, and the standard forbids it")
        with self.device:
            order_streams(get_current_stream().ptr, stream)
        strides, device = self.strides, self.data.device_id
        versioned = max_version is not None and max_version[0] >= 1
        return dlpack.export(self, self.data.ptr, self.shape, strides, self.dtype, device, versioned=versioned)

    # ---------------------------------------------------------------- work on the device

    def fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        work("fill", [self], lambda: self._host().fill(value))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        target = self[key]
        inputs = [value] if isinstance(value, ndarray) else []
        work("copy", [target, *inputs], lambda: target._host().__setitem__(..., _value(value)))

    def copy(self, order: str = "C") -> ndarray:
        return self.astype(self.dtype, order)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        order = "F" if order == "F" or (order in "AK" and self.flags.f_contiguous and self.ndim > 1) else "C"
        new = ndarray(self.shape, dtype, order=order)
        work("copy", [new, self], lambda: new._host().__setitem__(..., self._host()))
        return new

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        shape = np.empty(self.shape, np.int8).sum(axis=axis, keepdims=keepdims).shape
        new = ndarray(shape, dtype or np.empty(0, self.dtype).sum().dtype) if out is None else out
        work("sum", [new, self], lambda: np.sum(self._host(), axis, dtype, new._host(), keepdims))
        result: ndarray = new
        return result

    def __neg__(self) -> ndarray:
        return elementwise(np.negative, (self,))

    def __abs__(self) -> ndarray:
        return elementwise(np.absolute, (self,))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if method != "__call__" or ufunc.nout != 1 or kwargs:
            return NotImplemented
        return elementwise(ufunc, inputs, out[0] if out else None)


ndarray.__hash__ = None


def _value(x: Any) -> Any:
    return x._host() if isinstance(x, ndarray) else x


def _dense(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(strides if order == "F" else reversed(strides))


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and step != expected:
            return 0 in shape
        expected *= n
    return True


def order_streams(first: int, then: int | None) -> None:
    """What DLPack asks of a producer: the consumer's stream waits for the producer's."""
    if then == -1:
        return
    queue = machine().queue(1 if then is None else then)
    source = machine().queue(first)
    if queue is not source:
        event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
        runtime.eventRecord(event, source.handle)
        runtime.streamWaitEvent(queue.handle, event)
        runtime.eventDestroy(event)


def work(name: str, arrays: list[ndarray], run: Callable[[], Any]) -> None:
    """A kernel of CuPy's own, on the current stream."""
    if any(array.data.device_id != machine().device for array in arrays if array.size):
        raise ValueError(
            f"Array device must be same as the current device: array devices = "
            f"{[array.data.device_id for array in arrays]} while current = {machine().device}"
        )
    if arrays[0].size:
        machine().ask(machine().queue(get_current_stream().ptr), Entry("launch", kernel=f"cupy_{name}"), run)


def elementwise(ufunc: Any, inputs: Any, out: ndarray | None = None) -> ndarray:
    """A ufunc, with CuPy's refusal to mix in host arrays."""
    for x in inputs:
        if isinstance(x, np.ndarray) and x.ndim:
            raise TypeError(f"Unsupported type {type(x)}")
    shape = np.broadcast_shapes(*(np.shape(x) if not isinstance(x, ndarray) else x.shape for x in inputs))
    new = out
    if new is None:
        with np.errstate(all="ignore"):
            sample = ufunc(*(np.ones(0, x.dtype) if isinstance(x, ndarray) else x for x in inputs))
        new = ndarray(shape, sample.dtype)
    target = new
    arrays = [target, *(x for x in inputs if isinstance(x, ndarray))]

    def run() -> None:
        with np.errstate(all="ignore"):
            ufunc(*map(_value, inputs), out=target._host(), casting="same_kind")

    work(ufunc.__name__, arrays, run)
    return new


def _install(name: str, ufunc: Any) -> None:
    def forward(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, (self, other))

    def reflected(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, (other, self))

    def in_place(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, (self, other), self)

    setattr(ndarray, f"__{name}__", forward)
    if name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{name}__", reflected)
        setattr(ndarray, f"__i{name}__", in_place)


for _name, _ufunc in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "pow": np.power,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}.items():
    _install(_name, _ufunc)
