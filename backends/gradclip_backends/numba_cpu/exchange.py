"""Where arrays' memory is, read by compiled code: ``Manifest`` from a list of one framework's arrays.

PyTorch's and Paddle's tensors say it through DLPack's C exchange API (``__dlpack_c_exchange_api__``, DLPack 1.3), which
fills in a ``DLTensor`` without making a capsule; NumPy's arrays through ``PyArrayObject_fields``, which is
NumPy's public C ABI. Both are some 0.05 µs an array, where Python attributes are 0.3 to 1 µs.

``read_arrays`` answers None to whatever it does not know to be plain dense host memory.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from gradclip_backends.numba_cpu.elements import view
from gradclip_backends.numba_cpu.jit import holding_the_gil, intrinsic
from gradclip_backends.numba_cpu.lines import ask
from gradclip_core.protocol import DTYPES, FLOAT32, Manifest

# DLTensor: void *data; DLDevice {int32 type, id}; int32 ndim; DLDataType {uint8 code, bits; uint16 lanes};
# int64 *shape, *strides; uint64 byte_offset.
_DL_DEVICE, _DL_NDIM, _DL_TYPE, _DL_SHAPE, _DL_STRIDES, _DL_OFFSET, _DL_SIZE = 8, 16, 20, 24, 32, 40, 48
_DL_CPU = 1
_DL_TYPES = {"float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32), "float64": (2, 64)}
# PyArrayObject_fields, behind the object's header: char *data; int nd; npy_intp *dimensions, *strides;
# PyObject *base; PyArray_Descr *descr; int flags.
_HEADER = object.__basicsize__
_NP_DATA, _NP_NDIM, _NP_SHAPE, _NP_STRIDES, _NP_DESCR, _NP_FLAGS = (_HEADER + at for at in (0, 8, 16, 24, 40, 48))
_NP_PLAIN, _NP_READABLE = 0x0100 | 0x0400, 0x0100  # NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE
_MOST_AXES = 16


@intrinsic
def _describe(context: Any, function: Any, array: Any, tensor: Any) -> Any:
    """``int function(PyObject *array, DLTensor *tensor)``. Needs the GIL."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [byte, byte])
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(function, [builder.inttoptr(arg, byte) for arg in args[1:]])

    return types.int32(types.uint64, types.uint64, types.uint64), generate


@holding_the_gil
def _elements(ndim: Any, shape: Any, strides: Any, step: Any) -> Any:
    """Number of elements, if they fill one stretch of memory in any order of the axes; -1 otherwise."""
    count = 1
    for axis in range(ndim):
        count *= shape[axis]
    if count == 0 or ndim == 0:
        return count
    row_major = True
    expected = step
    for axis in range(ndim - 1, -1, -1):
        row_major = row_major and (shape[axis] == 1 or strides[axis] == expected)
        expected *= shape[axis]
    if row_major:
        return count
    expected = step
    for _ in range(ndim):  # the next axis is the one whose stride is what there is so far
        for axis in range(ndim):
            if shape[axis] != 1 and strides[axis] == expected:
                expected *= shape[axis]
                break
    return count if expected == count * step else -1


@holding_the_gil
def _place(number: Any, numbers: Any) -> Any:
    """Where ``number`` is among a few; -1 if it is not."""
    for i in range(numbers.size):
        if numbers[i] == number:
            return i
    return -1


