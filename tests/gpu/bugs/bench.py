"""The GPU backend beside the reference: what it decides and what it writes, compared bit by bit.

``open_bench(engine)`` installs the stand-in for CuPy; ``Bench.clip`` takes a case through both sides.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.device import Case, Reading, Weights
from gradclip_core.passes import measure, measure_carries
from gradclip_core.plan import (
    Decision,
    Segments,
    decide_norms,
    decide_nothing,
    decide_value,
    decide_zero,
    needs_carries,
    stored_limits,
    stored_values,
)
from gradclip_core.protocol import BFLOAT16, DTYPES, Buffer, DType, FloatArray, Scopes
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.reference import narrow, widen
from gradclip_core.testing.memory import HostMemory
from gradclip_core.unitwise import limits_of
from tests.gpu.engine import Engine, Region
from tests.gpu.standin import Entry, Machine, install

Stored = npt.NDArray[Any]
_PATTERN = 77
_AT_ONCE = 16
_GENERAL = 2.0**-40
"""How far NumPy's `pow` and another may be apart, relatively, in a sum and in a factor: some ulps, times the order."""


@dataclass(frozen=True)
class Array:
    """Rows of a storage type; ``shift`` elements past the best alignment."""

    values: FloatArray
    dtype: DType
    shift: int = 0

    def stored(self) -> Stored:
        rows = np.atleast_2d(self.values)
        if self.dtype is BFLOAT16:
            return narrow(rows.astype(np.float32), BFLOAT16)
        return rows.astype(self.dtype.view)


@dataclass(frozen=True)
class Rule:
    """What is asked: scopes (None: one scope with ``limit``), weights, or bounds by value."""

    limit: float = 1.0
    ord: float = 2.0
    policy: str = "propagate"
    inverse: float = 1.0
    scale: Array | None = None
    scopes: Scopes | None = None
    weights: Sequence[Array] | None = None
    eps: float = 1e-3
    bounds: tuple[float, float] | None = None


class Memory:
    """Arrays of exactly their size: on the stand-in's device, or the host's own memory, which ASan watches."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def put(self, array: Array) -> Buffer:
        rows = array.stored()
        block = np.full(rows.size + array.shift, _PATTERN, array.dtype.view)
        block[array.shift :] = rows.reshape(-1)
        owner: Any = block if self.cupy is None else self.cupy.asarray(block)
        pointer = (block.ctypes.data if self.cupy is None else owner.data.ptr) + array.shift * block.itemsize
        return Buffer(pointer, rows.shape[1], array.dtype, rows.shape[0], "cuda:0", owner, stream=1)

    def get(self, buffer: Buffer) -> Stored:
        owner: Any = buffer.owner
        block: Stored = owner.copy() if self.cupy is None else owner.get()
        size = buffer.rows * buffer.length
        before = block[: block.size - size]
        check(bool((before == _PATTERN).all()), "the elements before an array are changed")
        return block[block.size - size :].reshape(buffer.rows, buffer.length)


def check(right: bool, what: str) -> None:
    """An assertion outside of pytest."""
    if not right:
        raise AssertionError(what)


def same(what: str, ours: Any, theirs: Any, dtype: DType | None = None) -> None:
    """To the bit, but that one NaN is as good as another."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    alike = ours == theirs
    if dtype is BFLOAT16:
        alike |= np.isnan(widen(ours, dtype)) & np.isnan(widen(theirs, dtype))
    elif theirs.dtype.kind == "f":
        alike &= np.signbit(ours) == np.signbit(theirs)
        alike |= np.isnan(ours) & np.isnan(theirs)
    if not alike.all():
        at = tuple(int(i) for i in np.argwhere(~alike)[0])
        raise AssertionError(f"{what}{list(at)}: {ours[at]!r} instead of {theirs[at]!r}")


