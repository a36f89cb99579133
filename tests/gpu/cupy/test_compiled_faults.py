"""The checks of compiled kernels are checked: each finds the bad kernel that it is there to find."""

from __future__ import annotations

import functools

import pytest

from tests.gpu.cupy.test_compiled import needs_disassembler
from tests.gpu.toolkit import checks, nvrtc
from tests.gpu.toolkit.archs import Compiled, assemble
from tests.gpu.toolkit.needs import needs_nvrtc
from tests.gpu.toolkit.pipes import hot_code
from tests.gpu.toolkit.sass import Kernel

pytestmark = [needs_nvrtc, needs_disassembler]

SPILLS = r"""
extern "C" __global__ void __launch_bounds__(1024, 2) k(const double* x, double* y) {
    double a[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = x[threadIdx.x + i * 32];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) y[threadIdx.x + i * 32] = a[i] * a[(i * 7 + 3) % 64];
}
"""
STACK = r"""
extern "C" __global__ void k(const int* x, int* y) {
    int a[64] = {};
    for (int i = 0; i < 64; ++i) a[x[i] & 63] += i;
    y[0] = a[x[65] & 63];
}
"""
GENERIC = r"""
extern "C" __global__ void k(float* x, int where) {
    __shared__ float here[64];
    float* const p = where ? x : here;
    p[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = p[63 - threadIdx.x];
}
"""
NARROW = r"""
extern "C" __global__ void k(const float4* x, float4* y, float* z) {
    z[threadIdx.x] = x[threadIdx.x].x;
}
"""
ARITHMETIC = r"""
extern "C" __global__ void k(double* x, float* y) {
    x[0] = x[1] * x[2] + x[3];
    y[0] = y[1] * y[2];
    y[4] = y[5] / y[6];
}
"""


def assembled(source: str, arch: int) -> Compiled:
    return assemble(source, ("-std=c++17", f"-arch=sm_{arch}"))


def kernel(source: str, arch: int) -> Kernel:
    return assembled(source, arch).kernels()["k"]


@functools.cache
def ptx(*options: str) -> str:
    code, _ = nvrtc.compile(ARITHMETIC, ["-arch=compute_90", *options], "ptx")
    return code.decode()


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_spills_and_stacks_are_seen(arch: int) -> None:
    spilling, stacking = assembled(SPILLS, arch), assembled(STACK, arch)
    assert any("spilled" in fault for fault in checks.resource_faults(spilling.usage(), {"k": 255}))
    assert any("stack frame of 256 bytes" in fault for fault in checks.resource_faults(stacking.usage(), {"k": 255}))
    for made in (spilling, stacking):
        (fault,) = checks.memory_faults("k", made.kernels()["k"])
        assert fault.startswith("k: local ")
        assert "LDL" in fault
        assert "STL" in fault


def test_registers_beyond_the_cap_are_seen() -> None:
    usage = assembled(GENERIC, 90).usage()
    used = usage["k"].registers
    assert checks.resource_faults(usage, {"k": used}) == []
    assert checks.resource_faults(usage, {"k": used - 1}) == [f"k: {used} registers, not {used - 1}"]
    assert checks.resource_faults(usage, {}) == ["k: has no cap"]


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_generic_accesses_are_seen(arch: int) -> None:
    (fault,) = checks.memory_faults("k", kernel(GENERIC, arch))
    assert fault.startswith("k: generic LD")
    assert "ST" in fault.split()[-1]


def test_narrow_accesses_are_seen() -> None:
    faults = checks.memory_faults("k", kernel(NARROW, 90), ("LDG", "STG"))
    assert faults == ["k: no LDG of 128 bits", "k: no STG of 128 bits"]


def test_contractions_are_seen() -> None:
    (line,) = checks.fused(ptx())
    assert line.startswith("fma.rn.f64")
    assert checks.fused(ptx("--fmad=false")) == []


def test_what_is_left_to_the_assembler_is_seen() -> None:
    # With fusion allowed, a product alone does not say how it rounds; nor does a division that may be approximate.
    assert [line.split()[0] for line in checks.unrounded(ptx())] == ["mul.f32"]
    assert checks.unrounded(ptx("--fmad=false")) == []
    assert any("div" in line for line in checks.unrounded(ptx("--fmad=false", "--prec-div=false")))


def test_flushes_are_seen() -> None:
    assert checks.flushes(ptx("--fmad=false")) == []
    assert {line.split()[0] for line in checks.flushes(ptx("-ftz=true", "--fmad=false"))} == {
        "mul.rn.ftz.f32",
        "div.rn.ftz.f32",
    }


def test_parameters_are_added_up() -> None:
    head = ".visible .entry k(\n\t.param .u32 a,\n\t.param .align 8 .b8 b[3],\n\t.param .u64 c\n)\n{\n}\n"
    assert checks.parameter_bytes(".func f(\n\t.param .b64 a\n)\n;\n" + head) == {"k": 24}


def test_a_kernel_without_the_hot_code_is_refused() -> None:
    with pytest.raises(ValueError, match="the code found is that of"):
        hot_code(kernel(NARROW, 90))
