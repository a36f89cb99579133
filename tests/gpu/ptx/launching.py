"""What the tests of the interpreter share: arrays at aligned addresses, arguments as bytes, kernels of one opcode."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gpu.engine import Dim3, Region, Traffic
from tests.gpu.ptx.engine import PtxEngine, PtxProgram
from tests.gpu.ptx.types import TYPES, Array

ARCHITECTURES = (75, 90, 120)
SEEDS = (None, 1, 2)


def device_array(values: Any, dtype: Any = None) -> Array:
    """A copy at an address that CUDA's allocator could have given: a multiple of 256."""
    values = np.asarray(values, dtype)
    room = np.zeros(values.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    array: Array = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


def region(array: Array) -> Region:
    """The allocation that an array is."""
    return array.ctypes.data, array.nbytes


def packed(argument: Any) -> bytes:
    """As a launch takes it: an array is its address."""
    if isinstance(argument, np.ndarray):
        return np.uint64(argument.ctypes.data).tobytes()
    return argument if isinstance(argument, bytes) else np.asarray(argument).tobytes()


def launch(
    program: PtxProgram, kernel: str, grid: int | Dim3, block: int | Dim3, *arguments: Any, **more: Any
) -> Traffic:
    """Run; the arrays among the arguments are the allocations."""
    blocks, threads = ((size, 1, 1) if isinstance(size, int) else size for size in (grid, block))
    memory = [region(argument) for argument in arguments if isinstance(argument, np.ndarray)]
    memory += [region(array) for array in more.pop("hidden", ())]
    return program.launch(kernel, blocks, threads, [packed(argument) for argument in arguments], memory, **more)


def run(source: str, grid: int | Dim3, block: int | Dim3, *arguments: Any, arch: int = 90, **more: Any) -> Traffic:
    """Compile CUDA C with a kernel named k, and run it."""
    engine = PtxEngine(arch, more.pop("seed", None), more.pop("steps", 200_000))
    return launch(engine.compile(source, ["-std=c++17"]), "k", grid, block, *arguments, **more)


def apply_opcode(opcode: str, result: str, sources: dict[str, Array], immediates: str = "") -> Array:
    """One instruction on arrays: source types with "name" or "name.2" as keys, in its order."""
    names = [key.split(".")[0] for key in sources]
    count = len(next(iter(sources.values())))
    lines, registers = [], []
    for k, name in enumerate(names):
        width = TYPES[name].width
        registers.append(f".reg .b{8 * width} %s{k};")
        lines.append(f"ld.param.u64 %base, [k_param_{k}]; mad.wide.u32 %at, %tid, {width}, %base;")
        lines.append(f"ld.global.b{8 * width} %s{k}, [%at];")
    size = TYPES[result].width
    operands = ", ".join(["%d", *(f"%s{k}" for k in range(len(names)))]) + immediates
    lines.append(f"{opcode} {operands};")
    lines.append(f"ld.param.u64 %base, [k_param_{len(names)}]; mad.wide.u32 %at, %tid, {size}, %base;")
    lines.append(f"st.global.b{8 * size} [%at], %d; ret;")
    parameters = ", ".join(f".param .u64 k_param_{k}" for k in range(len(names) + 1))
    text = f"""
        .version 8.0
        .target sm_90
        .address_size 64
        .visible .entry k({parameters})
        {{
            .reg .b64 %base, %at; .reg .b32 %tid, %block; .reg .b{8 * size} %d;
            {"".join(registers)}
            mov.u32 %tid, %tid.x; mov.u32 %block, %ctaid.x; mad.lo.u32 %tid, %block, 256, %tid;
            {"".join(lines)}
        }}"""
    assert count % 256 == 0
    out = device_array(np.zeros(count, f"u{size}"))
    given = [device_array(array) for array in sources.values()]
    launch(PtxProgram(text), "k", count // 256, 256, *given, out)
    return out


def bits_of(rng: np.random.Generator, width: int, count: int) -> Array:
    """Random bits, of which floats of every size, infinities and NaNs come out; with the awkward values among them."""
    values = (
        rng.integers(0, 1 << 8 * width, count, dtype=np.uint64, endpoint=False)
        if width < 8
        else rng.integers(0, (1 << 64) - 1, count, dtype=np.uint64, endpoint=True)
    )
    top = 1 << (8 * width - 1)
    awkward = [0, 1, 2, top, top - 1, top + 1, 2 * top - 1, 7, 31, 32, 33, 63, 64, 255]
    where = rng.integers(0, count, count // 8)
    values[where] = rng.choice(np.array(awkward, np.uint64), len(where))
    return values.astype(f"u{width}")
