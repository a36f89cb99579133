"""Right kernels have the right results, in every order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.cpu.engine import CpuEngine, CpuProgram
from tests.gpu.cpu.helpers import compile_here, run
from tests.gpu.cpu.needs import needs_gxx
from tests.gpu.engine import CompileFault

pytestmark = needs_gxx

SOURCE = r"""
struct Small { double values[512]; };                        // 4 KB
struct Large { unsigned values[8184]; };                     // 32,736 bytes of 32,764
struct alignas(16) Aligned { uint4 vector; unsigned count; };

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
    return value;
}

template <class T>
__device__ __forceinline__ T block_sum(T value) {
    __shared__ T parts[32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : T(0);
    __syncthreads();
    return warp_sum(value);
}

// The last block to arrive adds up what the others have left.
template <class T>
__device__ void sum_all(const T* x, unsigned n, T* parts, unsigned* arrived, T* result) {
    __shared__ bool last;
    T value = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) value += x[i];
    value = block_sum(value);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = value;
        __threadfence();
        last = atomicAdd(arrived, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    value = block_sum(threadIdx.x < gridDim.x ? __ldcg(parts + threadIdx.x) : T(0));
    if (threadIdx.x == 0) { *result = value; *arrived = 0; }
}
#define SUM(name, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                         \
        name(const T* x, unsigned n, T* parts, unsigned* arrived, T* result) {                                \
        sum_all<T>(x, n, parts, arrived, result);                                                             \
    }
SUM(sum_f64, double)
SUM(sum_u64, unsigned long long)

extern "C" __global__ void flip(const uint4* __restrict__ from, uint4* __restrict__ to, unsigned long long address) {
    const uint4 v = from[threadIdx.x];
    __stcs(to + threadIdx.x, make_uint4(~v.x, ~v.y, ~v.z, ~v.w));
    auto* pair = reinterpret_cast<ulonglong2*>(__cvta_global_to_generic(address));
    if (__isGlobal(pair) && threadIdx.x == 0) { ulonglong2 p = __ldcs(pair); p.x += p.y; *pair = p; }
}

extern "C" __global__ void small_struct(__grid_constant__ const Small small, const Aligned aligned, double* out) {
    double total = 0;
    for (double value : small.values) total += value;
    out[blockIdx.x * blockDim.x + threadIdx.x] = total + aligned.vector.w + aligned.count;
}

extern "C" __global__ void large_struct(const __grid_constant__ Large large, double* out) {
    double total = 0;
    for (unsigned value : large.values) total += value;
    out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

extern "C" __global__ void lanes(int* out) {
    const int lane = threadIdx.x;
    int* o = out + lane * 8;
    o[0] = __shfl_sync(0xffffffffu, lane, 5);
    o[1] = __shfl_up_sync(0xffffffffu, lane, 2);
    o[2] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
    o[3] = __shfl_xor_sync(0xffffffffu, lane, 9, 8);
    o[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane & 1));
    o[5] = __any_sync(0xffffffffu, lane == 7) * 2 + __all_sync(0xffffffffu, lane < 31);
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;        // two groups at a time
    o[6] = __shfl_sync(half, lane, 1, 16);
    __syncwarp(half);
    o[7] = __syncthreads_count(lane < 3) * 4 + __syncthreads_or(lane == 3) * 2 + __syncthreads_and(lane < 32);
}

extern "C" __global__ void atomics(unsigned* u, unsigned long long* w) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(u, i); atomicMax(u + 1, i); atomicMin(u + 2, i); atomicOr(u + 3, 1u << i % 32);
    atomicAdd(w, 1); atomicMax(w + 1, __double_as_longlong(i)); atomicMin(w + 2, i); atomicExch(w + 3, 7);
    unsigned long long seen = w[4], before;
    do { before = seen; seen = atomicCAS(w + 4, before, before + 2); } while (seen != before);
}

