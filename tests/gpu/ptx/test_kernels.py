"""Kernels as NVRTC compiles them for three architectures, and one of Numba's, against NumPy."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest

from tests.gpu.engine import CompileFault
from tests.gpu.ptx.engine import PtxEngine, PtxProgram
from tests.gpu.ptx.launching import ARCHITECTURES, SEEDS, device_array, launch, region, run
from tests.gpu.ptx.types import Array
from tests.gpu.toolkit.needs import needs_numba_cuda, needs_nvrtc

pytestmark = needs_nvrtc
on_every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)

SUM = r"""
extern "C" __global__ void k(const float4* x, long long n, double* part, unsigned* count, double* out) {
    __shared__ double warps[8];
    __shared__ bool last;
    double s = 0;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += 256ll * gridDim.x) {
        float4 v = x[i];
        s += (double)v.x * v.x; s += (double)v.y * v.y; s += (double)v.z * v.z; s += (double)v.w * v.w;
    }
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        double t = 0;
        for (int i = 0; i < 8; ++i) t += warps[i];
        part[blockIdx.x] = t;
        __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        double t = 0;
        for (int i = 0; i < gridDim.x; ++i) t += part[i];
        out[0] = t;
        *count = 0;
    }
}"""


@pytest.mark.parametrize("seed", SEEDS)
@on_every_architecture
def test_the_last_block_sums_up(arch: int, seed: int | None) -> None:
    values = np.random.default_rng(0).integers(-99, 99, 20_000).astype(np.float32)  # so that every order is exact
    x, part, count, out = (
        device_array(values),
        device_array(np.zeros(5)),
        device_array([0], np.uint32),
        device_array([0.0]),
    )
    run(SUM, 5, 256, x, np.int64(len(x) // 4), part, count, out, arch=arch, seed=seed)
    assert out[0] == (values.astype(np.float64) ** 2).sum()
    assert count[0] == 0


MATH = r"""
extern "C" __global__ void k(const double* x, const double* y, double* out, int n, int* exponents) {
    int i = threadIdx.x;
    double a = x[i], b = y[i];
    double* o = out + 24 * i;
    o[0] = a / b; o[1] = sqrt(a); o[2] = pow(a, b); o[3] = log2(a); o[4] = exp2(b); o[5] = exp(b); o[6] = log(a);
    o[7] = 1 / b; o[8] = rsqrt(a); o[9] = cbrt(a); o[10] = hypot(a, b); o[11] = sin(b); o[12] = fmod(a, b);
    o[13] = ldexp(b, n); o[14] = frexp(a, exponents + i); o[15] = floor(b); o[16] = fma(a, b, -a); o[17] = fabs(b);
    o[18] = nextafter(b, 10.0); o[19] = round(b); o[20] = cos(1e5 * b); o[21] = remainder(a, b); o[22] = ilogb(a);
    o[23] = fmax(a, b) - fmin(a, b);
}"""


@on_every_architecture
def test_double_precision_functions(arch: int) -> None:
    rng = np.random.default_rng(1)
    x = device_array(np.exp(rng.uniform(-30, 30, 64)))
    y = device_array(rng.uniform(-9, 9, 64))
    x[:2], y[:2] = 5e-324, (2.5, -1.5)
    out, exponents = device_array(np.zeros((64, 24))), device_array(np.zeros(64, np.int32))
    run(MATH, 1, 64, x, y, out, np.int32(-1060), exponents, arch=arch)
    exact = {0: x / y, 1: np.sqrt(x), 7: 1 / y, 12: np.fmod(x, y), 13: np.ldexp(y, -1060), 14: np.frexp(x)[0]}
    exact |= {15: np.floor(y), 17: np.abs(y), 18: np.nextafter(y, 10.0), 22: np.floor(np.frexp(x)[1] - 1.0)}
    exact |= {19: np.copysign(np.floor(np.abs(y) + 0.5), y), 23: np.maximum(x, y) - np.minimum(x, y)}
    exact[21] = np.array([math.remainder(a, b) for a, b in zip(x, y, strict=True)])
    for column, expected in exact.items():
        assert out[:, column].tolist() == expected.tolist(), column
    assert exponents.tolist() == np.frexp(x)[1].tolist()
    with np.errstate(over="ignore"):
        close = {2: x**y, 3: np.log2(x), 4: np.exp2(y), 5: np.exp(y), 6: np.log(x), 8: 1 / np.sqrt(x), 9: np.cbrt(x)}
    close |= {10: np.hypot(x, y), 11: np.sin(y), 20: np.cos(1e5 * y)}
    for column, expected in close.items():  # CUDA promises 2 ulp; NumPy's own last ulp comes on top
        np.testing.assert_array_max_ulp(out[:, column], expected, 3)


FLOATS = r"""
extern "C" __global__ void k(const float* x, float* out) {
    int i = threadIdx.x;
    float a = x[i], plain, flushed;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(plain) : "f"(a), "f"(0.5f));
    asm("{ .reg .f32 t; mul.rn.ftz.f32 t, %1, %2; mov.f32 %0, t; }" : "=f"(flushed) : "f"(a), "f"(0.5f));
    float* o = out + 8 * i;
    o[0] = a * 0.5f; o[1] = plain; o[2] = flushed; o[3] = expf(a); o[4] = sqrtf(a); o[5] = 3.0f / a;
    o[6] = __fmaf_rd(a, a, 1.0f); o[7] = __saturatef(a);
}"""


@on_every_architecture
def test_floats_are_flushed_but_not_in_inline_assembly(arch: int) -> None:
    x = device_array([2e-38, 1.0, 2.0, 0.3, 4e-39, 9.0, 1e-20, 0.7], np.float32)
    out = device_array(np.zeros((8, 8), np.float32))
    run(FLOATS, 1, 8, x, out, arch=arch)
    half = x * np.float32(0.5)
    flushed = np.where(np.abs(half) < np.finfo(np.float32).tiny, np.float32(0), half)
    assert half[0] != 0
    assert out[:, 0].tolist() == flushed.tolist()
    assert out[:, 1].tolist() == half.tolist()
    assert out[:, 2].tolist() == flushed.tolist()
    normal = np.array([0, 1, 2, 3, 5, 6, 7])
    assert out[normal, 4].tolist() == np.sqrt(x[normal]).tolist()
    assert out[normal, 5].tolist() == (np.float32(3) / x[normal]).tolist()
    np.testing.assert_array_max_ulp(out[:, 3], np.exp(x), 3)
    assert out[:, 7].tolist() == np.where(x < 1e-38, 0, x.clip(0, 1)).tolist()
    assert out[1:3, 6].tolist() == [2.0, 5.0]


HALVES = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void k(const float* x, __half* h, __nv_bfloat16* b, __half2* h2) {
    int i = threadIdx.x;
    __half v = __float2half_rn(x[i]);
    __nv_bfloat16 w = __float2bfloat16_rn(x[i]);
    h[i] = __hfma(v, v, v);
    b[i] = __hmul(w, w);
    h2[i] = __hfma2(__floats2half2_rn(x[i], 2), __floats2half2_rn(x[i], x[i]), __float2half2_rn(1));
}"""


