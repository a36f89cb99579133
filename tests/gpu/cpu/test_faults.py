"""What is undefined, forbidden or hangs on a GPU fails the launch, with a sentence that says where."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.gpu.cpu.engine import CpuProgram
from tests.gpu.cpu.helpers import compile_here, run
from tests.gpu.cpu.needs import needs_gxx
from tests.gpu.engine import KernelFault

pytestmark = needs_gxx

SOURCE = r"""
#line 10 "faults.cu"
extern "C" __global__ void part_of_the_block() {
    if (threadIdx.x < 40) __syncthreads();
}
#line 20
extern "C" __global__ void different_lines() {
    if (threadIdx.x < 40)
        __syncthreads();
    else
        __syncthreads();
}
#line 30
extern "C" __global__ void masks(int* out) {
    unsigned mask = threadIdx.x == 9 ? 0x0000ffffu : 0xffffffffu;
    *out = __shfl_xor_sync(mask, 1, 1);
}
#line 40
extern "C" __global__ void call_sites(int* out) {
    if (threadIdx.x & 1)
        *out = __shfl_sync(0xffffffffu, 1, 0);
    else
        *out = __shfl_sync(0xffffffffu, 2, 0);
}
#line 50
extern "C" __global__ void intrinsics(int* out) {
    if (threadIdx.x & 1) __syncwarp(); else *out = __any_sync(0xffffffffu, 1);
}
#line 60
extern "C" __global__ void not_in_its_mask(int* out) {
    *out = __shfl_down_sync(0x0000ffffu, 1, 1);
}
#line 70
extern "C" __global__ void half_exits(int* out) {
    if (threadIdx.x % 32 > 15) return;
    *out = __ballot_sync(0xffffffffu, 1);
}
#line 80
extern "C" __global__ void half_at_barrier(int* out) {
    if (threadIdx.x % 32 > 15) *out = __all_sync(0xffffffffu, 1);
    __syncthreads();
}
#line 90
extern "C" __global__ void traps(const int* in) {
    if (in[blockIdx.x * blockDim.x + threadIdx.x]) __trap();
}
#line 100
template <class T> __device__ __forceinline__ T sum(T value) {
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(0x0000ffffu, value, by);
    return value;
}
extern "C" __global__ void inside_a_template(float* out) { *out = sum(1.0f); }
#line 110
extern "C" __global__ void __launch_bounds__(((2) * 64), 1) bounded(int* out) { *out = 1; }
extern "C" __global__ void unbounded(int* out) { *out = 1; }
#line 120
extern "C" __global__ void poison(unsigned* out) {
    __shared__ unsigned unset[64];
    __shared__ double number;
    out[threadIdx.x] = unset[threadIdx.x];
    if (threadIdx.x == 0) out[0] = isnan(number) ? 0xffffffffu : 0;
    unset[threadIdx.x] = 0;
    number = 0;
}
extern "C" __global__ void no_source(unsigned* out) {
    unsigned v = 7;
    if (threadIdx.x < 16) v = __shfl_sync(0x0000ffffu, threadIdx.x, 20);    // lane 20 takes no part
    out[threadIdx.x] = v;
}
extern "C" __global__ void fewer_than_a_warp(unsigned* out) {               // allowed: lanes that never were
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, threadIdx.x, 4);
}
"""

FAULTS = {
    "part_of_the_block": r"__syncthreads at faults.cu:11 reached by 40 of the block's 64 threads, the others have "
    r"exited",
    "different_lines": r"divergence: a thread waits at __syncthreads at faults.cu:2[24], another at __syncthreads at "
    r"faults.cu:2[24]",
    "masks": r"disagree on mask or call site: __shfl_xor_sync at faults.cu:32 with mask 0x\w{8}, "
    r"others __shfl_xor_sync at faults.cu:32 with mask 0x\w{8}",
    "call_sites": r"disagree on mask or call site: __shfl_sync at faults.cu:4[24] with mask 0xffffffff, "
    r"others __shfl_sync at faults.cu:4[24] with mask 0xffffffff",
    "intrinsics": r"disagree on mask or call site: (__syncwarp|__any_sync) at faults.cu:51",
    "not_in_its_mask": r"__shfl_down_sync at faults.cu:61 with mask 0x0000ffff: the calling lane is not in its "
    r"own mask",
    "half_exits": r"__ballot_sync at faults.cu:72 with mask 0xffffffff: a lane named in the mask has exited",
    "half_at_barrier": r"divergence: a thread waits at __all_sync at faults.cu:81, another at __syncthreads at "
    r"faults.cu:82",
    "inside_a_template": r"__shfl_xor_sync at faults.cu:101 with mask 0x0000ffff: the calling lane is not in its "
    r"own mask",
}

ORDERS: list[dict[str, Any]] = [{}, {"order": "reverse"}, {"order": "random", "threads": 2}, {"order": "jitter"}]


@pytest.fixture(scope="module")
def program() -> CpuProgram:
    return compile_here(SOURCE)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_says_what_and_where(kernel: str, order: dict[str, Any]) -> None:
    program = compile_here(SOURCE, **order)
    args = [np.zeros(64, np.int32) for _ in program.parameters[kernel]]
    with pytest.raises(KernelFault) as fault:
        run(program, kernel, 3, 64, *args)
    where = r" \[block \([012],0,0\) thread \(\d+,0,0\)\]"
    assert re.fullmatch(rf"{kernel}: .*{FAULTS[kernel]}.*{where}", str(fault.value)), fault.value


def test_a_trap_names_its_thread_and_the_next_launch_is_well(program: CpuProgram) -> None:
    flags = np.zeros(192, np.int32)
    flags[64 + 37] = 1
    for _ in range(2):
        with pytest.raises(
            KernelFault, match=re.escape("traps: __trap at faults.cu:91 [block (1,0,0) thread (37,0,0)]")
        ):
            run(program, "traps", 3, 64, flags)
    run(program, "traps", 1, 64, flags)


@pytest.mark.parametrize(
    ("kernel", "grid", "block"),
    [
        ("unbounded", (1, 1, 1), (0, 1, 1)),
        ("unbounded", (1, 1, 1), (1025, 1, 1)),
        ("unbounded", (1, 1, 1), (32, 33, 1)),
        ("unbounded", (1, 1, 1), (2**31, 2**31, 4)),
        ("unbounded", (1, 1, 1), (1, 1, 65)),
        ("unbounded", (0, 1, 1), (32, 1, 1)),
        ("unbounded", (1, 65536, 1), (32, 1, 1)),
        ("unbounded", (-1, 1, 1), (32, 1, 1)),
        ("bounded", (1, 1, 1), (129, 1, 1)),
    ],
)
def test_an_invalid_configuration_runs_nothing(
    program: CpuProgram, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    out = np.zeros(1, np.int32)
    address = np.uint64(out.ctypes.data).tobytes()
    with pytest.raises(KernelFault, match=rf"{kernel}: invalid configuration: grid \(\d+"):
        program.launch(kernel, grid, block, [address], [])
    assert out[0] == 0
    program.launch(kernel, (1, 1, 1), (128, 1, 1), [address], [])
    assert out[0] == 1


def test_shared_memory_starts_poisoned_in_every_block_and_launch(program: CpuProgram) -> None:
    for _ in range(2):
        out = np.zeros(64, np.uint32)
        run(program, "poison", 3, 64, out)
        assert (out == 0xFFFFFFFF).all()


def test_a_shuffle_from_a_lane_that_takes_no_part_is_poisoned(program: CpuProgram) -> None:
    out = np.zeros(32, np.uint32)
    run(program, "no_source", 1, 32, out)
    assert out.tolist() == [0xFFFFFFFF] * 16 + [7] * 16
    run(program, "fewer_than_a_warp", 1, 20, out)
    assert out[:20].tolist() == [*range(4, 20), *[0xFFFFFFFF] * 4]


def test_a_missing_barrier_shows_in_some_order() -> None:
    source = """extern "C" __global__ void first_is_last(unsigned* out) {
        __shared__ unsigned x[64];
        x[threadIdx.x] = threadIdx.x;
        out[threadIdx.x] = x[63 - threadIdx.x];
    }"""
    out = np.zeros(64, np.uint32)
    run(compile_here(source), "first_is_last", 1, 64, out)
    assert 0xFFFFFFFF in out
