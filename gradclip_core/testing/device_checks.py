"""The checks of what a device backend owes besides its decisions: who gives up, what is a fault, strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gradclip_core.device import Case, DeviceBackend, Strided
from gradclip_core.protocol import DTYPES, FLOAT32, LEAVE, Buffer, DType, Scopes, What
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing import cases
from gradclip_core.testing.decisions import DecisionError, Situation, answered
from gradclip_core.testing.memory import HostMemory, Memory

_ONE = Scopes(np.zeros(1, np.int64), np.array([1.0]))
_CASE = Case(2.0, "skip", 1.0, scopes=_ONE)


class DeviceChecks:
    """Named questions to a backend, for one storage type. Each raises ``DecisionError``."""

    def __init__(self, backend: DeviceBackend, memory: Memory, dtype: DType) -> None:
        self.backend = backend
        self.memory = memory
        self.dtype = dtype
        self.host = HostMemory()

    def named(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """``topic/dtype/case``, and what to run."""
        yield f"after/{self.dtype}/a-rule-that-gave-up", self.gives_up_after
        yield f"after/{self.dtype}/a-rule-that-did-not", self.goes_on_after
        yield f"faults/{self.dtype}/loss-scale", self.loss_scale_fault
        yield f"faults/{self.dtype}/poisoned", self.poisoned
        yield f"act-writes-nothing/{self.dtype}/left-alone", self.act_writes_nothing
        yield f"clipped/{self.dtype}/measured-after", self.measured_after
        for name, (shape, strides) in _STRIDES.items():
            yield f"strides/{self.dtype}/{name}", self._strides_check(shape, strides)

    def _put(self, salt: int, *, poison: bool = False, length: int = 5000) -> Buffer:
        x = cases.random(self.dtype, length, salt=salt)
        if poison:
            x[77] = cases.stored([np.nan], self.dtype)[0]
        return self.memory.put(x[None], self.dtype)

    def gives_up_after(self) -> None:
        """A rule behind one that gave up leaves everything alone, whatever it finds."""
        buffers = [self._put(90, poison=True)]
        first = self.backend.decide(buffers, _CASE)
        second = self.backend.decide(buffers, replace(_CASE, nonfinite="propagate"), first).read()
        if not second.skipped or (second.actions.op != LEAVE).any():
            raise DecisionError(f"behind a rule that gave up it decides {second.actions.op} (skipped {second.skipped})")

    def goes_on_after(self) -> None:
        """A rule behind one that did not give up decides as it would alone."""
        x = cases.random(self.dtype, 5000, salt=91)
        buffers = [self.memory.put(x[None], self.dtype)]
        second = self.backend.decide(buffers, _CASE, self.backend.decide(buffers, _CASE)).read()
        wanted = answered(Situation([(x[None], self.dtype)], _CASE)).actions
        if second.skipped or second.actions.factor[0] != wanted.factor[0]:
            raise DecisionError(
                f"behind another rule the factor is {second.actions.factor[0]!r}, not {wanted.factor[0]!r}"
            )

    def loss_scale_fault(self) -> None:
        """A loss scale that is none: said to be one, and nothing is to be written."""
        for bad in (0.0, -1.0, np.nan, np.inf):
            scale = self.memory.put(np.array([[bad]], np.float32), FLOAT32)
            buffers = [self._put(92)]
            before = self.memory.get(buffers[0])
            answer = self.backend.decide(buffers, replace(_CASE, nonfinite="propagate", loss_scale=scale))
            self.backend.act(buffers, buffers, answer)
            reading = answer.read()
            if reading.fault != "loss_scale" or not answer.poisoned() or (reading.actions.op != LEAVE).any():
                raise DecisionError(f"a loss scale of {bad} is taken (fault {reading.fault!r})")
            if (cases.bits(self.memory.get(buffers[0]), self.dtype) != cases.bits(before, self.dtype)).any():
                raise DecisionError(f"with a loss scale of {bad} the gradients were written")

    def poisoned(self) -> None:
        """Whether anything is wrong is what ``nonfinite="raise"`` asks before it writes."""
        for policy in ("raise", "propagate"):
            for poison in (False, True):
                answer = self.backend.decide([self._put(93, poison=poison)], replace(_CASE, nonfinite=policy))
                if answer.poisoned() != poison:
                    raise DecisionError(f"poisoned is {answer.poisoned()}, with{'' if poison else 'out'} a NaN")

    def act_writes_nothing(self) -> None:
        """What is to be left alone is not written, not even the bytes that are there."""
        buffer = self._put(94, length=20_000)
        loose = replace(_CASE, scopes=Scopes(np.zeros(1, np.int64), np.array([1e6])))
        answer = self.backend.decide([buffer], loose)
        if self.memory.written_by(buffer, lambda: self.backend.act([buffer], [buffer], answer)):
            raise DecisionError("memory that was to be left alone was written")

    def measured_after(self) -> None:
        """What a by-value clip has made is measured, and nothing is where it clipped nothing."""
        for high in (0.5, 8192.0):  # values that every storage type holds
            bounds = dict.fromkeys(DTYPES, (-high, high))
            buffer = self._put(95)
            answer = self.backend.decide([buffer], Case(2.0, "propagate", 1.0, bounds=bounds))
            self.backend.act([buffer], [buffer], answer)
            found = self.backend.measure_clipped([buffer], 2.0, answer).read().found.sums[0]
            wanted = REFERENCE.measure([self.host.put(self.memory.get(buffer), self.dtype)], What(2.0)).sums[0]
            if high < 1 and found != wanted:
                raise DecisionError(f"after a clip by value the sum is {found!r}, not {wanted!r}")
            if high > 1 and found != 0:
                raise DecisionError(f"nothing was clipped, and {found!r} was measured all the same")

    def _strides_check(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> Callable[[], None]:
        return lambda: self.strides(shape, strides)

    def strides(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        """Packed in C order of the axes, and put back where it came from, unless it was left alone."""
        item = self.dtype.itemsize
        outer = self._put(96, length=400)
        x = self.memory.get(outer).reshape(-1)
        start = 200 if min(strides) < 0 else 0
        numbers = np.arange(x.size)
        index = as_strided(numbers[start:], shape, [numbers.itemsize * stride for stride in strides]).copy()
        wanted = x[index].reshape(1, -1)
        like = replace(outer, pointer=outer.pointer + start * item, length=wanted.size)
        place = Strided(like.pointer, shape, tuple(s * item for s in strides), item, like)
        packed = self.backend.pack(place)
        dense = self.memory.put(np.zeros_like(wanted), self.dtype)
        self.backend.unpack(packed, Strided(dense.pointer, (wanted.size,), (item,), item, dense), None, 0)
        if (cases.bits(self.memory.get(dense), self.dtype) != cases.bits(wanted, self.dtype)).any():
            raise DecisionError(f"shape {shape} with strides {strides} is packed in another order")
        answer = self.backend.decide([packed], replace(_CASE, nonfinite="propagate"))
        self.backend.act([packed], [packed], answer)
        self.backend.unpack(packed, place, answer, 0)
        clipped = self.host.put(wanted, self.dtype)
        REFERENCE.apply([clipped], [clipped], answer.read().actions)
        x[index] = clipped.as_numpy().reshape(index.shape)
        if (cases.bits(self.memory.get(outer), self.dtype).reshape(-1) != cases.bits(x, self.dtype)).any():
            raise DecisionError(f"shape {shape} with strides {strides} is put back elsewhere")


_STRIDES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "every-second": ((30,), (2,)),
    "transposed": ((7, 11), (1, 7)),
    "columns": ((6, 5), (20, 1)),
    "backwards": ((13,), (-3,)),
    "three-axes": ((3, 4, 5), (1, 70, 9)),
    "with-an-axis-of-one": ((4, 1, 6), (40, 999, 2)),
}