@on_every_architecture
def test_half_precision(arch: int) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = device_array(np.random.default_rng(2).standard_normal(64).astype(np.float32) * 100)
    h, b, h2 = (device_array(np.zeros(64 * k, kind)) for k, kind in ((1, np.float16), (1, np.uint16), (2, np.float16)))
    run(HALVES, 1, 64, x, h, b, h2, arch=arch)
    half = x.astype(np.float16).astype(np.float64)
    assert h.tolist() == (half * half + half).astype(np.float16).tolist()
    brain = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert b.tolist() == (brain * brain).astype(ml_dtypes.bfloat16).view(np.uint16).tolist()
    expected = np.stack((half * half + 1, 2 * half + 1), axis=1).astype(np.float16)
    assert h2.reshape(64, 2).tolist() == expected.tolist()


TABLE = r"""
struct Table { double* arrays[70]; long long sizes[70]; };
__device__ double factors[4] = {1, 2, 3, 4};
__constant__ int steps[3] = {7, 8, 9};
__device__ unsigned long long launches;
extern "C" __global__ void k(const Table t, double* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    double s = 0;
    for (int j = 0; j < t.sizes[i]; ++j) s += t.arrays[i][j];
    out[i] = s * factors[i & 3] + steps[i % 3];
    if (i == 0) out[70] = (double)atomicAdd(&launches, 1ull);
}"""


