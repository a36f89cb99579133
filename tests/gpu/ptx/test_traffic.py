"""What is counted: bytes by allocation, 32-byte sectors by warp, instructions, bank conflicts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.ptx.launching import device_array, region, run
from tests.gpu.toolkit.needs import needs_nvrtc

pytestmark = needs_nvrtc
COUNT = 4096
LOADS = {
    "coalesced": ("y[i] = x[i];", 4.0, 4),
    "backwards": ("y[i] = x[n - 1 - i];", 4.0, 4),
    "with a stride": ("y[i] = x[i * 8 % n];", 32.0, 4),
    "one value for all": ("y[i] = x[3];", 1.0, 4),
    "one off": ("y[i] = x[i + 1 < n ? i + 1 : i];", None, 4),
    "float4": ("if (i < n / 4) { float4 v = ((float4*)x)[i]; y[i] = v.x + v.y + v.z + v.w; }", 16.0, 16),
}


@pytest.mark.parametrize("name", LOADS)
def test_sectors_per_request(name: str) -> None:
    body, sectors, width = LOADS[name]
    x, y = device_array(np.ones(COUNT, np.float32)), device_array(np.zeros(COUNT, np.float32))
    source = 'extern "C" __global__ void k(const float* x, float* y, int n) { int i = blockIdx.x * 256 + threadIdx.x; '
    traffic = run(source + body + " }", COUNT // 256, 256, x, y, np.int32(COUNT))
    threads = COUNT if width == 4 else COUNT // 4
    assert traffic.read == {region(x): threads * width}
    assert traffic.written == {region(y): threads * 4}
    assert traffic.requests == {"ld": threads // 32, "st": threads // 32}
    assert traffic.sectors["st"] == threads // 32 * 4
    if sectors is None:  # a fifth sector for every warp but the last
        assert traffic.sectors["ld"] == threads // 32 * 5 - 1
    else:
        assert traffic.sectors["ld"] == sectors * threads // 32


@pytest.mark.parametrize(("pad", "conflicts"), [(0, 31 * 32), (1, 0)])
def test_bank_conflicts_of_a_transposition(pad: int, conflicts: int) -> None:
    source = f"""extern "C" __global__ void k(float* x) {{
        __shared__ float t[32 * {32 + pad}];
        int i = threadIdx.x;
        for (int r = 0; r < 32; ++r) t[r * {32 + pad} + i] = x[r * 32 + i];
        __syncthreads();
        for (int r = 0; r < 32; ++r) x[r * 32 + i] = t[i * {32 + pad} + r];
    }}"""
    x = device_array(np.arange(1024, dtype=np.float32))
    traffic = run(source, 1, 32, x)
    assert (x.reshape(32, 32).T.ravel() == np.arange(1024)).all()
    assert traffic.bank_conflicts == conflicts


@pytest.mark.parametrize(("kind", "conflicts"), [("double", 0), ("double2", 0), ("float", 0)])
def test_wide_accesses_go_by_parts_of_a_warp(kind: str, conflicts: int) -> None:
    source = f"""extern "C" __global__ void k({kind}* x) {{
        __shared__ {kind} t[64]; t[threadIdx.x] = x[threadIdx.x]; __syncthreads(); x[threadIdx.x] = t[threadIdx.x ^ 32];
    }}"""
    x = device_array(np.arange(64 * 4, dtype=np.float32))
    assert run(source, 1, 64, x if kind == "float" else device_array(np.zeros(128))).bank_conflicts == conflicts


def test_instructions_are_counted_by_thread() -> None:
    source = """extern "C" __global__ void k(float* x, int n) {
        if (threadIdx.x < n) x[threadIdx.x] = __fsqrt_rn(x[threadIdx.x]);
    }"""
    traffic = run(source, 1, 64, device_array(np.ones(64, np.float32)), np.int32(20))
    assert traffic.instructions["sqrt.rn.ftz.f32"] == 20
    assert traffic.instructions["ret"] == 64
    assert traffic.instructions["mov.u32"] == 64


def test_what_a_kernel_does_not_touch_is_not_counted() -> None:
    source = """extern "C" __global__ void k(float* x, const float* scale) {
        if (*scale == 1.0f) return;
        x[threadIdx.x] *= *scale;
    }"""
    x, scale = device_array(np.ones(64, np.float32)), device_array(np.ones(1, np.float32))
    traffic = run(source, 1, 64, x, scale)
    assert traffic.read == {region(scale): 256}
    assert traffic.written == {}


def test_several_allocations_in_one_access() -> None:
    source = """extern "C" __global__ void k(float** table, float* out) {
        int i = threadIdx.x; out[i] = table[i % 3][i / 3];
    }"""
    arrays = [device_array(np.full(32, k + 1.0), np.float32) for k in range(3)]
    table = device_array([array.ctypes.data for array in arrays], np.uint64)
    out = device_array(np.zeros(96, np.float32))
    traffic = run(source, 1, 96, table, out, hidden=arrays)
    assert (out == np.arange(96) % 3 + 1).all()
    assert [traffic.read[region(array)] for array in arrays] == [128, 128, 128]
