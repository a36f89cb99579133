"""The checks of a backend that decides on its device: to the bit what ``plan.py`` decides, and then written.

The host decides on what the reference measures; the backend is asked the same case. Orders other
than 1, 2 and infinity are held to a tolerance, as their norms are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradclip_core.device import Case, DeviceBackend, Reading, Weights
from gradclip_core.norms import Measured, rescaling, scope_norms
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
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.protocol import DTYPES, FLOAT64, Buffer, DType, Scopes, What
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing import cases
from gradclip_core.testing.memory import HostMemory, Memory, Stored

Arrays = Sequence[tuple[Stored, DType]]
TOLERANCE = 1e-11
"""Relative, for the factors of a general order: its norm is known to 1e-12."""


class DecisionError(AssertionError):
    """What differs. The suite raises its own error of it."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Gradients, and what is asked about them. ``scale`` is a loss scale that lies on the device."""

    arrays: Arrays
    case: Case
    scale: float | None = None
    weights: Arrays | None = None


def situations(dtype: DType) -> Iterator[tuple[str, Situation]]:
    """Named situations of one storage type."""
    plain = [(cases.random(dtype, n, salt=40 + n)[None], dtype) for n in (5, 4097, 0, 300)]
    for limit, inverse, order in itertools.product((1e-3, 7.0, 1e6, 0.0), (1.0, 2.0**-10, 1 / 3), (1.0, 2.0, np.inf)):
        case = Case(order, "propagate", inverse, scopes=_together(4, limit))
        yield f"norms/{dtype}/global-{limit:g}-{inverse:.3g}-ord-{order:g}", Situation(plain, case)
    each = Scopes(np.arange(4), np.array([0.5, 3.0, 1.0, 1e9]))
    groups = Scopes(np.array([1, 0, 1, 0]), np.array([2.0, np.inf]))
    for name, scopes in (("each", each), ("each-alike", Scopes(np.arange(4), np.full(4, 0.3))), ("groups", groups)):
        yield f"norms/{dtype}/{name}", Situation(plain, Case(2.0, "propagate", 0.25, scopes=scopes))
    at = float(scope_norms(_measure(plain, Case(2.0, "raise", 1.0)), np.zeros(4, np.int64), 1).value()[0])
    for factor in (1 - 2.0**-40, 1.0, 1 + 2.0**-40):
        case = Case(2.0, "propagate", 1.0, scopes=_together(4, at * factor))
        yield f"norms/{dtype}/at-the-threshold-{factor!r}", Situation(plain, case)
    yield f"general/{dtype}/ord-3.5", Situation(plain, Case(3.5, "propagate", 0.5, scopes=_together(4, 2.0)))
    rows = [
        (cases.random(dtype, 21 * 37, salt=60).reshape(21, 37), dtype),
        (cases.random(dtype, 9, salt=61)[None], dtype),
    ]
    weights = [
        (cases.random(dtype, 21 * 37, salt=62).reshape(21, 37), dtype),
        (cases.stored(np.zeros((1, 9)), dtype), dtype),
    ]
    asked = Case(2.0, "propagate", 1.0, weights=Weights([], 0.75, 1e-3))
    yield f"weights/{dtype}/units", Situation(rows, asked, weights=weights)
    for low, high in ((-0.5, 0.5), (-0.25, 1.5), (-np.inf, 0.125), (0.0, 0.0)):
        for inverse in (1.0, 0.1):
            case = Case(2.0, "propagate", inverse, bounds=_bounds(low, high), symmetric=low == -high)
            yield f"value/{dtype}/{low}..{high}-{inverse}", Situation(plain, case)
    bad = [plain[0], (_poisoned(dtype), dtype), plain[3]]
    for policy in ("raise", "skip", "zero", "sanitize", "propagate"):
        case = Case(2.0, policy, 0.5, scopes=_together(3, 1.0))
        yield f"policies/{dtype}/norm-{policy}", Situation(bad, case)
        yield f"policies/{dtype}/largest-{policy}", Situation(bad, replace(case, ord=np.inf))
        value = Case(2.0, policy, 1.0, bounds=_bounds(-0.5, 0.5))
        yield f"policies/{dtype}/value-{policy}", Situation(bad, value)
    for scale in (1024.0, 3.0):
        case = Case(2.0, "skip", 0.0, scopes=_together(4, 1.0))
        yield f"scale/{dtype}/{scale:g}", Situation(plain, case, scale=scale)
        value = Case(2.0, "skip", 0.0, bounds=_bounds(-0.01, 0.02), symmetric=False)
        yield f"scale/{dtype}/value-{scale:g}", Situation(plain, value, scale=scale)
    for size in (2.0**-149, 2.0**-130, 2.0**120) if dtype.itemsize > 1 else ():
        huge = [(cases.stored(cases.generator(dtype, 70).standard_normal(600) * size, dtype)[None], dtype)]
        for limit in (size / 8, 1e-3):
            case = Case(2.0, "propagate", 1.0, scopes=_together(1, limit))
            yield f"norms/{dtype}/size-{size:.3g}-limit-{limit:.3g}", Situation(huge, case)
    if dtype is FLOAT64:
        yield from _float64_situations()