@on_every_architecture
def test_a_large_struct_is_indexed_and_module_arrays_live_on(arch: int) -> None:
    arrays = [device_array(np.arange(float(n + 1))) for n in range(70)]
    table = struct.pack("70Q", *(a.ctypes.data for a in arrays)) + struct.pack("70q", *(len(a) for a in arrays))
    out = device_array(np.zeros(71))
    program = PtxEngine(arch).compile(TABLE, [])
    assert program.parameters == {"k": [1120, 8]}
    for launches in range(2):
        launch(program, "k", 7, 10, table, out, hidden=arrays)
        assert out[:70].tolist() == [arrays[i].sum() * (1 + (i & 3)) + 7 + i % 3 for i in range(70)]
        assert out[70] == launches
    program.symbol("factors").view(np.float64)[:] = 0
    launch(program, "k", 7, 10, table, out, hidden=arrays)
    assert out[:70].tolist() == [7.0 + i % 3 for i in range(70)]


CALLS = r"""
struct Weights { double w[5]; };
__device__ __noinline__ double weigh(double a, int n, const Weights& weights) {
    double s = 0;
    for (int i = 0; i < n; ++i) s += a * weights.w[i];
    return s;
}
__device__ __noinline__ double twice(double a, int n, const Weights& w) { return 2 * weigh(a, n, w); }
extern "C" __global__ void k(double* x, const __grid_constant__ Weights weights) {
    int i = threadIdx.x;
    double local[8];
    for (int j = 0; j < 8; ++j) local[j] = x[i] + j;
    for (int j = 0; j < i; ++j) local[(j * 3 + i) % 8] += local[j % 8];
    double s = i % 2 ? twice(x[i], i % 5 + 1, weights) : weigh(x[i], i % 3 + 1, weights);
    if (i == 3) printf("%d\n", i);
    x[i] = s + local[i % 8];
}"""


@on_every_architecture
def test_calls_and_local_arrays(arch: int) -> None:
    x = device_array(np.arange(40.0))
    weights = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    expected = []
    for i in range(40):
        local = [float(i + j) for j in range(8)]
        for j in range(i):
            local[(j * 3 + i) % 8] += local[j % 8]
        s = 2 * i * weights[: i % 5 + 1].sum() if i % 2 else i * weights[: i % 3 + 1].sum()
        expected.append(s + local[i % 8])
    run(CALLS, 1, 40, x, weights.tobytes(), arch=arch)
    assert x.tolist() == expected


ATOMICS = r"""
extern "C" __global__ void k(unsigned* u, unsigned long long* q, double* d, float* f, int* s) {
    int i = threadIdx.x;
    __shared__ unsigned inside;
    if (i == 0) inside = 0;
    __syncthreads();
    atomicAdd(&inside, 2u);
    atomicAdd(u, 3u); atomicMax(u + 1, (unsigned)i * 7 % 64); atomicInc(u + 2, 9u); atomicOr(u + 3, 1u << (i & 31));
    atomicAdd(q, 1ull << 33); atomicMin(q + 1, (unsigned long long)i + 5); atomicCAS(q + 2, 0ull, i + 1ull);
    atomicExch(q + 3, (unsigned long long)i); atomicAdd(d, 0.5); atomicAdd(f + (i & 3), 1.0f); atomicMin(s, -i);
    atomicXor(u + 5, (unsigned)i); atomicDec(u + 6, 4u);
    __syncthreads();
    if (i == 0) u[4] = inside;
}"""


@pytest.mark.parametrize("seed", SEEDS)
@on_every_architecture
def test_atomics(arch: int, seed: int | None) -> None:
    u, q = device_array(np.zeros(7, np.uint32)), device_array(np.array([0, 99, 0, 0], np.uint64))
    d, f, s = device_array([1.0]), device_array(np.zeros(4, np.float32)), device_array([5], np.int32)
    run(ATOMICS, 1, 64, u, q, d, f, s, arch=arch, seed=seed)
    assert u.tolist() == [192, max(i * 7 % 64 for i in range(64)), 64 % 10, 2**32 - 1, 128, 0, (-64) % 5]
    assert q[:2].tolist() == [64 << 33, 5]
    assert 1 <= q[2] <= 64 and q[3] < 64  # noqa: PT018
    assert (d[0], f.tolist(), s[0]) == (33.0, [16.0] * 4, -63)