class Bench:
    """A backend, and the memory that its arrays are put in."""

    def __init__(self, backend: Any, memory: Memory, machine: Machine) -> None:
        self.backend = backend
        self.memory = memory
        self.machine = machine

    def clip(self, arrays: Sequence[Array], rule: Rule, after: Any = None, *, targets: str = "new memory") -> Any:
        """Decide, write to new memory and in place; everything as the reference has it. The answer."""
        with np.errstate(all="ignore"):
            return self._clip(arrays, rule, after, targets)

    def _clip(self, arrays: Sequence[Array], rule: Rule, after: Any, targets: str) -> Any:
        buffers = [self.memory.put(array) for array in arrays]
        host = [_on_host(array) for array in arrays]
        weights = None
        if rule.weights is not None:
            weights = Weights([self.memory.put(w) for w in rule.weights], rule.limit, rule.eps)
        expected = _Expected(host, rule, gone=after is not None and after.read().skipped)
        self.machine.log.clear()
        answer = self.backend.decide(buffers, self._case(rule, expected, weights), after)
        reading = answer.read()
        expected.compare(reading)
        self._gated(reading)
        for target in targets.split():
            self._write(arrays, buffers, host, expected, answer, in_place=target == "memory")
        if rule.bounds is not None and "memory" in targets:
            after = self.backend.measure_clipped(buffers, rule.ord, answer).read()
            theirs = measure(REFERENCE, host, rule.ord).found.sums
            same("sums after ", after.found.sums, theirs if expected.decision.clipped else np.zeros_like(theirs))
        return answer

    def _case(self, rule: Rule, expected: _Expected, weights: Weights | None) -> Case:
        scale = None if rule.scale is None else self.memory.put(rule.scale)
        case = Case(rule.ord, rule.policy, math.nan if scale else rule.inverse, scale, weights=weights)
        if rule.bounds is not None:
            pairs = {name: stored_values(rule.bounds, dtype) for name, dtype in DTYPES.items()}
            bounds = {name: (low, high) for name, (low, high) in pairs.items()}
            return replace(case, bounds=bounds, symmetric=rule.bounds[0] == -rule.bounds[1])
        return case if weights is not None else replace(case, scopes=expected.scopes)

    def _write(
        self,
        arrays: Sequence[Array],
        buffers: Sequence[Buffer],
        host: Sequence[Buffer],
        expected: _Expected,
        answer: Any,
        *,
        in_place: bool,
    ) -> None:
        before = [self.memory.get(buffer) for buffer in buffers]
        # Elsewhere, every second one with another alignment.
        shifts = [(array.shift + number) % 2 for number, array in enumerate(arrays)]
        blank = [
            replace(array, values=np.zeros_like(np.atleast_2d(array.values)), shift=shift)
            for array, shift in zip(arrays, shifts, strict=True)
        ]
        outs = buffers if in_place else [self.memory.put(array) for array in blank]
        theirs = host if in_place else [_on_host(array) for array in blank]
        self.machine.log.clear()
        self.backend.act(buffers, outs, answer)
        actions = expected.actions(answer.read())
        REFERENCE.apply(host, theirs, actions)
        for number, (array, out, their) in enumerate(zip(arrays, outs, theirs, strict=True)):
            same(f"array {number} ", self.memory.get(out), their.as_numpy(), array.dtype)
            if not in_place:
                unchanged = self.memory.get(buffers[number]).tobytes() == before[number].tobytes()
                check(unchanged, f"array {number} is written, and it was to be read")
        if in_place:
            self._left_alone(buffers, actions.op)

    def launches(self, *kernels: str) -> list[Entry]:
        """Since the log was cleared, those that the engine has counted for."""
        launched = [e for e in self.machine.log.of("launch") if e.traffic is not None and e.traffic.instructions]
        return [e for e in launched if not kernels or e.kernel.rpartition("_")[0] in kernels]

    def _gated(self, reading: Reading) -> None:
        """Where nothing has to be measured again, a pass reads its gate, and ends."""
        closed = [
            name
            for name, is_open in (("rescale", reading.exponents.any()), ("carries", reading.carried))
            if not is_open
        ]
        for entry in self.launches(*closed) if closed and reading.weights is None else ():
            _ends_at_once(entry)

    def _left_alone(self, buffers: Sequence[Buffer], op: npt.NDArray[np.uint8]) -> None:
        """In place, an array of which nothing is written is not touched at all."""
        first = 0
        for buffer in buffers:
            acts, first = bool(op[first : first + buffer.rows].any()), first + buffer.rows
            for entry in () if acts else self.launches():
                assert entry.traffic is not None
                touched = [r for r in {**entry.traffic.read, **entry.traffic.written} if _is_in(buffer, r)]
                check(not touched, f"{entry.kernel} touches an array that is to be left alone")
        for entry in () if op.any() else self.launches("apply"):
            _ends_at_once(entry)


def _is_in(buffer: Buffer, region: Region) -> bool:
    return region[0] <= buffer.pointer < region[0] + region[1]


def _ends_at_once(entry: Entry) -> None:
    """Each thread finds its parameters and a flag, and returns."""
    assert entry.traffic is not None
    threads = entry.grid[0] * entry.block[0]
    done = sum(entry.traffic.instructions.values()) / threads
    check(done <= _AT_ONCE and not entry.traffic.written, f"{entry.kernel} takes {done} instructions to do nothing")


def _on_host(array: Array) -> Buffer:
    return HostMemory().put(array.stored(), array.dtype, shift=array.shift)


