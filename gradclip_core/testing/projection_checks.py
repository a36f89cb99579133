"""The checks of a backend's projections: its passes against ``reference_forms.py``, with ``==``.

Every form, moment, storage type and reading. A tolerance only where a power is taken, in the form
"power" and the moments with powers: libm's ``pow`` differs by platform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from gradclip_core.forms import EXTREMES, FORMS, MOMENTS, Form, Passes, Reading, from_keys, keys, passes_of
from gradclip_core.protocol import FLOAT64, Backend, Buffer, DType, FloatArray
from gradclip_core.reference import widen
from gradclip_core.reference_forms import PASSES as REFERENCE
from gradclip_core.reference_forms import load
from gradclip_core.sets.exact import exact_sum
from gradclip_core.testing import cases
from gradclip_core.testing.memory import Memory, Stored
from gradclip_core.testing.projection_tables import TOLERANCE, ProjectionError, Table, same

POWERS = frozenset({"pow_y", "pow_d", "steep"})

Case = tuple[str, Callable[[], None]]


class ProjectionChecks:
    """Everything that ``Passes`` promises, for one storage type."""

    def __init__(self, passes: Passes, memory: Memory, dtype: DType, thorough: bool) -> None:
        self.passes = passes
        self.memory = memory
        self.dtype = dtype
        self.thorough = thorough
        self.tiny = dtype.itemsize == 1
        """Of 256 values there are few cases, and one array holds them all."""
        self.deep = cases.DEEP[:1] if self.tiny else cases.DEEP

    def named(self) -> Iterator[Case]:
        """The checks, by name."""
        yield from self._forms()
        yield from self._moments()
        for signed in (False, True):
            yield from self._searches("signed" if signed else "magnitudes", signed)
        for topic, run in (("form", self._form_reads), ("tally", self._tally_reads), ("gather", self._gather_reads)):
            yield f"{topic}/{self.dtype}/writes-nothing", run

    # ---- what there is to read -----------------------------------------------------------------

    def _readings(self) -> Iterator[tuple[str, Reading]]:
        yield "plain", Reading()
        yield "third", Reading(1 / 3)
        yield "exponent-up", Reading(exponent=5 if self.tiny else 7)
        yield "exponent-down", Reading(0.5, exponent=-900 if self.dtype is FLOAT64 else -9)
        yield "sanitize", Reading(0.75, sanitize=True)

    def _array(self, reading: Reading, length: int, rows: int = 1) -> tuple[Stored, DType]:
        """Normal numbers as the reading's units are meant for, some zeros, or not finite where it mends them."""
        rng = cases.generator(self.dtype, length)
        wide = rng.standard_normal((rows, length)) / reading.inverse
        wide[:, 3::97] = 0.0
        wide[:, 5::89] = -0.0
        x = cases.stored(np.ldexp(wide, reading.exponent), self.dtype)
        if reading.sanitize and length > 20:
            x[:, 7::50] = cases.stored([np.nan], self.dtype)
            x[:, 8::50] = cases.stored([np.inf], self.dtype)
            x[:, 9::50] = cases.stored([-np.inf], self.dtype)
        return x, self.dtype

    # ---- forms ---------------------------------------------------------------------------------

    def _forms(self) -> Iterator[Case]:
        named = dict(cases.finite(self.dtype, deep=False))
        for kind in FORMS:
            for name, reading in self._readings():
                lengths = (1, 257, 4097) if name == "plain" and not self.tiny else (4097,)
                for length in lengths:
                    table = Table.of([self._array(reading, length)])
                    yield self._form_case(kind, f"{name}-{length}", table, reading)
            for case in ("every-code",) if self.tiny else ("all-magnitudes", "subnormals", "zeros"):
                yield self._form_case(kind, case, Table.of([(named[case][None], self.dtype)], FLOAT64), Reading())
        rows = [self._array(Reading(), length, count) for length, count in ((5, 3), (0, 2), (4097, 2), (300, 1))]
        for kind in FORMS:
            yield self._form_case(kind, "rows", Table.of(rows, FLOAT64), Reading())
        for case, values in (("halfway", cases.halfway(self.dtype)), ("zeros-at-zero", named["zeros"])):
            for kind in ("soft", "shift", "scale", "clamp", "fit"):
                form = Form.of(kind, 1, 0.0 if case == "zeros-at-zero" else 1 + 2.0**-11)
                table = Table.of([(values[None], self.dtype)])
                yield (
                    f"form/{self.dtype}/{kind}-{case}",
                    partial(self.write, table, Reading(), partial(_fixed, form)),
                )
        for case, values in cases.nonfinite(self.dtype):
            if case in ("many-of-each", "all-nan"):
                yield self._form_case("fit", case, Table.of([(values[None], self.dtype)]), Reading())
        if self.thorough:
            table = Table.of([self._array(Reading(), self.deep[-1])])
            yield self._form_case("soft", "deep", table, Reading())

    def _form_case(self, kind: str, case: str, table: Table, reading: Reading) -> Case:
        return f"form/{self.dtype}/{kind}-{case}", partial(self.write, table, reading, partial(table.form, kind))

    def write(self, table: Table, reading: Reading, make: Callable[[Memory], Form]) -> None:
        """In place and out of place, against the reference; the source and the neighbours unchanged."""
        form, ask = make(self.memory), ("y2", "max_d")
        expected = table.put(self.memory)
        moments = REFERENCE.map(expected, expected, reading, form, ask)
        here = table.put(self.memory, shift=1)
        found = self.passes.map(here, here, reading, form, ask)
        self._compare("in place", here, expected, form.kind == "power")
        sources = table.put(self.memory)
        targets = [self.memory.put(np.full_like(x, 3), dtype) for x, dtype in table.arrays]
        self.passes.map(sources, targets, reading, form, ())
        self._compare("out of place", targets, expected, form.kind == "power")
        self._compare("the source of", sources, table.put(self.memory), False)
        if form.kind != "power":  # there, what was written may be a neighbour
            same("the moments of what was written", found, moments)

    def convert(self, to: DType) -> None:
        """To another storage type: half way between two of its values, and less than float32 can tell off that."""
        between = cases.stored(cases.between(to), self.dtype)
        table = Table.of([(np.stack([between] * 3), self.dtype)])
        self.write_to(table, [to], Form.of("scale", 3, np.array([1.0, 1 + 2.0**-40, 1 - 2.0**-40])))
        for reading in (Reading(), Reading(1 / 3), Reading(exponent=3)):
            table = Table.of([self._array(reading, 4099, 2)])
            self.write_to(table, [to], table.form("fit", self.memory), reading)

    def write_to(self, table: Table, to: Sequence[DType], form: Form, reading: Reading = Reading(1 / 3)) -> None:  # noqa: B008  # frozen
        """Into memory of other types, against the reference; the source unchanged."""
        expected, found = (
            [self.memory.put(np.full(x.shape, 3, dtype.view), dtype, shift=1) for (x, _), dtype in pairs]
            for pairs in [list(zip(table.arrays, to, strict=True))] * 2
        )
        sources, ask = table.put(self.memory), ("y2", "max_d")
        moments = REFERENCE.map(sources, expected, reading, form, ask)
        same("the moments of what was converted", self.passes.map(sources, found, reading, form, ask), moments)
        self._compare("converting", found, expected, False)
        self._compare("the source of", sources, table.put(self.memory), False)

    def _compare(self, where: str, found: Sequence[Buffer], expected: Sequence[Buffer], near: bool) -> None:
        for ours, theirs in zip(found, expected, strict=True):
            got, wanted, dtype = self.memory.get(ours), self.memory.get(theirs), ours.dtype
            different = cases.bits(got, dtype) != cases.bits(wanted, dtype)
            if near:
                a, b = (widen(x, dtype).astype(np.float64) for x in (got, wanted))
                different &= ~(np.abs(a - b) <= np.abs(b) * max(TOLERANCE, 2 * dtype.roundoff) + dtype.smallest)
            if different.any():
                i = np.flatnonzero(different)[0]
                raise ProjectionError(
                    f"{where} map: {different.sum()} of {got.size} elements differ, the first at {i}: "
                    f"{got.reshape(-1)[i]!r} is not {wanted.reshape(-1)[i]!r}"
                )
            if not self.memory.guards_intact(ours):
                raise ProjectionError(f"{where} map: memory beside the array was written")

    # ---- moments -------------------------------------------------------------------------------

    def _moments(self) -> Iterator[Case]:
        for kind in FORMS:
            for name in () if self.tiny else MOMENTS:  # of float64 numbers, whatever they were read from
                yield f"moment/{self.dtype}/{kind}-{name}", partial(self._moment, kind, name)
        for name, reading in self._readings():
            table = Table.of([self._array(reading, 4099, 2), self._array(reading, 300)])
            every = [moment for moment in MOMENTS if moment not in POWERS]
            yield f"moment/{self.dtype}/reading-{name}", partial(self.moments, table, reading, "soft", every)
        if self.thorough:
            table = Table.of([self._array(Reading(1 / 3), length) for length in self.deep])
            yield f"moment/{self.dtype}/deep", partial(self.moments, table, Reading(1 / 3), "same", ["abs", "max_d"])

    def _moment(self, kind: str, name: str) -> None:
        shapes = ((1, 1), (257, 3), (0, 2), (4097, 1))
        table = Table.of([self._array(Reading(), length, rows) for length, rows in shapes], FLOAT64)
        self.moments(table, Reading(), kind, [name])

    def moments(self, table: Table, reading: Reading, kind: str, names: Sequence[str]) -> None:
        """With y rounded and not, nothing written."""
        buffers, form = table.put(self.memory), table.form(kind, self.memory, "steep" in names)
        for rounded in (False, True):
            if rounded and kind == "power":
                continue  # a neighbour after rounding is as right, and its moments are others
            found = self.passes.map(buffers, None, reading, form, names, rounded=rounded)
            expected = REFERENCE.map(buffers, None, reading, form, names, rounded=rounded)
            if np.shape(found) != expected.shape:
                raise ProjectionError(f"the moments have shape {np.shape(found)}, not {expected.shape}")
            for name, got, wanted in zip(names, found, expected, strict=True):
                near = kind == "power" or name in POWERS
                same(f"{name}, y {'' if rounded else 'not '}rounded,", got, wanted, near, name in EXTREMES)
        self._compare("the source of", buffers, table.put(self.memory), False)

    # ---- searches ------------------------------------------------------------------------------

    def _searches(self, what: str, signed: bool) -> Iterator[Case]:
        named = dict(cases.finite(self.dtype, deep=False))
        tables = [(name, reading, [self._array(reading, 4099)]) for name, reading in self._readings()]
        tables += [(case, Reading(), [(named[case][None], self.dtype)]) for case in ("all-magnitudes", "subnormals")]
        near = cases.stored(1.0 + cases.generator(self.dtype, 60).integers(0, 1 << 20, 3000) * 2.0**-52, self.dtype)
        tables.append(("alike", Reading(), [(near[None], self.dtype)]))
        one_exponent = cases.stored(1 + cases.generator(self.dtype, 61).random(5000, np.float32), self.dtype)
        tables.append(("one-exponent", Reading(), [(one_exponent[None], self.dtype)]))
        shapes = ((1, 1), (0, 2), (64, 40), (4097, 1))
        tables.append(("rows", Reading(), [self._array(Reading(), length, rows) for length, rows in shapes]))
        if self.thorough:
            tables.append(("deep", Reading(), [self._array(Reading(), length) for length in self.deep]))
        for case, reading, arrays in tables:
            name = f"{self.dtype}/{what}-{case}"
            yield f"tally/{name}", partial(self.tally, arrays, reading, signed)
            yield f"gather/{name}", partial(self.gather, arrays, reading, signed)

    def tally(self, arrays: Sequence[tuple[Stored, DType]], reading: Reading, signed: bool) -> None:
        """At every level, the prefix being that of an element, and once that of none."""
        buffers = [self.memory.put(x, dtype, shift=1) for x, dtype in arrays]
        ordered = _ordered(arrays, reading, signed)
        key = int(ordered[ordered.size // 4])
        for used, prefix in (*((used, key >> (64 - used)) for used in (0, 16, 32, 48)), (16, (1 << 16) - 1)):
            found = self.passes.tally(buffers, reading, signed=signed, prefix=prefix, used=used)
            expected = REFERENCE.tally(buffers, reading, signed=signed, prefix=prefix, used=used)
            for field in ("counts", "high", "low"):
                same(f"{field}, {used} bits used,", getattr(found, field), getattr(expected, field))

    def gather(self, arrays: Sequence[tuple[Stored, DType]], reading: Reading, signed: bool) -> None:
        """All of them, a range, one value, and none."""
        buffers = [self.memory.put(x, dtype, shift=1) for x, dtype in arrays]
        ordered = _ordered(arrays, reading, signed)
        quarter, middle = (int(ordered[ordered.size // part]) for part in (4, 2))
        for low, high in ((0, (1 << 64) - 1), (quarter, middle), (middle, middle), (middle + 1, middle)):
            found = self.passes.gather(buffers, reading, signed=signed, low=low, high=high)
            expected = REFERENCE.gather(buffers, reading, signed=signed, low=low, high=high)
            if found.values.size != expected.values.size:
                raise ProjectionError(f"{found.values.size} elements in a range that holds {expected.values.size}")
            same("the elements, sorted,", np.sort(found.values), np.sort(expected.values))
            if found.above != expected.above:
                raise ProjectionError(f"{found.above} elements above a range that {expected.above} are above")
            above = from_keys(ordered[ordered > np.uint64(high)])
            if _adds_exactly(above) and exact_sum(np.asarray(found.sums, np.float64)) != exact_sum(above):
                raise ProjectionError("the elements above a range do not add up to the sums that came back")

    # ---- what must not be written --------------------------------------------------------------

    def _form_reads(self) -> None:
        table = Table.of([self._array(Reading(), 20_000)])
        form = table.form("soft", self.memory)
        self._written_by("reading moments", lambda b: self.passes.map([b], None, Reading(), form, ("y2",)))

    def _tally_reads(self) -> None:
        self._written_by("a tally", lambda b: self.passes.tally([b], Reading(), signed=True, prefix=0, used=0))

    def _gather_reads(self) -> None:
        high = (1 << 64) - 1
        self._written_by("gathering", lambda b: self.passes.gather([b], Reading(), signed=True, low=0, high=high))

    def _written_by(self, what: str, call: Callable[[Buffer], Any]) -> None:
        buffer = self.memory.put(*self._array(Reading(), 20_000))
        if self.memory.written_by(buffer, lambda: _discard(call(buffer))):
            raise ProjectionError(f"{what} wrote to the memory that it read")


def _adds_exactly(v: FloatArray) -> bool:
    """Whether no sum of 4096 of them is rounded: all are multiples of one number, and within 2^41 of it."""
    fraction, exponent = np.frexp(v[v != 0])
    significand = (np.abs(fraction) * 2.0**53).astype(np.int64)
    last = exponent - 53 + np.log2(significand & -significand).astype(np.int64)
    return v.size == 0 or int(exponent.max(initial=0)) - int(last.min(initial=0)) <= 41


def mixed(passes: Passes, memory: Memory, dtypes: Sequence[DType]) -> Iterator[Case]:
    """All storage types in one call, as rows, and without elements."""
    arrays = [
        (cases.random(dtype, rows * length, salt=50 + rows).reshape(rows, length), dtype)
        for length, rows in ((3, 1), (0, 2), (300, 3), (4099, 1))
        for dtype in dtypes
    ]
    checks, table = ProjectionChecks(passes, memory, FLOAT64, False), Table.of(arrays, FLOAT64)
    every = [name for name in MOMENTS if name not in POWERS]
    for kind in ("soft", "along", "given"):
        yield f"form/mixed/{kind}", partial(checks.write, table, Reading(1 / 3), partial(table.form, kind))
        yield f"moment/mixed/{kind}", partial(checks.moments, table, Reading(1 / 3), kind, every)
    for shift in range(1, len(dtypes)):
        to = [dtypes[(i + shift) % len(dtypes)] for i in range(len(arrays))]
        yield f"form/mixed/to-types-{shift}-on", partial(checks.write_to, table, to, table.form("soft", memory))
    yield "tally/mixed/table", partial(checks.tally, arrays, Reading(1 / 3), True)
    yield "gather/mixed/table", partial(checks.gather, arrays, Reading(1 / 3), True)
    yield "moment/mixed/nothing", partial(checks.moments, Table.of([]), Reading(), "same", every)


def projection_cases(backend: Backend, memory: Memory, dtypes: Sequence[DType], *, thorough: bool) -> Iterator[Case]:
    """All questions to the passes of a backend that says that it has them. Conversions are among ``dtypes``."""
    yield "form/passes/there", partial(_has_passes, backend)
    try:
        passes = passes_of(backend)
    except Exception:  # the case above says why
        return
    for dtype in dtypes:
        checks = ProjectionChecks(passes, memory, dtype, thorough)
        yield from checks.named()
        for to in dtypes:
            if to is not dtype:
                yield f"form/{dtype}/to-{to}", partial(checks.convert, to)
    yield from mixed(passes, memory, dtypes)


def _has_passes(backend: Backend) -> None:
    where = backend.projections  # type: ignore[attr-defined]  # the caller has looked
    try:
        passes = passes_of(backend)
    except Exception as error:  # a broken address fails in any way it likes
        raise ProjectionError(f"its projections={where!r} cannot be imported: {error}") from None
    if missing := [name for name in ("map", "tally", "gather") if not callable(getattr(passes, name, None))]:
        raise ProjectionError(f"its projections={where!r} have no {', '.join(missing)}")


def _ordered(arrays: Sequence[tuple[Stored, DType]], reading: Reading, signed: bool) -> Any:
    """The keys of all elements, rising."""
    with np.errstate(all="ignore"):
        every = np.concatenate([load(x.reshape(-1), dtype, reading) for x, dtype in arrays])
    return np.sort(keys(every if signed else np.abs(every)))


def _fixed(form: Form, memory: Memory) -> Form:
    """A form that needs no memory put."""
    return form


def _discard(_: object) -> None:
    """For calls whose effect is looked at, not their result."""