def _float64_situations() -> Iterator[tuple[str, Situation]]:
    """Beyond the range of squares, and where only the carries tell what is over."""
    for sizes in ((1e-200, 1e200), (1e-308, 1e-300), (1e300, 1e300), (1.0, 1e250)):
        arrays = [(cases.random(FLOAT64, 500, salt=i)[None] * size, FLOAT64) for i, size in enumerate(sizes)]
        for limit in (1.0, 1e-310, 1e290):
            case = Case(2.0, "propagate", 1.0, scopes=_together(2, limit))
            yield f"rescaled/float64/{sizes[0]:g}-{sizes[1]:g}-limit-{limit:g}", Situation(arrays, case)
            each = Scopes(np.arange(2), np.full(2, limit))
            yield (
                f"rescaled/float64/each-{sizes[0]:g}-{sizes[1]:g}-limit-{limit:g}",
                Situation(arrays, replace(case, scopes=each)),
            )
    lost = np.full((16, 256), 1e-8)
    lost[0] = 1.0
    for copies, order in itertools.product((1, 3), (1.0, 2.0)):
        arrays = [(lost.reshape(1, -1) * (1 + i / 8), FLOAT64) for i in range(copies)]
        norm = float(scope_norms(_measure(arrays, Case(order, "raise", 1.0)), np.zeros(copies, np.int64), 1).value()[0])
        for limit in (norm * (1 - 2.0**-53), norm / 3):
            case = Case(order, "propagate", 1.0, scopes=_together(copies, limit))
            yield f"carried/float64/{copies}-ord-{order:g}-{limit:.3f}", Situation(arrays, case)


def mixed(dtypes: Sequence[DType]) -> Situation:
    """Several storage types in one call, more arrays than most backends take by value."""
    arrays = [(cases.random(dtype, 3 + 7 * i, salt=80 + i)[None], dtype) for i in range(25) for dtype in dtypes]
    ids = np.arange(len(arrays)) % 7
    return Situation(arrays, Case(2.0, "propagate", 0.5, scopes=Scopes(ids, 0.5 + np.arange(7.0))))


def check(backend: DeviceBackend, memory: Memory, situation: Situation) -> None:
    """Ask, compare, and write in place and out of place. Raises ``DecisionError``."""
    host = HostMemory()
    buffers = [memory.put(x, dtype) for x, dtype in situation.arrays]
    case = situation.case
    if situation.scale is not None:
        case = replace(case, loss_scale=memory.put(np.array([[situation.scale]], np.float32), DTYPES["float32"]))
    if situation.weights is not None:
        assert case.weights is not None
        case = replace(case, weights=replace(case.weights, buffers=[memory.put(x, d) for x, d in situation.weights]))
    answer = backend.decide(buffers, case)
    decision, skipped = expected(situation)
    _compare(answer.read(), decision, skipped, exact=case.ord in (1, 2, np.inf))
    if case.ord not in (1, 2, np.inf):
        return
    wanted = [host.put(x, dtype) for x, dtype in situation.arrays]
    REFERENCE.apply(wanted, wanted, decision.actions)
    new = [memory.put(np.full_like(x, 3), dtype) for x, dtype in situation.arrays]
    backend.act(buffers, new, answer)
    backend.act(buffers, buffers, answer)
    for where, found in (("out of place", new), ("in place", buffers)):
        for ours, theirs in zip(found, wanted, strict=True):
            got = cases.bits(memory.get(ours), ours.dtype)
            if (got != cases.bits(theirs.as_numpy(), theirs.dtype)).any() or not memory.guards_intact(ours):
                raise DecisionError(f"{where}, what was written is not what was decided")


def expected(situation: Situation) -> tuple[Decision, bool]:
    """What the host decides, and whether it gave up."""
    _, decision, skipped = _decided(situation)
    return decision, skipped


