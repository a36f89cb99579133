"""The threads of one launch: who they are, their registers, and the memory they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.gpu.engine import Dim3, KernelFault, Region
from tests.gpu.ptx.lanes import WARP, Lanes
from tests.gpu.ptx.link import Kernel
from tests.gpu.ptx.memory import POISON, WINDOWS, Fault, Global, Table
from tests.gpu.ptx.syntax import Instruction, Register, Variable
from tests.gpu.ptx.types import UNSIGNED, Array

THREADS_PER_BLOCK = 1024


class Grid:
    """Threads are numbered block by block; a block's last warp is filled up with threads that never live."""

    def __init__(
        self,
        kernel: Kernel,
        addresses: Mapping[Variable, int],
        grid: Dim3,
        block: Dim3,
        args: Sequence[bytes],
        memory: Sequence[Region],
        shared: int,
        random: np.random.Generator | None,
    ) -> None:
        self.kernel, self.addresses = kernel, addresses
        self.grid_size, self.block_size, self.random = grid, block, random
        self.blocks, self.threads = int(np.prod(grid)), int(np.prod(block))
        self._check(args)
        self.warps_per_block = -(-self.threads // WARP)
        self.per_block = self.warps_per_block * WARP
        self.total = self.blocks * self.per_block
        self.warps = self.total // WARP
        number = np.arange(self.total)
        self.block_of = number // self.per_block
        self.number = number % self.per_block
        """Of each thread in its block."""
        self.lane = number % WARP
        self.live = self.number < self.threads
        self.clock = np.zeros(1, np.uint64)
        self.carry = np.zeros(self.total, bool)
        self.registers: dict[int, Array] = {}
        self.shared_dynamic = shared
        self.workspace = np.zeros(64, np.uint8)  # of cooperative groups' grid.sync()
        self.memory = Global([*memory, (self.workspace.ctypes.data, self.workspace.nbytes)])
        self.tables = self._tables(args, shared)

    def _check(self, args: Sequence[bytes]) -> None:
        name, kernel = self.kernel.name, self.kernel
        if not self.blocks or not self.threads:
            raise KernelFault(f"{name}: a launch of {self.grid_size} blocks of {self.block_size} threads")
        limit = kernel.max_threads or THREADS_PER_BLOCK
        if self.threads > limit:
            raise KernelFault(f"{name}: {self.threads} threads a block, where the kernel has at most {limit}")
        sizes = [variable.size for variable in kernel.parameters]
        if len(args) != len(sizes):
            raise KernelFault(f"{name}: {len(args)} arguments for {len(sizes)} parameters")
        for position, (given, size) in enumerate(zip(args, sizes, strict=True)):
            if len(given) != size:
                raise KernelFault(f"{name}: argument {position} has {len(given)} bytes, the parameter {size}")

    def _tables(self, args: Sequence[bytes], shared: int) -> dict[str, Table]:
        sizes, offsets = self.kernel.sizes, self.kernel.offsets
        # Dynamic shared memory begins behind the static, aligned for every type.
        shared_size = -(-sizes["shared"] // 16) * 16 + shared if shared else sizes["shared"]
        tables = {
            "shared": Table("shared", self.blocks, shared_size, lambda lanes: self.block_of[lanes.select]),
            "local": Table("local", self.total, sizes["local"], lambda lanes: lanes.index),
            "frame": Table("frame", self.total, sizes["frame"], lambda lanes: lanes.index),
            "param": Table("param", 1, sizes["param"], lambda lanes: np.zeros(1, np.intp)),
        }
        for variable, given in zip(self.kernel.parameters, args, strict=True):
            start = offsets[variable]
            tables["param"].data[start : start + len(given)] = np.frombuffer(given, np.uint8)
        return tables

    def register(self, register: Register) -> Array:
        """Poisoned until it is written, as memory is."""
        values = self.registers.get(register.index)
        if values is None:
            if register.type.kind == "p":
                values = np.zeros(self.total, bool)
            else:
                poison = np.full(self.total * register.type.width, POISON, np.uint8)
                values = poison.view(UNSIGNED[register.type.width])
            self.registers[register.index] = values
        return values

    def address(self, variable: Variable) -> int:
        """In the variable's own space; those of parameters are generic."""
        if variable.space in ("global", "const"):
            return self.addresses[variable]
        if variable.dynamic:
            return -(-self.kernel.sizes["shared"] // 16) * 16
        offset = self.kernel.offsets[variable]
        return offset + (WINDOWS[variable.space] if variable.space in ("param", "frame") else 0)

    def special(self, name: str) -> Array:
        """One value for each thread, or one for all."""
        base, _, axis = name.partition(".")
        if axis:
            k = "xyz".index(axis)
            grid, block = self.grid_size, self.block_size
            if base == "%tid":
                return (self.number // int(np.prod(block[:k])) % block[k]).astype(np.uint32)
            if base == "%ctaid":
                return (self.block_of // int(np.prod(grid[:k])) % grid[k]).astype(np.uint32)
            values = {"%ntid": block[k], "%nctaid": grid[k]}
            if base in values:
                return np.array([values[base]], np.uint32)
        if name in ("%clock64", "%globaltimer"):
            return self.clock
        if name in ("%clock", "%globaltimer_lo"):
            return self.clock.view(np.uint32)[:1]
        workspace = self.workspace.ctypes.data
        everywhere = {
            "%nwarpid": self.warps_per_block,
            "%smid": 0,
            "%nsmid": 1,
            "%gridid": 0,
            "%dynamic_smem_size": self.shared_dynamic,
            "%total_smem_size": self.tables["shared"].size,
            "%envreg1": workspace >> 32,
            "%envreg2": workspace & 0xFFFFFFFF,
        }
        if name in everywhere:
            return np.array([everywhere[name]], np.uint32)
        own = np.uint32(1) << self.lane.astype(np.uint32)
        by_thread = {
            "%laneid": self.lane,
            "%warpid": self.number // WARP,
            "%lanemask_eq": own,
            "%lanemask_lt": own - np.uint32(1),
            "%lanemask_le": own | (own - np.uint32(1)),
            "%lanemask_gt": ~(own | (own - np.uint32(1))),
            "%lanemask_ge": ~(own - np.uint32(1)),
        }
        if name not in by_thread:
            raise NotImplementedError(f"the special register {name}")
        return by_thread[name].astype(np.uint32)

    def warp_bits(self, index: Array) -> Array:
        """For each warp the lanes that are among the threads of that index, as bits."""
        flags = np.zeros(self.total, bool)
        flags[index] = True
        bits: Array = np.packbits(flags.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32).reshape(-1)
        return bits

    def name_of(self, thread: int) -> str:
        """Where a thread is, as CUDA counts."""
        block, number = int(self.block_of[thread]), int(self.number[thread])
        return f"[block {_position(block, self.grid_size)} thread {_position(number, self.block_size)}]"

    def fault(self, what: str, instruction: Instruction, thread: int) -> KernelFault:
        """An exception that says what happened, at which instruction, and to whom."""
        return KernelFault(f"{self.kernel.name}: {what}, at `{instruction.text}` {self.name_of(thread)}")

    def fault_at(self, instruction: Instruction) -> Fault:
        """Makes such exceptions."""
        return lambda what, thread: self.fault(what, instruction, int(thread))

    def all_lanes(self) -> Lanes:
        """Every thread that lives."""
        return Lanes(np.flatnonzero(self.live))


def _position(number: int, size: Dim3) -> str:
    return f"({number % size[0]},{number // size[0] % size[1]},{number // size[0] // size[1]})"
