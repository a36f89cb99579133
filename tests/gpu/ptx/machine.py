"""Runs a grid: threads advance together through the code, part at branches, and wait for one another at barriers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.gpu.engine import Traffic
from tests.gpu.ptx import warp
from tests.gpu.ptx.access import convert_address, is_space, load, store
from tests.gpu.ptx.alu import plan
from tests.gpu.ptx.atomics import atomic
from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.lanes import Lanes, Step
from tests.gpu.ptx.link import FAILING, IGNORED, RETURNED, Call
from tests.gpu.ptx.operands import reader, writer
from tests.gpu.ptx.schedule import Schedule
from tests.gpu.ptx.syntax import Instruction, Variable
from tests.gpu.ptx.types import TYPES, Array

STEPS = 5_000_000
"""How many instructions a launch may issue, each for many threads, before it counts as a runaway."""
NOTHING = ("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "applypriority", "discard")
"""What has no effect where memory is sequentially consistent and time stands still."""

Moved = tuple[int, Lanes] | None
Control = Callable[[int, Lanes], Moved]
"""From a group's place to where it goes on, or None if it parted, waits or ended."""


class Machine:
    """One launch."""

    def __init__(self, grid: Grid, steps: int = STEPS) -> None:
        self.grid, self.kernel, self.steps = grid, grid.kernel, steps
        self.schedule = Schedule(grid)
        self.counts = [0] * len(self.kernel.code)
        self.bound: list[tuple[Step | None, Control | None] | None] = [None] * len(self.kernel.code)
        self.at_barrier: dict[int, Array] = {}
        self.at_collective: dict[int, Array] = {}
        self.executed = 0
        self.returns = np.zeros((self.kernel.depth, grid.total), np.intp)
        self.level = np.zeros(grid.total, np.intp)

    def run(self) -> Traffic:
        """To the end of all threads."""
        self.schedule.put(self.kernel.entry, self.grid.all_lanes().index)
        with np.errstate(all="ignore"):
            while True:
                waiting = bool(self.at_barrier)
                if waiting and (not self.schedule.ready or self.schedule.starved or self.grid.random is not None):
                    self._release()
                if not self.schedule.ready:
                    break
                self._advance(*self.schedule.take())
        self._check_ended()
        return self._traffic()

    def _traffic(self) -> Traffic:
        traffic = Traffic(bank_conflicts=self.grid.tables["shared"].conflicts)
        for instruction, count in zip(self.kernel.code, self.counts, strict=True):
            if count and instruction.opcode != RETURNED:
                traffic.instructions[instruction.opcode] = traffic.instructions.get(instruction.opcode, 0) + count
        self.grid.memory.report(traffic)
        return traffic

    def _advance(self, place: int, index: Array, patience: int) -> None:
        lanes = Lanes(index)
        stop = self.schedule.stop(place + 1)  # warps that stay behind at this place do not stop these
        counts, bound, clock = self.counts, self.bound, self.grid.clock
        while place < stop:
            self.executed += 1
            clock[0] = self.executed
            if self.executed > self.steps:
                raise self.grid.fault(
                    f"{self.steps} instructions were not enough", self.kernel.code[place], int(lanes.index[0])
                )
            counts[place] += lanes.count
            step, control = bound[place] or self._bind(place)
            if step is not None:
                step(lanes)
                place += 1
            elif control is not None:
                moved = control(place, lanes)
                if moved is None:
                    return
                place, lanes = moved
                stop = self.schedule.stop(place)
            patience -= 1
            if patience <= 0:
                self.schedule.starved = True
                break
        self.schedule.put(place, lanes.index)

    # Binding: what an instruction does, once and for all of the launch.

    def _bind(self, place: int) -> tuple[Step | None, Control | None]:
        instruction = self.kernel.code[place]
        control = self._control(instruction)
        step = None if control else self._step(place, instruction)
        if instruction.guard is not None:
            step, control = self._guarded(place, instruction, step, control)
        self.bound[place] = (step, control)
        return step, control

    def _guarded(
        self, place: int, instruction: Instruction, step: Step | None, control: Control | None
    ) -> tuple[Step | None, Control | None]:
        assert instruction.guard is not None
        read, negated = reader(self.grid, instruction.guard, TYPES["pred"]), instruction.guard_negated

        def chosen(lanes: Lanes) -> tuple[Lanes | None, Array]:
            mask = ~read(lanes.select) if negated else read(lanes.select)
            some = lanes.where(mask)
            self.counts[place] -= lanes.count - (some.count if some else 0)
            return some, mask

        def guarded_step(lanes: Lanes) -> None:
            some, _ = chosen(lanes)
            if some is not None and step is not None:
                step(some)

        def guarded_control(place: int, lanes: Lanes) -> Moved:
            some, mask = chosen(lanes)
            if some is None or control is None:
                return place + 1, lanes
            if some is not lanes:
                self.schedule.put(place + 1, lanes.index[~mask])
            return control(place, some)

        return (guarded_step, None) if step is not None else (None, guarded_control)

    def _step(self, place: int, instruction: Instruction) -> Step:
        grid, name = self.grid, instruction.name
        makers = {
            "ld": load,
            "ldu": load,
            "st": store,
            "atom": atomic,
            "red": atomic,
            "cvta": convert_address,
            "isspacep": is_space,
            "activemask": warp.active_mask,
        }
        if name in makers:
            return makers[name](grid, instruction)
        if name in NOTHING:
            return lambda lanes: None
        if instruction.opcode == RETURNED:
            call = self.kernel.calls[place]
            return lambda lanes: self._copy(lanes, [(its, own) for own, its in call.results])
        return self._arithmetic(place, instruction)

    def _arithmetic(self, place: int, instruction: Instruction) -> Step:
        plans = self.kernel.plans  # every launch's
        made = plans[place] = plans.get(place) or plan(instruction)
        readers = [reader(self.grid, operand, type) for operand, type in made.sources]
        writers = [writer(self.grid, operand, type) for operand, type in made.results]
        compute, carry = made.compute, self.grid.carry
        if made.reads_carry:
            readers.append(carry.__getitem__)
        if made.writes_carry:
            writers.append(carry.__setitem__)
        if len(writers) == 1:
            only = writers[0]
            return lambda lanes: only(lanes.select, compute(*[read(lanes.select) for read in readers])[0])

        def step(lanes: Lanes) -> None:
            values = compute(*[read(lanes.select) for read in readers])
            for write, value in zip(writers, values, strict=True):
                write(lanes.select, value)

        return step

    # Control.

    def _control(self, instruction: Instruction) -> Control | None:
        name = instruction.name
        if warp.is_collective(instruction):
            return self._collective(instruction)
        if name in ("bar", "barrier"):
            self._check_barrier(instruction)
            return self._arrive
        if name == "brx":
            return self._indirect(instruction)
        controls = {"bra": self._branch, "ret": self._return, "exit": self._exit, "call": self._call}
        return self._trap if name == "trap" else controls.get(name)

    def _branch(self, place: int, lanes: Lanes) -> Moved:
        return self.kernel.targets[place][0], lanes

    def _indirect(self, instruction: Instruction) -> Control:
        read = reader(self.grid, instruction.operands[0], TYPES["u32"])

        def control(place: int, lanes: Lanes) -> Moved:
            targets = np.array(self.kernel.targets[place], np.intp)
            return self._scatter(targets[np.broadcast_to(read(lanes.select), lanes.count)], lanes)

        return control

    def _scatter(self, places: Array, lanes: Lanes) -> Moved:
        for place in np.unique(places):
            self.schedule.put(int(place), lanes.index[places == place])
        return None

    def _exit(self, place: int, lanes: Lanes) -> Moved:
        self.grid.live[lanes.select] = False
        self._retry_collectives()
        return None

    def _trap(self, place: int, lanes: Lanes) -> Moved:
        raise self.grid.fault("the kernel traps", self.kernel.code[place], int(lanes.index[0]))

    def _call(self, place: int, lanes: Lanes) -> Moved:
        call: Call = self.kernel.calls[place]
        instruction = self.kernel.code[place]
        if call.place < 0:
            if call.function in FAILING:
                raise self.grid.fault("an assertion fails", instruction, int(lanes.index[0]))
            if call.function not in IGNORED:
                raise NotImplementedError(f"{instruction.text} (a function of the driver's)")
            return place + 1, lanes
        self._copy(lanes, list(call.arguments))
        level = self.level[lanes.index]  # a copy
        self.returns[level, lanes.index] = place + 1
        self.level[lanes.select] = level + 1
        return call.place, lanes

    def _return(self, place: int, lanes: Lanes) -> Moved:
        level = self.level[lanes.index]  # a copy
        done = level == 0
        if done.any():
            ended = lanes.where(done)
            assert ended is not None
            self._exit(place, ended)
            if done.all():
                return None
            lanes = Lanes(lanes.index[~done])
            level = level[~done]
        self.level[lanes.select] = level - 1
        return self._scatter(self.returns[level - 1, lanes.index], lanes)

    def _copy(self, lanes: Lanes, pairs: list[tuple[Variable, Variable]]) -> None:
        table, offsets = self.grid.tables["frame"], self.kernel.offsets
        rows = table.data.reshape(-1, table.stride)
        for source, target in pairs:
            size = min(source.size, target.size)
            start, end = offsets[source], offsets[target]
            rows[lanes.select, end : end + size] = rows[lanes.select, start : start + size]

    # Warps: the lanes of a mask wait for one another.

    def _collective(self, instruction: Instruction) -> Control:
        read_mask = warp.mask_reader(self.grid, instruction)
        act = warp.collective(self.grid, instruction)
        grid = self.grid

        def control(place: int, lanes: Lanes) -> Moved:
            waiting = self.at_collective.pop(place, None)
            if waiting is not None:
                lanes = Lanes(np.sort(np.concatenate((waiting, lanes.index))))
            mask = np.broadcast_to(read_mask(lanes.select), lanes.count)
            own = (mask >> grid.lane[lanes.select].astype(np.uint32)) & np.uint32(1)
            if not own.all():
                thread = int(lanes.index[np.argmin(own)])
                raise grid.fault("a lane is not in its own mask", instruction, thread)
            here = grid.warp_bits(lanes.index)
            missing = mask & grid.warp_bits(np.flatnonzero(grid.live))[lanes.warp] & ~here[lanes.warp]
            complete = lanes.where(missing == 0)
            if complete is not lanes:
                self.at_collective[place] = lanes.index[missing != 0]
            if complete is None:
                return None
            act(complete)
            return place + 1, complete

        return control

    def _retry_collectives(self) -> None:
        """Someone whom lanes wait for has gone."""
        for place in list(self.at_collective):
            self.schedule.put(place, self.at_collective.pop(place))

    # Blocks.

    def _check_barrier(self, instruction: Instruction) -> None:
        reduces = "red" in instruction.modifiers
        extent = len(instruction.operands) - (2 if reduces else 0)
        if extent > 1 or not (reduces or "sync" in instruction.modifiers) or "cluster" in instruction.modifiers:
            raise NotImplementedError(instruction.text)

    def _arrive(self, place: int, lanes: Lanes) -> Moved:
        others = self.at_barrier.get(place)
        together = lanes.index if others is None else np.sort(np.concatenate((others, lanes.index)))
        self.at_barrier[place] = together
        return None

    def _release(self) -> None:
        """Let the blocks go on of which all threads wait; fault if nobody can ever go on."""
        grid = self.grid
        by_place = {
            place: np.bincount(grid.block_of[index], minlength=grid.blocks) for place, index in self.at_barrier.items()
        }
        waiting = np.sum(list(by_place.values()), axis=0)
        live = np.bincount(grid.block_of[grid.live], minlength=grid.blocks)
        complete = (waiting == live) & (waiting > 0)
        for place, count in by_place.items():
            index, instruction = self.at_barrier[place], self.kernel.code[place]
            short = complete & (live < grid.threads)
            if short.any():
                block = int(np.argmax(short))
                what = f"a barrier is reached by {live[block]} of {grid.threads} threads, the others have exited"
                raise grid.fault(what, instruction, int(index[grid.block_of[index] == block][0]) if count[block] else 0)
            mixed = complete & (count > 0) & (count < live)
            if mixed.any():
                block = int(np.argmax(mixed))
                what = f"divergence: {count[block]} of {live[block]} threads wait here, the others at another barrier"
                raise grid.fault(what, instruction, int(index[grid.block_of[index] == block][0]))
        for place, index in list(self.at_barrier.items()):
            free = complete[grid.block_of[index]]
            if free.any():
                lanes = Lanes(index[free])
                self._reduce_over_blocks(self.kernel.code[place], lanes)
                del self.at_barrier[place]
                if not free.all():
                    self.at_barrier[place] = index[~free]
                self.schedule.put(place + 1, lanes.index)

    def _reduce_over_blocks(self, instruction: Instruction, lanes: Lanes) -> None:
        if "red" not in instruction.modifiers:
            return
        grid = self.grid
        votes = np.broadcast_to(reader(grid, instruction.operands[-1], TYPES["pred"])(lanes.select), lanes.count)
        blocks = grid.block_of[lanes.select]
        ayes = np.bincount(blocks[votes], minlength=grid.blocks)[blocks]
        if "popc" in instruction.modifiers:
            writer(grid, instruction.operands[0], TYPES["u32"])(lanes.select, ayes.astype(np.uint32))
        else:
            result = ayes == grid.threads if "and" in instruction.modifiers else ayes > 0
            writer(grid, instruction.operands[0], TYPES["pred"])(lanes.select, result)

    def _check_ended(self) -> None:
        """Nobody is ready any more: then nobody may be waiting."""
        for place, index in (*self.at_collective.items(), *self.at_barrier.items()):
            instruction = self.kernel.code[place]
            what = "deadlock at a barrier" if place in self.at_barrier else "lanes of the mask never come"
            raise self.grid.fault(what, instruction, int(index[0]))