@holding_the_gil
def _read_tensors(
    function: Any, arrays: Any, tensor: Any, numbers: Any, pointers: Any, lengths: Any, kinds: Any
) -> Any:
    """Fill in the last three; how many tensors could be read before one could not."""
    at = np.uint64(tensor.ctypes.data)
    for i in range(arrays.size):
        if i + 8 < arrays.size:  # the object, and what its first field behind the header points to: the tensor itself
            ask(arrays[i + 8])
            tensor_behind = view(arrays[i + 4] + np.uint64(_HEADER), 1, np.uint64(0))[0]
            for line in range(4):
                ask(tensor_behind + np.uint64(64 * line))
        if _describe(function, arrays[i], at) != 0:
            return i
        device, ndim, number = tensor[_DL_DEVICE // 4], tensor[_DL_NDIM // 4], tensor[_DL_TYPE // 4]
        words = view(at, _DL_SIZE // 8, np.uint64(0))
        kind = _place(number, numbers)
        if device != _DL_CPU or kind < 0 or ndim > _MOST_AXES or words[_DL_STRIDES // 8] == 0:
            return i
        shape = view(words[_DL_SHAPE // 8], ndim, np.int64(0))
        strides = view(words[_DL_STRIDES // 8], ndim, np.int64(0))
        count = _elements(ndim, shape, strides, 1)
        if count < 0 or (count > 0 and words[0] == 0):
            return i
        pointers[i], lengths[i], kinds[i] = words[0] + words[_DL_OFFSET // 8], count, kind
    return arrays.size


@holding_the_gil
def _read_ndarrays(
    arrays: Any, needed: Any, descriptors: Any, itemsizes: Any, pointers: Any, lengths: Any, kinds: Any
) -> Any:
    """The same of NumPy's arrays, whose flags have to have the bits ``needed``."""
    for i in range(arrays.size):
        at = arrays[i]
        ndim = view(at + np.uint64(_NP_NDIM), 1, np.int32(0))[0]
        flags = view(at + np.uint64(_NP_FLAGS), 1, np.int32(0))[0]
        kind = _place(view(at + np.uint64(_NP_DESCR), 1, np.uint64(0))[0], descriptors)
        if kind < 0 or ndim > _MOST_AXES or flags & needed != needed:
            return i
        shape = view(view(at + np.uint64(_NP_SHAPE), 1, np.uint64(0))[0], ndim, np.int64(0))
        strides = view(view(at + np.uint64(_NP_STRIDES), 1, np.uint64(0))[0], ndim, np.int64(0))
        count = _elements(ndim, shape, strides, itemsizes[kind])
        if count < 0:
            return i
        pointers[i], lengths[i], kinds[i] = view(at + np.uint64(_NP_DATA), 1, np.uint64(0))[0], count, kind
    return arrays.size


def read_arrays(leaves: Sequence[Any], *, only_read: bool = False) -> Manifest | None:
    """The memory of arrays that are all of one type; None if one of them is not plain dense host memory.

    ``only_read``: NumPy's arrays that are not writeable will do.
    """
    if numba.config.DISABLE_JIT or sys.implementation.name != "cpython":  # where id() is an address
        return None
    reader = _reader(type(leaves[0]))
    return None if reader is None else reader.read(leaves, only_read)


class _Reader:
    """How one type's arrays are read."""

    def __init__(self, names: Sequence[str]) -> None:
        self._know(names)

    def _know(self, names: Sequence[str]) -> None:
        self._codes = np.array([list(DTYPES).index(name) for name in names], np.int64)
        self._itemsizes = np.array([DTYPES[name].itemsize for name in names], np.int64)

    def read(self, leaves: Sequence[Any], only_read: bool = False) -> Manifest | None:
        """See ``read_arrays``."""
        count = len(leaves)
        arrays = np.fromiter(map(id, leaves), np.uint64, count)
        pointers, lengths, kinds = np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int64)
        try:
            if self.fill(arrays, pointers, lengths, kinds, only_read) < count:
                return None
        except SystemError:  # a tensor that is none in memory: the exchange function has raised
            return None
        return Manifest(pointers, lengths, self._codes[kinds], leaves)

    def fill(self, arrays: Any, pointers: Any, lengths: Any, kinds: Any, only_read: bool) -> int:
        """Read as many as can be read."""
        raise NotImplementedError


class _Tensors(_Reader):
    def __init__(self, capsule: Any) -> None:
        super().__init__(list(_DL_TYPES))
        words = (ctypes.c_uint64 * 7).from_address(_capsule_pointer(capsule, b"dlpack_exchange_api"))
        self._function = np.uint64(words[5])  # dltensor_from_py_object_no_sync
        self._numbers = np.array([code | bits << 8 | 1 << 16 for code, bits in _DL_TYPES.values()], np.int32)

    def fill(self, arrays: Any, pointers: Any, lengths: Any, kinds: Any, only_read: bool) -> int:
        """See ``_Reader``."""
        tensor = np.zeros(_DL_SIZE // 4, np.int32)
        return int(_read_tensors(self._function, arrays, tensor, self._numbers, pointers, lengths, kinds))


class _Ndarrays(_Reader):
    _own = ("float16", "float32", "float64")

    def __init__(self) -> None:
        super().__init__(self._own)
        self._descriptors = np.array([id(np.dtype(name)) for name in self._own], np.uint64)

    def fill(self, arrays: Any, pointers: Any, lengths: Any, kinds: Any, only_read: bool) -> int:
        """See ``_Reader``."""
        if self._descriptors.size == len(self._own) and (more := sys.modules.get("ml_dtypes")):
            self._know([*self._own, "bfloat16"])
            self._descriptors = np.append(self._descriptors, np.uint64(id(np.dtype(more.bfloat16))))
        needed = _NP_READABLE if only_read else _NP_PLAIN
        return int(_read_ndarrays(arrays, needed, self._descriptors, self._itemsizes, pointers, lengths, kinds))


def _capsule_pointer(capsule: Any, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    pointer: int = get(capsule, name)
    return pointer


_readers: dict[type, _Reader | None] = {}
# How tensors are made of NumPy's arrays, whose memory they share.
_TENSORS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("paddle", "Tensor"): lambda array: sys.modules["paddle"].from_dlpack(array),
    ("torch", "Tensor"): lambda array: sys.modules["torch"].from_numpy(array),
}


def _reader(kind: type) -> _Reader | None:
    """The reader of a type, which has shown that it reads right; None for other types."""
    if kind not in _readers:
        _readers[kind] = None
        reader = _make_reader(kind)
        if reader is not None and _reads_right(reader, kind):
            _readers[kind] = reader
    return _readers[kind]


def _make_reader(kind: type) -> _Reader | None:
    if kind is np.ndarray:
        return _Ndarrays()
    if (kind.__module__, kind.__name__) in _TENSORS:
        capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
        return None if capsule is None else _Tensors(capsule)
    return None


def _reads_right(reader: _Reader, kind: type) -> bool:
    """Both lean on layouts in memory: tried out once in a process, on arrays whose answers are known."""
    shapes = ((3, 5), (), (0, 2))
    samples = [np.zeros(shape, np.float32) for shape in shapes]
    arrays: list[Any] = list(samples)
    if kind is not np.ndarray:
        arrays = [_TENSORS[kind.__module__, kind.__name__](sample) for sample in samples]
    try:
        found = reader.read(arrays)
    except Exception:  # whatever is wrong with it, the dock is right
        return False
    expected = [sample.ctypes.data for sample in samples]
    return (
        found is not None
        and found.pointers[:2].tolist() == expected[:2]
        and found.lengths.tolist() == [15, 1, 0]
        and found.distinct == [FLOAT32]
    )
