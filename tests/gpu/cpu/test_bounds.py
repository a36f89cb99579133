"""What ASan and UBSan see of a kernel: bounds and alignment."""

from __future__ import annotations

import pytest

from tests.gpu.cpu.engine import CpuEngine, FlavourName
from tests.gpu.cpu.helpers import run_elsewhere
from tests.gpu.cpu.needs import needs_gxx, needs_sanitizer

with_asan = needs_sanitizer("asan")

MEMORY = r"""
#line 1 "memory.cu"
extern "C" __global__ void copy(const float* from, float* to, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = from[i];
}
extern "C" __global__ void vectors(const uint4* from, uint4* to) { to[threadIdx.x] = from[threadIdx.x]; }
extern "C" __global__ void shared(int n, int* to) {
    __shared__ int x[8];
    __shared__ int y[8];
    if (threadIdx.x < n) x[threadIdx.x] = 1;
    y[threadIdx.x % 8] = 2;
    __syncthreads();
    to[threadIdx.x] = x[threadIdx.x % 8] + y[threadIdx.x % 8];
}
extern "C" __global__ void traps() { if (threadIdx.x == 5) __trap(); __syncthreads(); }
"""

CLEAN_MEMORY = """
x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
run(program, "copy", 2, 32, x, y, np.int32(40))
assert (x == y).all()
run(program, "vectors", 1, 10, x + 1, y)
run(program, "shared", 2, 32, np.int32(8), y)
from tests.gpu.engine import KernelFault
for _ in range(3):
    try:
        run(program, "traps", 1, 64)
    except KernelFault as fault:
        assert str(fault) == "traps: __trap at memory.cu:14 [block (0,0,0) thread (5,0,0)]", fault
    else:
        raise AssertionError
run(program, "copy", 2, 32, x, y, np.int32(40))
print("done")
"""

BAD_MEMORY = {
    "a load beyond the end": (
        "run(program, 'copy', 1, 32, np.zeros(40, np.float32), np.zeros(41, np.float32), np.int32(41))",
        ["heap-buffer-overflow", "READ of size 4", "memory.cu:3"],
    ),
    "a store before the start": (
        "y = np.zeros(41, np.float32); run(program, 'copy', 1, 32, y, np.uint64(y.ctypes.data - 4), np.int32(1))",
        ["heap-buffer-overflow", "WRITE of size 4", "memory.cu:3"],
    ),
    "a misaligned vector": (
        "run(program, 'vectors', 1, 8, np.zeros(90, np.float32)[1:], np.zeros(90, np.float32))",
        ["misaligned address", "requires 16 byte alignment", "memory.cu:5"],
    ),
    "shared memory beyond the end": (
        "run(program, 'shared', 1, 32, np.int32(9), np.zeros(32, np.int32))",
        ["memory.cu:9", "out of bounds"],
    ),
}


@with_asan
def test_asan_lets_good_kernels_and_faults_through() -> None:
    done = run_elsewhere("asan", MEMORY, CLEAN_MEMORY)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@with_asan
@pytest.mark.parametrize("case", BAD_MEMORY)
def test_asan_finds(case: str) -> None:
    code, words = BAD_MEMORY[case]
    done = run_elsewhere("asan", MEMORY, code)
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr


@needs_gxx
@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_a_process_without_the_runtime_is_refused(flavour: FlavourName) -> None:
    with pytest.raises(RuntimeError, match=f"sanitizer_environment\\('{flavour}'\\)"):
        CpuEngine(flavour).compile(MEMORY, ())