def answered(situation: Situation) -> Reading:
    """What a device that decides like the host answers."""
    measured, decision, skipped = _decided(situation)
    inverse = situation.case.inverse if situation.scale is None else 1.0 / situation.scale
    actions = decision.actions
    return Reading(
        measured.found, measured.exponents, measured.units, measured.carried, inverse, actions, skipped, None, ""
    )


@ieee_arithmetic
def _decided(situation: Situation) -> tuple[Measured, Decision, bool]:
    case = situation.case
    if situation.scale is not None:
        case = replace(case, inverse=1.0 / situation.scale)
    segments = Segments.of(_on_host(situation.arrays))
    measured = _measure(situation.arrays, case)
    sanitize = case.nonfinite == "sanitize"
    if measured.nonfinite.any() and case.nonfinite in ("raise", "skip"):
        return measured, decide_nothing(segments), True
    if measured.nonfinite.any() and case.nonfinite == "zero":
        return measured, decide_zero(segments), True
    if case.bounds is not None:
        return measured, decide_value(measured, _limit(case), segments, case.inverse, sanitize), False
    scopes = case.scopes
    if scopes is None:
        assert situation.weights is not None
        assert case.weights is not None
        norms = _measure(situation.weights, Case(2.0, "raise", 1.0))
        count = norms.found.sums.size
        root = scope_norms(norms, np.arange(count), count).value()
        scopes = Scopes(np.arange(count), case.weights.clipping * np.maximum(root, case.weights.eps))
    if needs_carries(measured, scopes, segments, case.inverse):
        what = What(measured.ord, exponents=measured.exponents, sanitize=sanitize, carry=True)
        measured = replace(measured, found=REFERENCE.measure(_on_host(situation.arrays), what), carried=True)
    return measured, decide_norms(measured, scopes, segments, case.inverse, sanitize), False


def _measure(arrays: Arrays, case: Case) -> Measured:
    """As the core measures on the host."""
    buffers = _on_host(arrays)
    sanitize = case.nonfinite == "sanitize"
    bounds = None
    if case.bounds is not None and not case.symmetric:
        low, high = stored_limits(_limit(case), Segments.of(buffers))
        bounds = low / case.inverse, high / case.inverse
    power = case.ord if case.ord in (1, 2) else 2.0
    found = REFERENCE.measure(buffers, What(power, sanitize=sanitize, bounds=bounds))
    exponents = np.zeros(found.sums.size, np.int64)
    units = np.ones(found.sums.size)
    if case.ord not in (1, 2, np.inf):
        units = found.largest
        found = REFERENCE.measure(buffers, What(case.ord, units=units, sanitize=sanitize))
    elif (again := rescaling(found, Segments.of(buffers).float64, case.ord)) is not None:
        exponents = again
        found = REFERENCE.measure(buffers, What(power, exponents=again, sanitize=sanitize, bounds=bounds))
    return Measured(found, case.ord, exponents, units, sanitize)


def _compare(reading: Reading, decision: Decision, skipped: bool, *, exact: bool) -> None:
    if reading.skipped != skipped:
        raise DecisionError(f"skipped is {reading.skipped}, and the host says {skipped}")
    for field in ("op", "factor", "coarse", "fine", "low", "high"):
        got, wanted = getattr(reading.actions, field), getattr(decision.actions, field)
        same = (got == wanted) | ((got != got) & (wanted != wanted))
        if not exact and field in ("factor", "coarse"):
            same |= np.abs(got - wanted) <= np.maximum(TOLERANCE, 2.0**-23) * np.abs(wanted)
        if not same.all():
            i = int(np.flatnonzero(~same)[0])
            raise DecisionError(f"{field}[{i}] is {got[i]!r}, and the host decides {wanted[i]!r}")


def _on_host(arrays: Arrays) -> list[Buffer]:
    host = HostMemory()
    return [host.put(x, dtype) for x, dtype in arrays]


def _together(count: int, limit: float) -> Scopes:
    return Scopes(np.zeros(count, np.int64), np.array([limit]))


def _bounds(low: float, high: float) -> dict[str, tuple[float, float]]:
    values = {name: stored_values((low, high), dtype) for name, dtype in DTYPES.items()}
    return {name: (pair[0], pair[1]) for name, pair in values.items()}


def _limit(case: Case) -> tuple[float, float]:
    """A limit that every storage type holds as it is: the situations use no other."""
    assert case.bounds is not None
    return case.bounds["float64"]


def _poisoned(dtype: DType) -> Stored:
    x = cases.random(dtype, 4100, salt=50)
    x[7], x[4099] = cases.stored([np.inf], dtype)[0], cases.stored([-np.inf], dtype)[0]
    x[8:11] = cases.stored([np.nan] * 3, dtype)
    return x[None]