class _Expected:
    """What the reference measures, and what plan.py makes of it."""

    def __init__(self, host: Sequence[Buffer], rule: Rule, *, gone: bool) -> None:
        self.rule, self.host = rule, host
        self.segments = Segments.of(host)
        self.inverse, valid = rule.inverse, True
        if rule.scale is not None:
            stored = rule.scale.stored()
            scale = float(widen(stored, rule.scale.dtype)[0, 0])
            self.inverse, valid = float(np.float64(1.0) / np.float64(scale)), 2.0**-1022 <= scale <= 2.0**1022
        count = self.segments.sizes.size
        self.scopes = rule.scopes or Scopes(np.zeros(count, np.int64), np.array([rule.limit]))
        sound = True
        if rule.weights is not None:
            weights = measure(REFERENCE, [_on_host(w) for w in rule.weights], 2.0)
            self.scopes = Scopes(np.arange(count), limits_of(weights, rule.limit, rule.eps))
            sound = not weights.nonfinite.any()
        sanitize = rule.policy == "sanitize"
        bounds = None
        if rule.bounds is not None and rule.bounds[0] != -rule.bounds[1]:
            low, high = stored_limits(rule.bounds, self.segments)
            bounds = low / self.inverse, high / self.inverse
        self.measured = measure(REFERENCE, host, rule.ord, sanitize=sanitize, bounds=bounds)
        poisoned = bool(self.measured.nonfinite.any()) and rule.policy in ("raise", "skip", "zero")
        self.fault = "" if valid and sound else "weights" if valid else "loss_scale"
        self.skipped = poisoned or gone or bool(self.fault)
        asks = not self.skipped and rule.bounds is None
        if asks and needs_carries(self.measured, self.scopes, self.segments, self.inverse):
            self.measured = measure_carries(REFERENCE, host, self.measured, sanitize=sanitize)
        zero = poisoned and rule.policy == "zero" and not gone and not self.fault
        self.decision = self._decide(zero, sanitize)

    def _decide(self, zero: bool, sanitize: bool) -> Decision:
        if self.skipped:
            return decide_zero(self.segments) if zero else decide_nothing(self.segments)
        if self.rule.bounds is not None:
            return decide_value(self.measured, self.rule.bounds, self.segments, self.inverse, sanitize)
        return decide_norms(self.measured, self.scopes, self.segments, self.inverse, sanitize)

    @property
    def general(self) -> bool:
        return self.rule.ord not in (1, 2, math.inf)

    def actions(self, reading: Reading) -> Any:
        """What the reference is to do: for a general order what the device decided, near enough as it is."""
        return reading.actions if self.general else self.decision.actions

    def compare(self, reading: Reading) -> None:
        ours, theirs = reading.found, self.measured.found
        for name in ("infs", "nans", "outside", "largest"):
            same(f"{name} ", getattr(ours, name), getattr(theirs, name))
        if self.rule.ord in (1, 2):  # no other order has sums that are scaled
            same("exponents ", reading.exponents, self.measured.exponents)
        same("inverse ", reading.inverse, self.inverse)
        check(reading.fault == self.fault, f"fault: {reading.fault!r} instead of {self.fault!r}")
        check(reading.skipped == self.skipped, f"skipped: {reading.skipped} instead of {self.skipped}")
        a, b = reading.actions, self.decision.actions
        same("op ", a.op, b.op)
        if self.general:
            near("sums ", ours.sums, theirs.sums)
            near("factor ", a.factor, b.factor)
            return
        same("sums ", ours.sums, theirs.sums)
        if not self.skipped:
            check(reading.carried == self.measured.carried, f"carried: {reading.carried}")
            same("carries ", ours.carries, theirs.carries)
        for name in ("factor", "coarse", "fine", "low", "high"):
            same(f"{name} ", getattr(a, name), getattr(b, name))
        check(a.sanitize == b.sanitize, f"sanitize: {a.sanitize}")


def near(what: str, ours: FloatArray, theirs: FloatArray) -> None:
    """Within ``_GENERAL``."""
    with np.errstate(invalid="ignore"):
        alike = (np.abs(ours - theirs) <= _GENERAL * np.abs(theirs)) | (ours == theirs)
    alike |= np.isnan(ours) & np.isnan(theirs)
    check(bool(alike.all()), f"{what}: {ours} instead of {theirs}")


@contextmanager
def open_bench(engine: Engine, *, host_memory: bool = False, multiprocessors: int = 4) -> Iterator[Bench]:
    """The stand-in installed, with the backend on it. ``host_memory``: for ASan."""
    with install(engine, devices=1, forget=["gradclip_backends.cupy_raw"]) as machine:
        machine.faults.multiprocessors = multiprocessors
        cupy = importlib.import_module("cupy")
        backend = importlib.import_module("gradclip_backends.cupy_raw").BACKEND
        yield Bench(backend, Memory(None if host_memory else cupy), machine)