extern "C" __global__ void numbers(double x, double* d, int* k) {
    int exponent;
    d[0] = pow(x, 1.5); d[1] = frexp(x, &exponent); d[2] = ldexp(d[1], -1060); d[3] = sqrt(x); d[4] = floor(x);
    d[5] = copysign(x, -0.0); d[6] = __hiloint2double(__double2hiint(x), __double2loint(x)); d[7] = __dmul_rn(x, x);
    d[8] = __dadd_rn(__dmul_rn(x, x), -d[7]); d[9] = __ddiv_rn(1.0, x); d[10] = __dsqrt_rn(x);
    d[11] = __longlong_as_double(__double_as_longlong(x));
    d[12] = __uint_as_float(__float_as_uint(1.5f)) * __fmul_rn(2, 3); d[13] = fabs(-x);
    d[14] = min(3, 4u) + max(5ull, 6) + abs(-7) + max(1.0, __longlong_as_double(-1));
    k[0] = exponent; k[1] = __clz(1); k[2] = __clzll(1); k[3] = __ffs(8); k[4] = __popc(255); k[5] = __popcll(~0ull);
    k[6] = __umulhi(1u << 31, 6); k[7] = isnan(x) + 2 * isinf(1 / 0.0) + 4 * isfinite(x);
}

