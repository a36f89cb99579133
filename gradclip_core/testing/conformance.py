"""The checks themselves. Each compares a backend with the reference, with ``==``.

A check's name is ``topic/dtype/case``. ``checks`` yields them lazily, so that a caller can count,
choose, parametrise or stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gradclip_core.device import DeviceBackend
from gradclip_core.protocol import (
    BASE_DTYPES,
    DTYPES,
    FLOAT64,
    LEAVE,
    SCALE,
    ZERO,
    Actions,
    Backend,
    Buffer,
    DType,
    Measurements,
    Request,
    What,
)
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing import cases, decisions
from gradclip_core.testing.device_checks import DeviceChecks
from gradclip_core.testing.memory import HostMemory, Memory, Stored
from gradclip_core.testing.projection_checks import projection_cases
from gradclip_core.testing.projection_tables import ProjectionError

POWER_TOLERANCE = 1e-12
"""Relative, for powers other than 1 and 2, where libm's ``pow`` differs by platform."""


class ConformanceError(AssertionError):
    """A backend differs from the reference. The message says in what."""


@dataclass(frozen=True, slots=True)
class Check:
    """One named question to a backend."""

    name: str
    run: Callable[[], None]
    """Raises ``ConformanceError`` if the answer is wrong."""

    @property
    def topic(self) -> str:
        """The name up to the first slash."""
        return self.name.partition("/")[0]


def checks(
    backend: Backend,
    *,
    dtypes: Sequence[str] | None = None,
    memory: Memory | None = None,
    thorough: bool = True,
) -> Iterator[Check]:
    """Everything a backend promises, as named checks.

    Parameters
    ----------
    backend : the one under test. It need not be registered.
    dtypes : names of the storage types that it claims to serve; None: those that every backend serves, and of
        the others those that it gives no reason against.
    memory : where its arrays live; None: the host's memory.
    thorough : also arrays of some hundred thousand elements, and one of 17 million.
    """
    suite = _Suite(backend, memory or HostMemory(), thorough)
    dtypes = suite.claimed() if dtypes is None else dtypes
    yield Check("supports/request", lambda: suite.supports(dtypes))
    for name in dtypes:
        yield from suite.measure_checks(DTYPES[name])
        yield from suite.apply_checks(DTYPES[name])
    yield Check("measure-table/mixed", lambda: suite.table([DTYPES[name] for name in dtypes]))
    yield Check("apply-table/mixed", lambda: suite.apply_table([DTYPES[name] for name in dtypes]))
    yield Check("measure-table/empty", suite.empty)
    if isinstance(backend, DeviceBackend):
        for name in dtypes:
            for case, situation in decisions.situations(DTYPES[name]):
                yield Check(f"decide-{case}", partial(suite.decision, situation))
            for case, run in DeviceChecks(backend, suite.memory, DTYPES[name]).named():
                yield Check(f"device-{case}", partial(suite.on_device, run))
        yield Check("decide-table/mixed", partial(suite.decision, decisions.mixed([DTYPES[name] for name in dtypes])))
    if hasattr(backend, "projections"):
        host = suite.memory if suite.memory.device == "cpu" else suite.host
        for case, run in projection_cases(backend, host, [DTYPES[name] for name in dtypes], thorough=thorough):
            yield Check(case, partial(suite.on_passes, run))


