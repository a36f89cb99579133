"""What a GPU leaves undefined, or answers with garbage, is refused in a sentence."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tests.gpu.engine import KernelFault
from tests.gpu.ptx.engine import PtxEngine
from tests.gpu.ptx.launching import SEEDS, device_array, run
from tests.gpu.toolkit.needs import needs_nvrtc

pytestmark = needs_nvrtc
HEAD = 'extern "C" __global__ void k(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; '

FAULTS: dict[str, tuple[str, str]] = {
    "one element too far": (
        "if (i <= n) x[i] = 1; }",
        r"k: writes 4 bytes outside every allocation, at 0x\w+, which is 400 bytes into an allocation of 400, "
        r"at `st\.global\.\w+ .*` \[block \(1,0,0\) thread \(36,0,0\)\]",
    ),
    "before the first": ("if (i < n) x[i] = x[i - 1]; }", r"reads 4 bytes outside every allocation"),
    "a null pointer": (
        "if (i == 0) *(double*)(long long)(n - 100) = 1; }",
        r"writes 8 bytes outside every allocation, at 0x0, at",
    ),
    "a vector at an odd place": (
        "if (i < 2) ((float4*)(x + 1))[i] = make_float4(0, 0, 0, 0); }",
        r"misaligned access: 16 bytes at 0x\w+4, at",
    ),
    "shared memory's end": (
        "__shared__ float s[64]; s[threadIdx.x + n - 99] = i; __syncthreads(); x[i % 64] = s[0]; }",
        r"writes 4 bytes at 256 of 256 bytes of shared memory.*thread \(63,0,0\)",
    ),
    "two barriers": (
        "if (threadIdx.x < 16) { x[0] = 1; __syncthreads(); x[1] = 1; } else { __syncthreads(); x[2] = x[1]; } }",
        r"divergence: (16|48) of 64 threads wait here, the others at another barrier",
    ),
    "a barrier that some left": (
        "if (threadIdx.x > 50) return; __syncthreads(); x[i % 64] = 1; }",
        r"a barrier is reached by 51 of 64 threads, the others have exited",
    ),
    "a shuffle in a branch": (
        "float v = x[0]; if (threadIdx.x < 20) v += __shfl_xor_sync(~0u, v, 8); __syncthreads(); x[i % 64] = v; }",
        r"lanes of the mask never come, at `shfl",
    ),
    "a lane out of its mask": (
        "float v = x[0]; v += __shfl_xor_sync(0x0000ffff, v, 8); x[i % 64] = v; }",
        r"a lane is not in its own mask, at `shfl.*thread \(16,0,0\)",
    ),
    "a loop without end": (
        "volatile float* y = x; while (y[0] < 1) y[1] = 0; }",
        r"20000 instructions were not enough, at",
    ),
    "a trap": ("if (i == n) __trap(); }", r"the kernel traps, at `trap;?` \[block \(1,0,0\) thread \(36,0,0\)\]"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, seed: int | None) -> None:
    body, message = FAULTS[name]
    x = device_array(np.zeros(100, np.float32))
    with pytest.raises(KernelFault, match=message):
        run(HEAD + body, 2, 64, x, np.int32(100), seed=seed, steps=20_000)


def test_a_deadlock_of_a_barrier_and_a_shuffle() -> None:
    body = "if (threadIdx.x < 40) __syncthreads(); else __syncwarp(); x[i % 64] = 1; }"
    with pytest.raises(KernelFault, match=r"lanes of the mask never come"):
        run(HEAD + body, 1, 64, device_array(np.zeros(100, np.float32)), np.int32(100))


ARGUMENTS: list[tuple[list[Any], str]] = [
    ([np.int64(100)], r"k: argument 1 has 8 bytes, the parameter 4"),
    ([], r"k: 1 arguments for 2 parameters"),
    ([struct.pack("i", 1), np.float32(2)], r"k: 3 arguments for 2 parameters"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_that_do_not_fit(arguments: list[Any], message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        run(HEAD + "x[i] = n; }", 1, 32, device_array(np.zeros(32, np.float32)), *arguments)


def test_launches_that_do_not_fit() -> None:
    x = device_array(np.zeros(2048, np.float32))
    bounded = HEAD.replace("void k", "void __launch_bounds__(128) k")
    with pytest.raises(KernelFault, match="256 threads a block, where the kernel has at most 128"):
        run(bounded + "x[i] = n; }", 1, 256, x, np.int32(1))
    with pytest.raises(KernelFault, match="2048 threads a block, where the kernel has at most 1024"):
        run(HEAD + "x[i] = n; }", 1, 2048, x, np.int32(1))
    with pytest.raises(KernelFault, match=r"a launch of \(0, 1, 1\) blocks"):
        run(HEAD + "x[i] = n; }", 0, 64, x, np.int32(1))
    with pytest.raises(KernelFault, match=r"no kernel 'other' among \['k'\]"):
        PtxEngine().compile(HEAD + "}", []).launch("other", (1, 1, 1), (1, 1, 1), [], [])


def test_uninitialised_shared_memory_is_poison() -> None:
    x = device_array(np.zeros(64, np.float32))
    run(HEAD + "__shared__ float s[64]; if (i < n) s[i] = i; __syncthreads(); x[i] = s[i]; }", 1, 64, x, np.int32(50))
    assert x[:50].tolist() == list(range(50))
    assert np.isnan(x[50:]).all()
    assert (x[50:].view(np.uint32) == 0xFFFFFFFF).all()


def test_a_missing_barrier_shows_in_a_random_schedule() -> None:
    source = HEAD + "__shared__ float s[128]; s[threadIdx.x] = i; x[i] = s[127 - threadIdx.x]; }"
    wrong = 0
    for seed in range(4):
        x = device_array(np.zeros(256, np.float32))
        run(source, 2, 128, x, np.int32(0), seed=seed)
        wrong += not np.array_equal(x, np.r_[np.arange(128)[::-1], np.arange(128, 256)[::-1]])
    assert wrong


def test_a_counter_that_is_not_atomic_shows_in_a_random_schedule() -> None:
    source = HEAD + "if (threadIdx.x == 0) x[0] += 1; }"
    totals = []
    for seed in range(4):
        x = device_array(np.zeros(1, np.float32))
        run(source, 8, 32, x, np.int32(0), seed=seed)
        totals.append(float(x[0]))
    assert min(totals) < 8
