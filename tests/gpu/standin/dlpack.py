"""DLPack capsules of device memory, made and taken apart by ctypes: no library here has any to give."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CUDA = 2
_KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_CODES = {code: kind for kind, code in _KINDS.items()}
_BFLOAT = 4


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


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_api: Any = ctypes.PyDLL(None)  # prototypes of our own: ``ctypes.pythonapi`` is shared with whoever else sets them
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = _api.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _destructor)
_name_of = _api.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
_pointer_of = _api.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
_rename = _api.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)

_exported: dict[int, tuple[Any, ...]] = {}
"""What each capsule that has not been deleted holds on to."""
_NAMES = {False: (b"dltensor", b"used_dltensor"), True: (b"dltensor_versioned", b"used_dltensor_versioned")}


def _delete(address: int) -> None:
    _exported.pop(address, None)


def _destroy(capsule: int) -> None:
    # A consumer renames the capsule, and calls the deleter itself.
    if (name := _name_of(capsule)) in (_NAMES[False][0], _NAMES[True][0]):
        _exported.pop(_pointer_of(capsule, name), None)


_on_delete, _on_destroy = _Deleter(_delete), _destructor(_destroy)


def export(
    owner: object,
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: np.dtype[Any],
    device: int,
    *,
    versioned: bool = False,
    read_only: bool = False,
) -> Any:
    """A capsule of CUDA memory; ``strides`` are in bytes."""
    ndim = len(shape)
    sizes = (ctypes.c_int64 * ndim)(*shape)
    steps = (ctypes.c_int64 * ndim)(*(stride // dtype.itemsize for stride in strides))
    managed: Any = _ManagedVersioned(1, 1) if versioned else _Managed()
    managed.deleter = _on_delete
    if versioned:
        managed.flags = int(read_only)
    tensor = managed.tensor
    tensor.data, tensor.device, tensor.ndim = address, _Device(CUDA, device), ndim
    code = _BFLOAT if dtype.name == "bfloat16" else _KINDS[dtype.kind]
    tensor.dtype = _DataType(code, dtype.itemsize * 8, 1)
    tensor.shape, tensor.strides = sizes, steps
    where = ctypes.addressof(managed)
    _exported[where] = (managed, sizes, steps, owner)
    return _new(where, _NAMES[versioned][0], _on_destroy)


@dataclass(frozen=True)
class Imported:
    """What a capsule says. ``strides`` are in bytes; ``None`` where the memory is in C order."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    kind: int
    device: int
    read_only: bool
    owner: object


class _Owner:
    """Calls the deleter when the last user of the memory is gone."""

    def __init__(self, managed: Any) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.addressof(self._managed))


def consume(capsule: Any) -> Imported:
    """Take a capsule over, as a consumer does."""
    name = _name_of(id(capsule))
    versioned = name == _NAMES[True][0]
    if not versioned and name != _NAMES[False][0]:
        raise BufferError(f"a capsule named {name!r} has been used already, or is none of DLPack")
    address = _pointer_of(id(capsule), name)
    managed: Any = (_ManagedVersioned if versioned else _Managed).from_address(address)
    tensor = managed.tensor
    used = _NAMES[versioned][1]
    _rename(id(capsule), used)
    code, itemsize = tensor.dtype.code, tensor.dtype.bits // 8
    if code == _BFLOAT:
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(f"{_CODES[code]}{itemsize}")
    ndim = tensor.ndim
    return Imported(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[:ndim]),
        tuple(step * itemsize for step in tensor.strides[:ndim]) if tensor.strides else None,
        dtype,
        tensor.device.kind,
        tensor.device.index,
        bool(versioned and managed.flags & 1),
        _Owner(managed),
    )