extern "C" __global__ void halve(float* f, double* d) { *f = *f / 2; *d = *d / 2; }
extern "C" __global__ void nothing() {}
"""

ORDERS: list[dict[str, Any]] = [
    {},
    {"order": "reverse"},
    {"order": "random", "seed": 5},
    {"order": "jitter", "threads": 3},
    {"threads": 2},
]


@pytest.fixture(scope="module", params=ORDERS, ids=str)
def program(request: pytest.FixtureRequest) -> CpuProgram:
    return compile_here(SOURCE, **request.param)


@pytest.mark.parametrize(("name", "dtype"), [("sum_f64", np.float64), ("sum_u64", np.uint64)])
def test_a_sum_in_which_the_last_block_finishes(program: CpuProgram, name: str, dtype: Any) -> None:
    x = np.arange(10_000, dtype=dtype)
    parts, arrived, result = np.zeros(7, dtype), np.zeros(1, np.uint32), np.zeros(1, dtype)
    for _ in range(3):
        run(program, name, 7, 64, x, np.uint32(x.size), parts, arrived, result)
        assert result[0] == x.sum()
        assert arrived[0] == 0


def test_vectors_and_addresses(program: CpuProgram) -> None:
    x, y, pair = np.arange(128, dtype=np.uint32), np.zeros(128, np.uint32), np.array([3, 4], np.uint64)
    run(program, "flip", 1, 32, x, y, pair)
    assert (y == ~x).all()
    assert pair.tolist() == [7, 4]


def test_structs_by_value(program: CpuProgram) -> None:
    small, large = np.arange(512, dtype=np.float64), np.arange(8184, dtype=np.uint32)
    aligned = np.array([0, 0, 0, 5, 6, 0, 0, 0], np.uint32)
    out = np.zeros(128)
    run(program, "small_struct", 2, 64, small.tobytes(), aligned.tobytes(), out)
    assert (out == small.sum() + 5 + 6).all()
    run(program, "large_struct", 2, 64, large.tobytes(), out)
    assert (out == large.sum()).all()


def test_lanes(program: CpuProgram) -> None:
    out = np.zeros((32, 8), np.int32)
    run(program, "lanes", 1, 32, out)
    lane = np.arange(32)
    odd = np.array(0xAAAAAAAA, np.uint32).astype(np.int32)
    expected = [
        np.full(32, 5),
        np.where(lane < 2, lane, lane - 2),
        np.where(lane % 8 < 5, lane + 3, lane),
        np.where((lane ^ 9) < lane // 8 * 8 + 8, lane ^ 9, lane),
        np.full(32, odd),
        np.full(32, 2),
        lane // 16 * 16 + 1,
        np.full(32, 3 * 4 + 2 + 1),
    ]
    assert out.T.tolist() == [column.tolist() for column in expected]


def test_atomics(program: CpuProgram) -> None:
    u, w = np.array([0, 0, 99, 0], np.uint32), np.array([0, 0, 99, 0, 0], np.uint64)
    run(program, "atomics", 4, 64, u, w)
    assert u.tolist() == [255 * 128, 255, 0, 0xFFFFFFFF]
    assert w.tolist() == [256, int(np.float64(255).view(np.uint64)), 0, 7, 512]


def test_numbers(program: CpuProgram) -> None:
    x = 10.25
    d, k = np.zeros(15), np.zeros(8, np.int32)
    run(program, "numbers", 1, 1, np.float64(x), d, k)
    expected = [x**1.5, x / 16, x / 16 * 2.0**-1060, x**0.5, 10, -x, x, x * x, 0, 1 / x, x**0.5, x, 9, x, 3 + 6 + 7 + 1]
    assert d.tolist() == expected
    assert k.tolist() == [4, 31, 63, 4, 8, 64, 3, 6]


@pytest.mark.parametrize("ftz", [False, True])
def test_subnormals(ftz: bool) -> None:
    f, d = np.array([2.0**-126], np.float32), np.array([2.0**-1022])
    for _ in range(2):
        run(compile_here(SOURCE, ftz=ftz), "halve", 1, 1, f, d)
        assert (f[0] == 0, d[0] == 0) == (ftz, ftz)
        f[0], d[0] = 2.0**-126, 2.0**-1022
    assert np.float64(2.0**-1022) / 2 > 0, "the switch is back where it was"


def test_grids_of_three_dimensions() -> None:
    source = """extern "C" __global__ void where(int* out) {
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        out[block * 24 + thread] = block * 100 + thread;
    }"""
    out = np.zeros((6, 24), np.int32)
    address = np.uint64(out.ctypes.data).tobytes()
    compile_here(source).launch("where", (1, 2, 3), (4, 3, 2), [address], [])
    assert (out == np.arange(6)[:, None] * 100 + np.arange(24)).all()


def test_kernels_are_found_behind_macros_and_templates_are_not_kernels(program: CpuProgram) -> None:
    names = ["sum_f64", "sum_u64", "flip", "small_struct", "large_struct", "lanes", "atomics", "numbers", "halve"]
    assert list(program.parameters) == [*names, "nothing"]
    assert program.parameters["small_struct"] == (4096, 32, 8)
    assert program.parameters["sum_f64"] == (8, 4, 8, 8, 8)
    run(program, "nothing", 1, 1)


def test_options_and_the_log_of_a_failure() -> None:
    source = '#line 40 "clip.cu"\nextern "C" __global__ void set(int* out) { *out = VALUE; }'
    out = np.zeros(1, np.int32)
    options = ["-DVALUE=3", "--std=c++17", "-arch=sm_90", "-ftz=true", "--device-as-default-execution-space"]
    run(CpuEngine().compile(source, options), "set", 1, 1, out)
    assert out[0] == 3
    with pytest.raises(CompileFault, match=r"clip.cu:40:.*VALUE"):
        compile_here(source)


def test_a_changed_include_is_built_anew(tmp_path: Path) -> None:
    header, out = tmp_path / "value.cuh", np.zeros(1, np.int32)
    for value in (1, 2):
        header.write_text(f"#define VALUE {value}\n")
        source = '#include "value.cuh"\nextern "C" __global__ void set(int* out) { *out = VALUE; }'
        run(CpuEngine().compile(source, [f"-I{tmp_path}"]), "set", 1, 1, out)
        assert out[0] == value


def test_too_many_bytes_of_parameters_do_not_compile() -> None:
    source = 'struct S { char c[32765]; }; extern "C" __global__ void k(const S s) {}'
    with pytest.raises(CompileFault, match="more than 32764 bytes"):
        compile_here(source)


def test_another_context_switch_has_the_same_results() -> None:
    out, again = np.zeros((32, 8), np.int32), np.zeros((32, 8), np.int32)
    run(compile_here(SOURCE), "lanes", 1, 32, out)
    run(CpuEngine().compile(SOURCE, ["-DCUDA_ON_CPU_UCONTEXT"]), "lanes", 1, 32, again)
    assert (out == again).all()


def test_orders_differ_and_random_draws_anew() -> None:
    source = """extern "C" __global__ void arrive(unsigned* count, unsigned* out) {
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x; out[atomicAdd(count, 1u)] = i; }"""

    def arrivals(program: CpuProgram) -> list[int]:
        count, out = np.zeros(1, np.uint32), np.zeros(128, np.uint32)
        run(program, "arrive", 2, 64, count, out)
        assert sorted(out.tolist()) == list(range(128))
        return out.tolist()

    one, other = compile_here(source, order="random"), compile_here(source, order="random", seed=2)
    seen = [
        arrivals(compile_here(source)),
        arrivals(compile_here(source, order="reverse")),
        arrivals(one),
        arrivals(one),
        arrivals(other),
        arrivals(compile_here(source, order="jitter")),
    ]
    assert seen[:2] == [list(range(128)), list(range(127, -1, -1))]
    assert all(a != b for a, b in itertools.combinations(seen, 2))
    assert arrivals(compile_here(source, order="random")) == seen[2], "a seed stands for its orders"
