"""The twins of the kernels' inline PTX round as NumPy does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.cpu.engine import CpuProgram
from tests.gpu.cpu.helpers import compile_here, run
from tests.gpu.cpu.needs import needs_gxx

pytestmark = needs_gxx

SOURCE = r"""
#include "twins.h"
extern "C" __global__ void widen(const unsigned short* from, float* to, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = half_to_float(from[i]);
}
extern "C" __global__ void narrow(const float* from, unsigned short* to, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = float_to_half(from[i]);
}
extern "C" __global__ void others(const float* x, unsigned long long to, double d) {
    float* out = global<float>(to);
    out[0] = multiply(x[0], x[1]); out[1] = less(x[0], x[1]); out[2] = float_to_double(x[0]) == x[0];
    out[3] = double_to_float(d); out[4] = multiply(x[0], __uint_as_float(0xffc00001u));
}
"""

CODES = np.arange(65536, dtype=np.uint16)
HALVES = CODES.view(np.float16)


@pytest.fixture(scope="module")
def program() -> CpuProgram:
    return compile_here(SOURCE)


def test_every_float16_widens(program: CpuProgram) -> None:
    out = np.zeros(65536, np.float32)
    run(program, "widen", 1, 64, CODES, out, np.int32(65536))
    nan = np.isnan(HALVES)
    assert (out.view(np.uint32)[~nan] == HALVES.astype(np.float32).view(np.uint32)[~nan]).all()
    assert (out.view(np.uint32)[nan] == 0x7FFFFFFF).all()


def test_float32_narrows_to_nearest_and_even(program: CpuProgram) -> None:
    finite = HALVES[np.isfinite(HALVES)].astype(np.float32)
    with np.errstate(over="ignore"):
        following = np.nextafter(finite.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    halfway = np.where(np.isinf(following), np.float32(65520), (finite + following) / 2).astype(np.float32)
    infinity = np.float32(np.inf)
    around = [halfway, np.nextafter(halfway, infinity), np.nextafter(halfway, -infinity)]
    x = np.concatenate([finite, *around, np.array([np.inf, -np.inf, 1e38, 1e-45, -0.0], np.float32)])
    out = np.zeros(x.size, np.uint16)
    run(program, "narrow", 1, 64, x, out, np.int32(x.size))
    with np.errstate(over="ignore"):
        assert (out == x.astype(np.float16).view(np.uint16)).all()
    run(program, "narrow", 1, 1, np.array([-np.nan], np.float32), out, np.int32(1))
    assert out[0] == 0x7FFF


def test_the_others(program: CpuProgram) -> None:
    out = np.zeros(5, np.float32)
    run(program, "others", 1, 1, np.array([1.1, 3.3], np.float32), out, np.float64(0.1))
    assert out[:4].tolist() == [float(np.float32(1.1) * np.float32(3.3)), 1, 1, float(np.float32(0.1))]
    assert out.view(np.uint32)[4] == 0x7FFFFFFF
