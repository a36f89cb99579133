"""The generic door: any object with ``__dlpack__``, read without being consumed.

https://dmlc.github.io/dlpack/latest/c_api.html. The capsule is looked into by ctypes, because
``numpy.from_dlpack`` knows no bfloat16 and no float8, and silently makes up memory where the pointer is NULL.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, numpy_dtype, refuse_dtype
from gradclip_core.errors import UnsafeMemoryError, UnsupportedArrayError, no_memory_for
from gradclip_core.protocol import DType

_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 11: "cpu", 13: "cuda"}
_DEFAULT_STREAM = 1
"""CUDA's legacy default stream, by DLPack's numbering and by CUDA's own."""
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_FLOAT8 = {
    7: "float8_e3m4",
    8: "float8_e4m3",
    9: "float8_e4m3b11fnuz",
    10: "float8_e4m3fn",
    11: "float8_e4m3fnuz",
    12: "float8_e5m2",
    13: "float8_e5m2fnuz",
    14: "float8_e8m0fnu",
}
_READ_ONLY = 1


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_get_name = ctypes.pythonapi.PyCapsule_GetName
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, (ctypes.py_object,)


class DlpackDoor:
    """See ``Door``."""

    def dock(self, x: Any) -> Docked:
        """Whatever the object exports; read-only unless it says, in a versioned capsule, that it is not."""
        device, capsule = _export(x)
        if capsule is None:
            return Docked(x, self, 0, (), (), SUPPORTED["float32"][0], device=device)
        docked = self._opened(x, capsule)
        if device != "cpu":
            # Reads are ordered by the producer, for the stream that it was given. Nothing would order what
            # it does next behind a write of ours.
            docked.device, docked.stream, docked.lent = device, _DEFAULT_STREAM, True
            docked.read_only = docked.read_only or (
                f"a {type(x).__name__} comes in by DLPack, which has no way to make its framework wait for a write"
            )
        return docked

    def _opened(self, x: Any, capsule: Any) -> Docked:
        name = _get_name(capsule)
        if name == b"dltensor_versioned":
            versioned = _ManagedVersioned.from_address(_get_pointer(capsule, name))
            if versioned.major != 1:
                raise Refused(
                    UnsupportedArrayError,
                    f"it exports DLPack {versioned.major}.{versioned.minor}, and 1.x is understood",
                    "Pass it as a NumPy array",
                )
            tensor = versioned.tensor
            read_only = "its DLPack capsule is flagged read-only" if versioned.flags & _READ_ONLY else ""
        elif name == b"dltensor":
            tensor = _Managed.from_address(_get_pointer(capsule, name)).tensor
            read_only = (
                f"a {type(x).__name__} exports an unversioned DLPack capsule, which cannot say that it may be "
                "written; immutable arrays (JAX, TensorFlow, MLX) look like this"
            )
        else:
            raise Refused(UnsupportedArrayError, f"its capsule is named {name!r}", "Pass it as a NumPy array")
        return _describe(x, self, tensor, capsule, read_only)

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """Memory in C order; ``finish`` hands it to the array's own framework."""
        if docked.device != "cpu":
            return self._new_on_device(docked)
        if not hasattr(docked.array, "__array_namespace__"):
            kind = type(docked.array)
            raise UnsupportedArrayError(
                f"a new {kind.__module__}.{kind.__name__}",
                "the type has no __array_namespace__ to make one with",
                "Pass it as a NumPy array, or use the function that works in place, with an underscore",
            )
        stored = docked.dtype if dtype is None else dtype
        itemsize = docked.itemsize if dtype is None else dtype.itemsize
        new = np.empty(docked.shape, f"V{itemsize}")
        return Docked(new, self, new.ctypes.data, new.shape, new.strides, stored, docked.is_complex, contiguous=True)

    def _new_on_device(self, docked: Docked) -> Docked:
        """CuPy's memory: it can be given to any framework by DLPack, and is freed in the order of its stream."""
        cupy = sys.modules.get("cupy")
        if cupy is None or not (hasattr(docked.array, "__array_namespace__")):
            raise UnsupportedArrayError(
                f"a new {type(docked.array).__module__}.{type(docked.array).__name__} on {docked.device}",
                "it is made by CuPy and given to the array's own namespace, and one of the two is not there",
                "Install CuPy and import it, or pass CuPy arrays or PyTorch tensors",
            )
        index = int(docked.device.partition(":")[2])
        try:
            with cupy.cuda.Device(index), cupy.cuda.Stream.null:
                new = cupy.empty(docked.shape, numpy_dtype(docked.dtype, docked.is_complex))
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise no_memory_for(docked.device, docked.shape, error) from error
        pointer = int(new.data.ptr) if new.size else 0
        return Docked(
            new,
            self,
            pointer,
            new.shape,
            new.strides,
            docked.dtype,
            docked.is_complex,
            device=docked.device,
            contiguous=True,
            stream=_DEFAULT_STREAM,
        )

    def finish(self, new: Docked, like: Docked) -> Any:
        """The values as an array of the original's own namespace."""
        namespace = like.array.__array_namespace__()
        if new.device != "cpu":
            cupy = sys.modules["cupy"]
            # CuPy lets the taker wait for its current stream, which has to be the one that wrote.
            with cupy.cuda.Device(int(new.device.partition(":")[2])), cupy.cuda.Stream.null:
                return namespace.from_dlpack(new.array)
        values, device = new.array.view(numpy_dtype(new.dtype, new.is_complex)), getattr(like.array, "device", None)
        try:
            return namespace.asarray(values, device=device)  # the array API's keyword
        except TypeError:  # a namespace without devices
            return namespace.asarray(values)

    def after_write(self, written: Sequence[Any]) -> None:
        """DLPack has no way to say that memory has changed."""


