"""``.safetensors``: the format's own library judges a file, and this reads its bytes.

The library's NumPy interface gives neither metadata nor bfloat16 in all its versions, and copies;
here the tensors are views of one block of memory, which is clipped where it lies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gradclip_core.cli.tensors import Array, Tensors
from gradclip_core.errors import GradClipError

_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
_ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_CODES = {name: code for code, name in (_NUMPY | _ML_DTYPES).items()}
_METADATA = "__metadata__"


def read(path: Path) -> Tensors:
    """The whole file, in one block of memory."""
    from safetensors import safe_open

    if sys.byteorder != "little":
        raise GradClipError(f"read {path}", "safetensors is little-endian, this machine is not", "Use .npz")
    with safe_open(str(path), framework="np"):
        pass  # opening checks the header: sizes, offsets without gaps or overlaps, known dtypes
    block = np.fromfile(path, np.uint8)
    start = 8 + int.from_bytes(block[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(block[8:start].tobytes(), object_pairs_hook=_without_duplicates)
    metadata = header.pop(_METADATA, None) or {}
    arrays = {}
    for name, entry in header.items():
        first, behind = entry["data_offsets"]
        stored = block[start + first : start + behind]
        dtype = _dtype(entry["dtype"], name, path)
        if stored.size and stored.ctypes.data % dtype.itemsize:
            stored = stored.copy()  # a header of odd length; the copy is aligned
        arrays[name] = stored.view(dtype).reshape(entry["shape"])
    return Tensors(arrays, metadata)


def check(tensors: Tensors, asked: str) -> None:
    """Refuse dtypes and names that the format has not."""
    if sys.byteorder != "little":
        raise GradClipError(asked, "safetensors is little-endian, this machine is not", "Use .npz")
    for name, x in tensors.arrays.items():
        if x.dtype.name not in _CODES:
            raise GradClipError(asked, f"safetensors has no dtype {x.dtype.name} for '{name}'", "Write to .npz instead")
        if name == _METADATA:
            raise GradClipError(asked, f"safetensors keeps the name '{name}' for itself", "Rename the array")


def write(file: BinaryIO, tensors: Tensors) -> None:
    """Largest elements first, so that every tensor is aligned."""
    header: dict[str, Any] = {_METADATA: tensors.metadata} if tensors.metadata else {}
    ordered = sorted(tensors.arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    position = 0
    for name, x in ordered:
        end = position + x.nbytes
        header[name] = {"dtype": _CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, x in ordered:
        file.write(_bytes(x).data)


def _bytes(x: Array) -> Array:
    # As bytes, because ml_dtypes arrays have no buffer interface of their own.
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _dtype(code: str, name: str, path: Path) -> np.dtype[Any]:
    if code in _NUMPY:
        return np.dtype(_NUMPY[code])
    if code in _ML_DTYPES:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[code]))
        return dtype
    raise GradClipError(
        f"read {path}", f"'{name}' is of dtype {code}, which cannot be clipped", "Convert it to float32"
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice}' occurs twice in its header")
    return made