class _Suite:
    def __init__(self, backend: Backend, memory: Memory, thorough: bool) -> None:
        self.backend = backend
        self.memory = memory
        self.thorough = thorough
        self.host = HostMemory()

    # ---- what it claims ------------------------------------------------------------------------

    def claimed(self) -> list[str]:
        """The storage types that it has to serve, and those that it says it serves."""
        device = frozenset({self.memory.device})
        return [
            name
            for name in DTYPES
            if name in BASE_DTYPES or not self.backend.not_supported_reasons(Request(device, frozenset({name})))
        ]

    def supports(self, dtypes: Sequence[str]) -> None:
        there = [
            name
            for name in ("prepare", "decide", "act", "measure_clipped", "pack", "unpack")
            if hasattr(self.backend, name)
        ]
        if there and not isinstance(self.backend, DeviceBackend):
            raise ConformanceError(
                f"it has {', '.join(there)}, and not all that a device backend has: it is taken for none"
            )
        device = frozenset({self.memory.device})
        if reasons := self.backend.not_supported_reasons(Request(device, frozenset(dtypes))):
            raise ConformanceError(f"it says that it cannot serve {', '.join(dtypes)}: {'; '.join(reasons)}")
        for request in (Request(frozenset({"no such device"}), frozenset()), Request(device, frozenset({"int8"}))):
            reasons = self.backend.not_supported_reasons(request)
            if not reasons or not all(isinstance(reason, str) and len(reason) > 10 for reason in reasons):
                raise ConformanceError(f"asked for {request}, it gives no reason against it: {reasons!r}")

    def decision(self, situation: decisions.Situation) -> None:
        """A decision on the device is the host's, and so is what comes of it."""
        assert isinstance(self.backend, DeviceBackend)
        self.on_device(partial(decisions.check, self.backend, self.memory, situation))

    def on_device(self, run: Callable[[], None]) -> None:
        """A question to a backend that decides on its device."""
        try:
            run()
        except decisions.DecisionError as error:
            raise ConformanceError(str(error)) from None

    def on_passes(self, run: Callable[[], None]) -> None:
        """A question to the passes of projections, in host memory."""
        try:
            run()
        except ProjectionError as error:
            raise ConformanceError(str(error)) from None

    # ---- measure -------------------------------------------------------------------------------

    def measure_checks(self, dtype: DType) -> Iterator[Check]:
        finite = list(cases.finite(dtype, deep=self.thorough))
        for topic, what in (("squares", What(2.0)), ("magnitudes", What(1.0)), ("powers", What(3.5))):
            for case, x in finite:
                yield self._measure_check(topic, dtype, case, x, what)
        for case, x in cases.nonfinite(dtype):
            yield self._measure_check("nonfinite", dtype, case, x, What(2.0))
            yield self._measure_check("sanitize", dtype, case, x, What(2.0, sanitize=True))
            yield self._measure_check("sanitize", dtype, f"abs-{case}", x, What(1.0, sanitize=True))
        for bounds in ((-0.5, 1.5), (-np.inf, 0.25), (0.25, np.inf)):
            low, high = (np.array([bound]) for bound in bounds)
            x = cases.random(dtype, 4200, salt=5)
            x[77] = cases.stored([0.25], dtype)[0]  # on the bound is not outside
            what = What(2.0, bounds=(low, high))
            yield self._measure_check("bounds", dtype, f"{bounds[0]}..{bounds[1]}", x, what)
        if dtype is FLOAT64:
            yield from self._float64_checks()
        if self.thorough:
            yield Check(f"repeatable/{dtype}/16-runs", lambda: self._repeatable(dtype))
            if dtype.name == "float16":
                x = np.resize(cases.random(dtype, 99_991, salt=6), 4096 * 4096 + 4097)
                yield self._measure_check("squares", dtype, "three-levels", x, What(2.0))
        yield Check(f"shifted/{dtype}/1..9", lambda: self._shifted(dtype))
        yield Check(f"measure-writes-nothing/{dtype}", lambda: self._measure_writes(dtype))

    def _float64_checks(self) -> Iterator[Check]:
        for case, x in cases.finite(FLOAT64, deep=self.thorough):
            for power in (1.0, 2.0):
                what = What(power, carry=True)
                yield self._measure_check("carries", FLOAT64, f"{case}-power-{power:g}", x, what)
        for exponent in (-1073, -600, 500, 1024):
            x = np.ldexp(cases.random(FLOAT64, 4500, salt=7), min(exponent, 1020))
            for power in (1.0, 2.0):
                what = What(power, exponents=np.array([exponent]), carry=True)
                yield self._measure_check("exponents", FLOAT64, f"{exponent}-power-{power:g}", x, what)

    def _measure_check(self, topic: str, dtype: DType, case: str, x: Stored, what: What) -> Check:
        return Check(f"measure-{topic}/{dtype}/{case}", lambda: self._measure(dtype, [x[None]], what))

    def _measure(self, dtype: DType, arrays: Sequence[Stored], what: What, shift: int = 0) -> None:
        expected = REFERENCE.measure([self.host.put(x, dtype) for x in arrays], what)
        buffers = [self.memory.put(x, dtype, shift=shift) for x in arrays]
        if what.power not in (1, 2):
            what = What(what.power, units=expected.largest)
            expected = REFERENCE.measure([self.host.put(x, dtype) for x in arrays], what)
        _compare(self.backend.measure(buffers, what), expected, exact=what.power in (1, 2))

    def _repeatable(self, dtype: DType) -> None:
        x = cases.random(dtype, 300_000, salt=8)[None]
        for _ in range(16):
            self._measure(dtype, [x], What(2.0))

    def _shifted(self, dtype: DType) -> None:
        for shift in range(1, 10):
            self._measure(dtype, [cases.random(dtype, 5000, salt=shift)[None]], What(2.0), shift)

    def _measure_writes(self, dtype: DType) -> None:
        buffer = self.memory.put(cases.random(dtype, 20_000)[None], dtype)
        if self.memory.written_by(buffer, lambda: _discard(self.backend.measure([buffer], What(2.0)))):
            raise ConformanceError("measuring wrote to the memory that it measured")

    def table(self, dtypes: Sequence[DType]) -> None:
        """Many arrays of all dtypes in one call, some of them as rows, some without elements."""
        arrays = [
            (cases.random(dtype, rows * length, salt=10 + rows).reshape(rows, length), dtype)
            for length, rows in ((3, 1), (0, 1), (257, 9), (4097, 3), (64, 40), (1, 5), (0, 4))
            for dtype in dtypes
        ]
        expected = REFERENCE.measure([self.host.put(x, dtype) for x, dtype in arrays], What(2.0))
        found = self.backend.measure([self.memory.put(x, dtype) for x, dtype in arrays], What(2.0))
        _compare(found, expected)

    def empty(self) -> None:
        """No arrays at all."""
        _compare(self.backend.measure([], What(2.0)), Measurements.empty(0))
        self.backend.apply([], [], _actions(SCALE, FLOAT64, 0, 0.5))

    # ---- apply ---------------------------------------------------------------------------------

    def apply_checks(self, dtype: DType) -> Iterator[Check]:
        plain = [("normal-4097", cases.random(dtype, 4097, salt=20)), ("normal-3", cases.random(dtype, 3, salt=21))]
        if self.thorough:
            plain.append(("normal-deep", cases.random(dtype, cases.DEEP[1], salt=22)))
        named = dict(cases.finite(dtype, deep=False))
        plain += [(case, named[case]) for case in ("all-magnitudes", "subnormals", "zeros")]
        plain.append(("halfway", cases.halfway(dtype)))
        every = list(cases.nonfinite(dtype))
        plain = plain[:2] + plain[-1:] if dtype.itemsize == 1 else plain  # the last is all there is
        for factor in (0.3, 1 / 3, 2.0**-16, 1 + 2.0**-11, 3 * 2.0**-140, 5.0):
            for case, x in plain:
                yield self._apply_check("scale", dtype, f"{factor:.3g}-{case}", x, _actions(SCALE, dtype, 1, factor))
        for low, high in ((-0.5, 0.5), (-np.inf, 0.25), (0.0, 1.0)):
            for case, x in plain[:2] + every[:6]:
                actions = _actions(SCALE, dtype, 1, 0.75, low, high)
                yield self._apply_check("clamp", dtype, f"{low}..{high}-{case}", x, actions)
        for case, x in every:
            yield self._apply_check("scale-nonfinite", dtype, case, x, _actions(SCALE, dtype, 1, 0.3))
            actions = _actions(SCALE, dtype, 1, 0.5, sanitize=True)
            yield self._apply_check("scale-sanitize", dtype, case, x, actions)
        for case, x in plain[:2] + every[:6]:
            yield self._apply_check("zero", dtype, case, x, _actions(ZERO, dtype, 1))
            yield self._apply_check("leave", dtype, case, x, _actions(LEAVE, dtype, 1))
        yield Check(f"leave-writes-nothing/{dtype}", lambda: self._leave_writes(dtype))

    def _apply_check(self, topic: str, dtype: DType, case: str, x: Stored, actions: Actions) -> Check:
        return Check(f"apply-{topic}/{dtype}/{case}", lambda: self._apply([(x[None], dtype)], actions))

    def _apply(self, arrays: Sequence[tuple[Stored, DType]], actions: Actions) -> None:
        """In place and out of place, against the reference; the source and the neighbours unchanged."""
        expected = [self.host.put(x, dtype) for x, dtype in arrays]
        REFERENCE.apply(expected, expected, actions)
        here = [self.memory.put(x, dtype, shift=1) for x, dtype in arrays]
        self.backend.apply(here, here, actions)
        self._compare_memory("in place", here, expected)
        sources = [self.memory.put(x, dtype) for x, dtype in arrays]
        targets = [self.memory.put(np.full_like(x, 3), dtype) for x, dtype in arrays]
        self.backend.apply(sources, targets, actions)
        self._compare_memory("out of place", targets, expected)
        self._compare_memory("the source of", sources, [self.host.put(x, dtype) for x, dtype in arrays])

    def _compare_memory(self, where: str, found: Sequence[Buffer], expected: Sequence[Buffer]) -> None:
        for ours, theirs in zip(found, expected, strict=True):
            got, wanted = self.memory.get(ours), theirs.as_numpy()
            different = np.flatnonzero(cases.bits(got, ours.dtype) != cases.bits(wanted, ours.dtype))
            if different.size:
                i = different[0]
                raise ConformanceError(
                    f"{where} apply: {different.size} of {got.size} elements differ, the first at {i}: "
                    f"{got.reshape(-1)[i]!r} is not {wanted.reshape(-1)[i]!r}"
                )
            if not self.memory.guards_intact(ours):
                raise ConformanceError(f"{where} apply: memory beside the array was written")

    def _leave_writes(self, dtype: DType) -> None:
        buffer = self.memory.put(cases.random(dtype, 20_000)[None], dtype)
        actions = _actions(LEAVE, dtype, 1)
        if self.memory.written_by(buffer, lambda: self.backend.apply([buffer], [buffer], actions)):
            raise ConformanceError("memory that was to be left alone was written")

    def apply_table(self, dtypes: Sequence[DType]) -> None:
        """Every action next to every other, over rows and arrays without elements."""
        arrays = [
            (cases.random(dtype, rows * length, salt=30 + rows).reshape(rows, length), dtype)
            for length, rows in ((5, 1), (0, 1), (300, 7), (4099, 2))
            for dtype in dtypes
        ]
        owners = [dtype for x, dtype in arrays for _ in range(x.shape[0])]
        parts = [_actions(i % 3, dtype, 1, 0.1 + i / 64) for i, dtype in enumerate(owners)]
        op, factor, coarse, fine, low, high = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("op", "factor", "coarse", "fine", "low", "high")
        )
        self._apply(arrays, Actions(op, factor, coarse, fine, low, high))


