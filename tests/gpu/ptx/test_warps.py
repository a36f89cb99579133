"""What the lanes of a warp do together, against what CUDA's programming guide says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.ptx.launching import ARCHITECTURES, SEEDS, device_array, run
from tests.gpu.toolkit.needs import needs_nvrtc

pytestmark = needs_nvrtc
LANES = np.arange(64) % 32
WARPS = np.arange(64) // 32
on_every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)


def test_shuffles() -> None:
    source = """extern "C" __global__ void k(double* x, int n) {
        int i = threadIdx.x; double v = x[i], *o = x + 64;
        o[i] = __shfl_xor_sync(~0u, v, 5); o[64 + i] = __shfl_down_sync(~0u, v, 3, 16);
        o[128 + i] = __shfl_up_sync(~0u, v, 2); o[192 + i] = __shfl_sync(~0u, v, n, 8);
        o[256 + i] = __shfl_sync(~0u, v, i * 3);
    }"""
    x = device_array(np.arange(384.0))
    run(source, 1, 64, x, np.int32(5))
    rows = x.reshape(6, 64).astype(int)
    assert (rows[1] == 32 * WARPS + (LANES ^ 5)).all()
    assert (rows[2] == 32 * WARPS + np.where(LANES % 16 + 3 < 16, LANES + 3, LANES)).all()
    assert (rows[3] == 32 * WARPS + np.where(LANES >= 2, LANES - 2, LANES)).all()
    assert (rows[4] == 32 * WARPS + LANES // 8 * 8 + 5).all()
    assert (rows[5] == 32 * WARPS + np.arange(64) * 3 % 32).all()


@on_every_architecture
def test_votes_and_matches(arch: int) -> None:
    source = """extern "C" __global__ void k(unsigned* x) {
        int i = threadIdx.x, all; unsigned v = x[i], *o = x + 64;
        o[i] = __ballot_sync(~0u, v & 1); o[64 + i] = __any_sync(~0u, v > 62); o[128 + i] = __all_sync(~0u, v < 40);
        o[192 + i] = __match_any_sync(~0u, v % 5); o[256 + i] = __match_all_sync(~0u, v / 32, &all) + all;
        if (i & 1) o[320 + i] = __activemask(); else o[320 + i] = __ballot_sync(0x55555555, v % 4 == 0);
    }"""
    x = device_array(np.r_[np.arange(64), np.zeros(384, int)], np.uint32)
    run(source, 1, 64, x, arch=arch)
    rows = x.reshape(7, 64)
    assert (rows[1] == 0xAAAAAAAA).all()
    assert (rows[2] == WARPS).all()
    assert (rows[3] == 1 - WARPS).all()
    expected = [sum(1 << k for k in range(32) if (32 * w + k) % 5 == i % 5) for i, w in enumerate(WARPS)]
    assert rows[4].tolist() == expected
    assert (rows[5] == 0).all()  # all ones, and one
    assert (rows[6] == np.where(LANES % 2, 0xAAAAAAAA, 0x11111111)).all()


def test_reductions_in_hardware() -> None:
    source = """extern "C" __global__ void k(unsigned* x, int* y) {
        int i = threadIdx.x; unsigned v = x[i];
        x[i] = __reduce_add_sync(~0u, v); x[64 + i] = __reduce_min_sync(~0u, v ^ 3);
        x[128 + i] = __reduce_xor_sync(~0u, v);
        y[i] = __reduce_max_sync(i & 16 ? 0xFFFF0000u : 0x0000FFFFu, -i);
    }"""
    x, y = device_array(np.r_[np.arange(64), np.zeros(128, int)], np.uint32), device_array(np.zeros(64, np.int32))
    run(source, 1, 64, x, y)
    rows = x.reshape(3, 64)
    assert (rows[0] == 496 + 1024 * WARPS).all()
    assert (rows[1] == 32 * WARPS).all()
    assert (rows[2] == 0).all()
    assert (y == -(np.arange(64) // 16 * 16)).all()


def test_halves_of_a_warp_with_masks_of_their_own() -> None:
    source = """extern "C" __global__ void k(int* x) {
        int i = threadIdx.x, v = x[i];
        if (i % 32 < 16) v += __shfl_xor_sync(0x0000FFFF, v, 1); else v -= __shfl_xor_sync(0xFFFF0000, v, 2);
        __syncwarp();
        x[i] = v;
    }"""
    for seed in SEEDS:
        x = device_array(np.arange(64, dtype=np.int32))
        run(source, 1, 64, x, seed=seed)
        i = np.arange(64)
        assert (x == np.where(LANES < 16, i + (i ^ 1), i - (i ^ 2))).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_that_count(seed: int | None) -> None:
    source = """extern "C" __global__ void k(int* x) {
        int i = threadIdx.x, o = blockIdx.x * 3;
        int n = __syncthreads_count(i % 3 == blockIdx.x), a = __syncthreads_and(i >= blockIdx.x);
        int b = __syncthreads_or(i == 99);
        if (i == 7) { x[o] = n; x[o + 1] = a; x[o + 2] = b; }
    }"""
    x = device_array(np.zeros(6, np.int32))
    run(source, 2, 100, x, seed=seed)
    assert [bool(v) if k % 3 else int(v) for k, v in enumerate(x)] == [34, True, True, 33, False, True]


def test_the_mask_of_a_warp_that_is_not_full() -> None:
    source = """extern "C" __global__ void k(int* x) {
        int v = threadIdx.x;
        for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o);
        if (threadIdx.x % 32 == 0) x[threadIdx.x / 32] = __activemask();
    }"""
    x = device_array(np.zeros(2, np.int32))
    run(source, 1, 40, x)
    assert x.tolist() == [1, 1]