def test_a_spinning_thread_does_not_starve_the_others() -> None:
    source = """extern "C" __global__ void k(volatile unsigned* flag, unsigned* out) {
        if (threadIdx.x == 0) { while (*flag == 0) {} out[0] = 5; }
        else if (threadIdx.x == 32) { __threadfence(); *flag = 1; }
    }"""
    for seed in SEEDS:
        flag, out = device_array([0], np.uint32), device_array([0], np.uint32)
        run(source, 1, 64, flag, out, seed=seed)
        assert out[0] == 5


def test_grid_sync_of_cooperative_groups() -> None:
    source = """#include <cooperative_groups.h>
    extern "C" __global__ void k(float* x) {
        int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
        x[i] = i;
        cooperative_groups::this_grid().sync();
        float v = x[n - 1 - i];
        cooperative_groups::this_grid().sync();
        x[i] = v;
    }"""
    for seed in SEEDS:
        x = device_array(np.zeros(4 * 48, np.float32))
        run(source, 4, 48, x, seed=seed)
        assert x.tolist() == list(range(4 * 48))[::-1]


def test_a_switch_and_dimensions() -> None:
    cases = "".join(f"case {k}: v = v * {k} + {k * k}; break;" for k in range(12))
    source = f"""extern "C" __global__ void k(int* x) {{
        int thread = threadIdx.y * blockDim.x + threadIdx.x, block = blockIdx.y * gridDim.x + blockIdx.x;
        int i = block * blockDim.x * blockDim.y + thread;
        int v = x[i];
        switch (i % 12) {{ {cases} }}
        x[i] = v;
    }}"""
    x = device_array(np.arange(2 * 3 * 5 * 7, dtype=np.int32))
    run(source, (2, 3, 1), (5, 7, 1), x)
    assert x.tolist() == [i * (i % 12) + (i % 12) ** 2 for i in range(210)]


def test_dynamic_shared_memory() -> None:
    source = """extern "C" __global__ void k(double* x) {
        extern __shared__ double s[]; __shared__ float own[3];
        own[threadIdx.x % 3] = 1; s[threadIdx.x] = x[threadIdx.x]; __syncthreads();
        x[threadIdx.x] = s[63 - threadIdx.x] * own[threadIdx.x % 3];
    }"""
    x = device_array(np.arange(64.0))
    run(source, 1, 64, x, shared=512)
    assert x.tolist() == list(np.arange(64.0)[::-1])


def test_a_compiler_error_is_its_log() -> None:
    with pytest.raises(CompileFault, match='identifier "nonsense" is undefined'):
        PtxEngine().compile('extern "C" __global__ void k() { nonsense; }', [])


@needs_numba_cuda
@pytest.mark.filterwarnings("ignore")  # of Numba's own
def test_a_kernel_of_numbas() -> None:
    from numba import cuda, float32, float64, int64

    def kernel(x: Any, out: Any, n: Any) -> None:
        scratch = cuda.shared.array(128, float32)
        i, t, s = cuda.grid(1), cuda.threadIdx.x, float32(0)
        while i < n:
            s += x[i] * x[i]
            i += cuda.gridsize(1)
        scratch[t] = s
        cuda.syncthreads()
        k = 64
        while k:
            if t < k:
                scratch[t] += scratch[t + k]
            cuda.syncthreads()
            k //= 2
        if t == 0:
            cuda.atomic.add(out, 0, scratch[0])

    signature = (float32[::1], float64[::1], int64)
    text, _ = cuda.compile(kernel, signature, cc=(9, 0), device=False, output="ptx", abi="numba")
    values = np.random.default_rng(3).integers(-9, 9, 5000).astype(np.float32)
    x, out = device_array(values), device_array([0.0])

    def unpacked(a: Array) -> list[Any]:
        return [
            np.uint64(0),
            np.uint64(0),
            np.int64(a.size),
            np.int64(a.itemsize),
            a,
            np.int64(a.size),
            np.int64(a.itemsize),
        ]

    program = PtxProgram(text, seed=4)
    (name,) = program.parameters
    launch(program, name, 3, 128, *unpacked(x), *unpacked(out), np.int64(5000))
    assert out[0] == (values**2).sum()
    assert region(x) == (x.ctypes.data, 20_000)
