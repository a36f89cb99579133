"""What TSan sees of a kernel: races between CUDA threads.

Each kernel comes in variants, all in one module: right, and with one part that it needs missing.
"""

from __future__ import annotations

import pytest

from tests.gpu.cpu.helpers import run_elsewhere
from tests.gpu.cpu.needs import needs_sanitizer

pytestmark = needs_sanitizer("tsan")

# Every warp leaves a sum; the last warp to arrive, of whatever block, adds them up. Twice: a fence of the first round
# must not stand for one that is missing in the second.
ARRIVE = r"""
#line 1 "arrive.cu"
extern "C" __global__ void NAME(const int* x, int* sums, unsigned* arrived, int* out) {
    const unsigned lane = threadIdx.x % 32, warps = gridDim.x * blockDim.x / 32;
    const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    for (int round = 0; round < 2; ++round) {
        int value = x[warp * 32 + lane];
        for (int by = 16; by; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
        unsigned before = 0;
        if (lane == 0) {
            sums[round * warps + warp] = value;
            BEFORE
            before = atomicAdd(arrived + round, 1u);
            AFTER
        }
        before = __shfl_sync(0xffffffffu, before, 0);
        TOGETHER
        if (before != warps - 1) continue;
        int total = 0;
        for (unsigned i = lane; i < warps; i += 32) total += sums[round * warps + i];
        for (int by = 16; by; by /= 2) total += __shfl_xor_sync(0xffffffffu, total, by);
        if (lane == 0) { out[round] = total; RESET }
    }
}
"""
ARRIVE_PARTS = {
    "BEFORE": "__threadfence();",
    "AFTER": "__threadfence();",
    "TOGETHER": "__syncwarp();",
    "RESET": "arrived[round] = 0;",
}
ARRIVE_MISSING: dict[str, dict[str, str]] = {
    "no_fence_before": {"BEFORE": "", "RESET": "atomicExch(arrived + round, 0u);"},
    "no_fence_before_later": {
        "BEFORE": "if (round == 0) __threadfence();",
        "RESET": "atomicExch(arrived + round, 0u);",
    },
    "no_fence_after": {"AFTER": "", "RESET": "atomicExch(arrived + round, 0u);"},
    "no_fence_after_later": {"AFTER": "if (round == 0) __threadfence();", "RESET": "atomicExch(arrived + round, 0u);"},
    "not_together": {"TOGETHER": ""},
}

ROTATE = r"""
#line 1 "rotate.cu"
extern "C" __global__ void NAME(const int* x, int* out, unsigned* count) {
    __shared__ int held[64];
    for (int round = 0; round < 2; ++round) {
        held[threadIdx.x] = x[threadIdx.x] + round;
        FIRST
        out[OUT] = held[(threadIdx.x + STEP) % 64];
        SECOND
    }
    ADD
}
"""
ROTATE_PARTS = {
    "FIRST": "__syncthreads();",
    "SECOND": "__syncthreads();",
    "OUT": "blockIdx.x * 64 + threadIdx.x",
    "STEP": "1",
    "ADD": "atomicAdd(count, 1u);",
}
ROTATE_MISSING = {
    "no_barrier_first": {"FIRST": ""},
    "no_barrier_second": {"SECOND": ""},
    "no_barrier_downwards": {"SECOND": "", "STEP": "63"},
    "too_small_a_barrier": {"FIRST": "__syncwarp();"},
    "plain_addition": {"ADD": "*count += 1;"},
    "blocks_write_the_same": {"OUT": "threadIdx.x"},
}


def variants(kernel: str, parts: dict[str, str], missing: dict[str, dict[str, str]]) -> str:
    """The kernel ``right`` and one for each thing missing."""
    sources = []
    for name, changes in {"right": {}, **missing}.items():
        source = kernel.replace("NAME", name)
        for part, text in (parts | changes).items():
            source = source.replace(part, text)
        sources.append(source)
    return "".join(sources)


ARRIVE_SOURCE = variants(ARRIVE, ARRIVE_PARTS, ARRIVE_MISSING)
ROTATE_SOURCE = variants(ROTATE, ROTATE_PARTS, ROTATE_MISSING)

RUN_ARRIVE = """
x, sums = np.arange(192, dtype=np.int32), np.zeros(12, np.int32)
arrived, out = np.zeros(2, np.uint32), np.zeros(2, np.int32)
for _ in range(2):
    run(program, "{}", 3, 64, x, sums, arrived, out)
    assert (out == x.sum()).all()
    assert (arrived == 0).all()
"""

RUN_ROTATE = """
x, out, count = np.arange(64, dtype=np.int32), np.zeros(128, np.int32), np.zeros(1, np.uint32)
run(program, "{}", 2, 64, x, out, count)
assert count[0] == 128
assert (out[:64] == np.roll(x, -1) + 1).all()
"""


@pytest.mark.parametrize(
    ("source", "code"), [(ARRIVE_SOURCE, RUN_ARRIVE), (ROTATE_SOURCE, RUN_ROTATE)], ids=["arrive", "rotate"]
)
def test_a_right_kernel_has_no_races(source: str, code: str) -> None:
    done = run_elsewhere("tsan", source, code.format("right"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ARRIVE_MISSING)
def test_the_last_arriver_pattern_of_a_warp_needs_each_of_its_parts(name: str) -> None:
    done = run_elsewhere("tsan", ARRIVE_SOURCE, RUN_ARRIVE.format(name))
    assert done.returncode != 0
    # It is the sums that race: read in line 18 without an order after line 9.
    assert all(words in done.stderr for words in ("data race", "arrive.cu:18", "arrive.cu:9")), done.stderr


@pytest.mark.parametrize("name", ROTATE_MISSING)
def test_a_race_is_found(name: str) -> None:
    done = run_elsewhere("tsan", ROTATE_SOURCE, RUN_ROTATE.format(name))
    assert done.returncode != 0
    assert all(words in done.stderr for words in ("data race", "rotate.cu")), done.stderr


def test_a_failed_launch_is_no_race() -> None:
    source = 'extern "C" __global__ void traps(int* out) { out[threadIdx.x] = 1; if (threadIdx.x == 9) __trap(); }'
    code = """
from tests.gpu.engine import KernelFault
out = np.zeros(64, np.int32)
for _ in range(2):
    try:
        run(program, "traps", 1, 64, out)
    except KernelFault:
        out[:] = 0
    else:
        raise AssertionError
"""
    done = run_elsewhere("tsan", source, code)
    assert (done.returncode, done.stderr) == (0, "")
