"""``.npz``: a zip of ``.npy`` files, read without trusting a single number in it."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from gradclip_core.cli.tensors import Array, Tensors
from gradclip_core.errors import GradClipError

_SUFFIX = ".npy"


def read(path: Path) -> Tensors:
    """Every array in the zip. Pickled objects are refused."""
    with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what NumPy says of headers from Python 2 helps nobody here
        members = archive.infolist()
        names = [member.filename.removesuffix(_SUFFIX) for member in members]
        for member, name in zip(members, names, strict=True):
            if not member.filename.endswith(_SUFFIX):
                raise ValueError(f"it holds '{member.filename}', which is no {_SUFFIX} file")
            if names.count(name) > 1:
                raise ValueError(f"the name '{name}' occurs twice in it")
        _check_fits(path, sum(member.file_size for member in members))
        return Tensors({name: _member(archive, m, name, path) for name, m in zip(names, members, strict=True)})


def check(tensors: Tensors, asked: str) -> None:
    """Refuse what ``numpy.load`` would not give back."""
    for name, x in tensors.arrays.items():
        if x.dtype.isbuiltin == 2:  # registered with NumPy by somebody else, as ml_dtypes' types are
            raise GradClipError(
                asked, f"NumPy's format cannot hold '{name}', whose dtype is {x.dtype.name}", "Write to .safetensors"
            )
        if "\0" in name or len(name.encode("utf-8", "surrogatepass")) > 60000:
            raise GradClipError(asked, f"a zip cannot hold the name '{name[:50]}'", "Write to .safetensors")


def write(file: BinaryIO, tensors: Tensors) -> None:
    """As ``numpy.savez``, whose keyword arguments cannot hold every name."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, x in tensors.arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, path: Path) -> Array:
    with archive.open(member) as file:
        shape, dtype, header = _header(file)
    if dtype.hasobject:
        seen = f"'{name}' holds pickled Python objects, which could run code and are never loaded"
        raise GradClipError(f"read {path}", seen, "Save arrays of numbers alone")
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        raise GradClipError(
            f"read {path}",
            f"'{name}' is 16 bits of no known type ({dtype.str}): bfloat16, whose name NumPy's format does not keep",
            "Store bfloat16 gradients in a .safetensors file",
        )
    # Python's integers: a shape from a file can be anything.
    if header + math.prod(shape) * dtype.itemsize != member.file_size or any(n < 0 for n in shape):
        raise ValueError(f"'{name}' says it is {dtype} of shape {shape}, and has {member.file_size - header} bytes")
    with archive.open(member) as file:
        x: Array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # reading to the end is what checks the checksum
            raise ValueError(f"'{name}' goes on behind its end")
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return x if x.flags.writeable else x.copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is of version {version}")
    # The same layout in 2.0 and 3.0; the latter only allows more than ASCII.
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype, file.tell()


def _check_fits(path: Path, unpacked: int) -> None:
    """A small zip can unpack to more than any disk holds."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return
    if unpacked > memory:
        raise GradClipError(
            f"read {path}",
            f"it would unpack to {unpacked / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB of memory",
            "Clip it in parts",
        )
