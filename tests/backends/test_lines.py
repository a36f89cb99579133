"""The sums of a block, line by line: every length, every place in memory, every storage type, the reference's bits."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

from gradclip_core import reference, registry
from gradclip_core.protocol import DTYPES, Buffer, DType, What

pytestmark = pytest.mark.jit
pytest.importorskip("numba")

LENGTHS = [
    *range(1, 90),
    *range(240, 300),
    511,
    512,
    513,
    1000,
    1023,
    1024,
    1025,
    1279,
    2047,
    3001,
    4095,
    4096,
    4097,
    9001,
]


def memory_of(dtype: DType, count: int, shift: int, *, odd: bool) -> Any:
    """``count`` elements that begin ``shift`` elements behind a page: bits of any finite value, and an infinity."""
    bits = 8 * dtype.itemsize
    page = np.empty(count * dtype.itemsize + 2 * 4096, np.uint8)
    codes = page[-page.ctypes.data % 4096 :][shift * dtype.itemsize :][: count * dtype.itemsize].view(f"u{bits // 8}")
    random = np.random.default_rng(count + shift)
    small = random.normal(0, 2.0**-3, count)
    if dtype.coded:
        codes[:] = reference.narrow(small.astype(np.float32), dtype)
    else:
        codes[:] = small.astype(dtype.view).view(codes.dtype)
    if odd:
        top = reference.narrow(np.array([np.inf], np.float32), dtype) if dtype.coded else None
        codes[count // 2] = np.array([np.inf], dtype.view).view(codes.dtype)[0] if top is None else top[0]
    return codes


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_any_length_anywhere(name: str, power: int) -> None:
    dtype, backend = DTYPES[name], registry.load("numba_cpu")
    kept = [memory_of(dtype, n, shift, odd=n % 7 == 3) for n in LENGTHS for shift in (0, 1, 5, 31)]
    buffers = [Buffer(codes.ctypes.data, codes.size, dtype) for codes in kept]
    ours, right = (who.measure(buffers, What(power)) for who in (backend, reference.BACKEND))
    for field in ("sums", "largest", "infs", "nans"):
        assert getattr(ours, field).tobytes() == getattr(right, field).tobytes(), field


def test_a_line_behind_the_last_one_is_not_read() -> None:
    """What is asked for ahead may be nobody's memory: asking does not fault, reading would."""
    page, pages = mmap.PAGESIZE, 16
    memory = mmap.mmap(-1, (pages + 1) * page)
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 1
    behind = ctypes.c_void_p(whole.ctypes.data + pages * page)
    libc = ctypes.CDLL(None)
    if libc.mprotect(behind, ctypes.c_size_t(page), 0):  # PROT_NONE
        pytest.skip("memory cannot be protected here")
    try:
        for dtype in DTYPES.values():
            for count in (1, 15, 300, 5000):
                start = whole.ctypes.data + pages * page - count * dtype.itemsize
                buffers = [Buffer(start, count, dtype)]
                ours, right = (who.measure(buffers, What(2)) for who in (registry.load("numba_cpu"), reference.BACKEND))
                assert ours.sums[0] == right.sums[0]
    finally:
        libc.mprotect(behind, ctypes.c_size_t(page), 3)
