"""The kernels as NVRTC compiles them, for every architecture: registers, memory accesses, and roundings. No GPU."""

from __future__ import annotations

import re

import pytest

from tests.gpu.toolkit import archs, checks
from tests.gpu.toolkit.needs import needs_nvrtc
from tests.gpu.toolkit.sass import PACKAGE, has_disassembler

needs_disassembler = pytest.mark.skipif(not has_disassembler(), reason=f"needs a disassembler: pip install {PACKAGE}")
pytestmark = [needs_nvrtc, needs_disassembler]

# Registers of a thread. Beside each cap, the most that is used: by Turing to Hopper, by Blackwell. The launch bounds
# of the passes leave 128, which Blackwell's compiler fills; decisions and the carries have one block a processor, and
# so 255.
CAPS = {
    "apply_inline": 128,  # 96, 128
    "apply_table": 128,  # 127, 128
    "ask_for_carries_inline": 96,  # 85, 86
    "ask_for_carries_table": 96,  # 85, 86
    "carries_inline": 176,  # 138, 164
    "carries_table": 176,  # 136, 162
    "decide_general_inline": 168,  # 116, 156
    "decide_general_table": 168,  # 116, 156
    "decide_norms_inline": 144,  # 118, 136
    "decide_norms_table": 144,  # 118, 136
    "decide_value_inline": 72,  # 40, 62
    "decide_value_table": 72,  # 40, 62
    "gather": 40,  # 34, 38
    "measure_magnitudes_inline": 128,  # 127, 125
    "measure_magnitudes_table": 128,  # 127, 123
    "measure_squares_inline": 128,  # 127, 124
    "measure_squares_table": 128,  # 127, 124
    "powers_inline": 128,  # 90, 114
    "powers_table": 128,  # 94, 114
    "rescale_inline": 96,  # 72, 84
    "rescale_table": 96,  # 72, 84
    "scatter": 40,  # 34, 38
    "store_chunk": 16,  # 8, 9
    "store_large_chunk": 16,  # 8, 9
}
WIDE = {"measure": ("LDG",), "apply": ("LDG", "STG")}

# Instructions that take float32 subnormals for zeros, and why no bit depends on it.
FLUSHES = {
    # fine == 1: a subnormal is not 1, and neither is zero.
    "apply.cu": r"setp\.eq\.ftz\.f32 .*, 0f3F800000;",
    # In `pow`: the upper half of a float64 as a float32, compared with the halves of exp's limits, about 700.
    "general.cu": r"(abs\.ftz\.f32 .*|setp\.lt\.ftz\.f32 .*, 0f4086232B;|setp\.geu\.ftz\.f32 .*, 0f40874800;)",
}
# The same of machine code. F2I is of the division of integers: a reciprocal above 2^-64, times 2^64.
FLUSHING_OPCODES = r"F2I\.FTZ\.U32\.TRUNC\.NTZ|FSETP\.(NEU|GEU|LT|GE)\.FTZ\.AND"

ALL = [(file, arch) for arch in archs.architectures() for file in archs.files()] if has_disassembler() else []
# The source differs between these two alone: where float64 is slow, and where it is fast.
PTX = [75, 90]
# Fused multiply-adds of measure.cu that round nothing: x·x + sum of 16- and 32-bit values, whose squares are exact
# in float64, 32 in the loop of float32; 64 in each loop of 16 bits, or 16 for each of 8 lanes where float64 is slow.
# And in float32 x·scale + 2^23, for each of those lanes' elements, an integer below 2^24: see halves.cuh.
FUSED = {75: (32 + 2 * 8 * 16, 2 * 8 * 16), 90: (32 + 2 * 64, 0)}


@pytest.fixture(scope="module", autouse=True)
def _ahead(request: pytest.FixtureRequest) -> None:
    """All that is about to be asked for is compiled at once, on every core."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    archs.start((params["file"], params["arch"]) for params in chosen if {"file", "arch"} <= set(params))


def test_all_kernels_and_architectures_are_held() -> None:
    assert {75, 80, 86, 89, 90, 100, 120} <= set(archs.architectures())
    assert set(archs.files()) == {path.name for path in archs.kernel_folder().glob("*.cu")}
    kernels = {name for file in archs.files() for name in archs.compiled(file, 90).usage()}
    assert kernels == set(CAPS)


@pytest.mark.parametrize(("file", "arch"), ALL)
def test_machine_code(file: str, arch: int) -> None:
    """No stack, nothing spilled, registers under their caps; global loads and stores, by 16 bytes in the passes."""
    compiled = archs.compiled(file, arch)
    usage, kernels = compiled.usage(), compiled.kernels()
    assert set(usage) == set(kernels)
    faults = checks.resource_faults(usage, CAPS)
    for name, kernel in kernels.items():
        assert kernel.instructions[-1].opcode  # it has been read
        faults += checks.memory_faults(name, kernel, WIDE.get(name.split("_")[0], ()))
        flushing = [opcode for opcode in kernel.opcodes() if "FTZ" in opcode]
        faults += [f"{name}: {opcode}" for opcode in flushing if not re.fullmatch(FLUSHING_OPCODES, opcode)]
    assert not faults


@pytest.mark.parametrize("arch", PTX)
@pytest.mark.parametrize("file", archs.files())
def test_roundings(file: str, arch: int) -> None:
    """Every float operation rounds as it is written, and the only fused ones are those of exact squares."""
    functions = checks.by_function(archs.ptx(file, arch))
    assert set(functions) >= {name for name in CAPS if archs.sources().file_of(name) == file}
    for name, text in functions.items():
        if name == "__internal_accurate_pow":  # the library's, with its own tolerance
            continue
        assert checks.unrounded(text) == [], name
        fused = checks.fused(text)
        if file == "measure.cu":
            squares, integers = FUSED[arch]
            doubles = sum(line.startswith("fma.rn.f64") for line in fused)
            assert doubles == (squares if name.startswith("measure_squares") else 0)
            assert len(fused) - doubles == integers
            assert all(_is_square(line) or _is_integer(line) for line in fused)
        else:
            assert fused == [], name


def _is_square(line: str) -> bool:
    match = re.fullmatch(r"fma\.rn\.f64\s+\S+, (\S+), (\S+), \S+;", line)
    return match is not None and match[1] == match[2]


def _is_integer(line: str) -> bool:
    return re.fullmatch(r"fma\.rn\.f32\s+\S+, \S+, \S+, \S+;", line) is not None


@pytest.mark.parametrize("arch", PTX)
@pytest.mark.parametrize("file", archs.files())
def test_no_subnormal_is_flushed(file: str, arch: int) -> None:
    """``-ftz=true``, which CuPy appends, reaches no instruction whose outcome could change."""
    flushes = checks.flushes(archs.ptx(file, arch))
    assert [line for line in flushes if not re.fullmatch(FLUSHES.get(file, "none"), line)] == []


def test_parameters_fit() -> None:
    """Into 4096 bytes, which every driver takes; larger chunks into the 32,764 of CUDA 12.1 and later."""
    for file in archs.files():
        for name, size in checks.parameter_bytes(archs.ptx(file, PTX[0])).items():
            assert size <= (32_764 if name == "store_large_chunk" else 4096), name