def _export(x: Any) -> tuple[str, Any]:
    """The device, and the capsule where that is host memory or a CUDA device's."""
    kind = f"{type(x).__module__}.{type(x).__name__}"
    try:
        code, index = x.__dlpack_device__()
        device = _DEVICES.get(int(code), f"DLPack device type {int(code)}")
        # On a device the consumer names its stream, and the producer lets that wait for the values.
        stream = {} if device == "cpu" else {"stream": _DEFAULT_STREAM}
        if device not in ("cpu", "cuda"):
            return f"{device}:{index}", None
        where = device if device == "cpu" else f"{device}:{index}"
        try:
            return where, x.__dlpack__(max_version=(1, 3), **stream)
        except TypeError:
            return where, x.__dlpack__(**stream)
    except Exception as error:
        # Tracers, deleted and sharded arrays each fail in a way of their own.
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise Refused(
            UnsupportedArrayError,
            f"a {kind} does not export its memory by DLPack ({why})",
            "Pass a concrete array on one device, outside jit, grad and vmap",
        ) from error


def _describe(x: Any, door: DlpackDoor, tensor: _Tensor, capsule: Any, read_only: str) -> Docked:
    code, bits = tensor.dtype.code, tensor.dtype.bits
    name = f"{_CODES.get(code, f'DLPack type code {code} of ')}{bits}"
    if code in _FLOAT8 and bits == 8:
        name = _FLOAT8[code]
    if name not in SUPPORTED or tensor.dtype.lanes != 1:
        raise refuse_dtype(name if tensor.dtype.lanes == 1 else f"{name} x {tensor.dtype.lanes} lanes")
    storage, is_complex = SUPPORTED[name]
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    itemsize = tensor.dtype.bits // 8
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * itemsize for axis in range(tensor.ndim))
    else:
        strides = np.empty(shape, f"V{itemsize}").strides
    if not tensor.data and 0 not in shape:
        raise Refused(
            UnsafeMemoryError,
            f"a {type(x).__name__} of shape {shape} exports a NULL data pointer",
            "Its values are elsewhere, or were freed: gather or materialise it first",
        )
    pointer = (tensor.data or 0) + tensor.byte_offset
    return Docked(x, door, pointer, shape, strides, storage, is_complex, read_only=read_only, owner=capsule)


DOOR = DlpackDoor()