def _actions(
    op: int,
    dtype: DType,
    count: int,
    factor: float = 1.0,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    sanitize: bool = False,
) -> Actions:
    from gradclip_core.plan import actions_of
    from gradclip_core.precision.factors import round_down_float32

    factors = np.full(count, factor)
    if dtype is not FLOAT64:
        factors = round_down_float32(factors)
    lows, highs = np.full(count, low), np.full(count, high)
    return actions_of(np.full(count, op, np.uint8), factors, lows, highs, sanitize)


def _compare(found: Measurements, expected: Measurements, exact: bool = True) -> None:
    for field in ("sums", "largest", "infs", "nans", "outside", "carries"):
        got, wanted = np.asarray(getattr(found, field)), getattr(expected, field)
        if got.shape != wanted.shape:
            raise ConformanceError(f"{field} has shape {got.shape}, not {wanted.shape}")
        same = (got == wanted) | ((got != got) & (wanted != wanted))
        if field == "sums" and not exact:
            with np.errstate(invalid="ignore"):
                same |= np.abs(got - wanted) <= POWER_TOLERANCE * np.abs(wanted)
        if not same.all():
            i = np.flatnonzero(~same)[0]
            raise ConformanceError(f"{field}[{i}] is {got[i]!r}, and the reference says {wanted[i]!r}")


def _discard(_: object) -> None:
    """For calls whose effect is looked at, not their result."""
