"""The class ``approximate``: a backend's operations on arrays without memory, held to the reference within bounds.

A compiler chooses the order of their additions, so there are no bits to promise. What is promised instead is derived
in docs/numerics.md ("Without memory"), and is checked here against the reference, whose own error is 2^-46.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from gradclip_core.arrays.dock import unload
from gradclip_core.arrays.dtypes import numpy_dtype
from gradclip_core.operations import Operations
from gradclip_core.operations_run import task_of
from gradclip_core.pipeline import run_new
from gradclip_core.protocol import DTYPES, FLOAT16, FLOAT64, DType
from gradclip_core.reference import widen
from gradclip_core.rules import ArrayNorm, GlobalNorm, GroupNorm, Rule, Value
from gradclip_core.stages import prepare
from gradclip_core.testing import cases
from gradclip_core.testing.conformance import Check, ConformanceError
from gradclip_core.testing.memory import Stored
from gradclip_core.unitwise import UnitNorm
from gradclip_core.validate import How

NORMS = {"float32": 2.0**-22, "float64": 2.0**-48}
"""Relative, by the type that is computed in: how far a norm (ord 1, 2, inf) may be from the reference's. In float64
``elements · 2^-54`` are to be added."""
ELEMENTS = {"float32": 2.0**-19, "float64": 2.0**-22}
"""Relative, how far a clipped element may be, to which half an ulp of its storage type is added on either side. Of
float64 memory 2^-46 and ``elements · 2^-52``."""
GENERAL = {"float32": 2.0**-17, "float64": 2.0**-40}
"""Relative, for norms of any other order p, to be multiplied by p, and for elements clipped by them."""
FLUSHED, FLUSHED_FLOAT64 = 2.0**-126, 2.0**-1022
"""Magnitudes of float32 and bfloat16 (of float64) under this may count as zeros, and results under it may be zeros:
XLA, and a GPU's float32, flush them."""


class Arrays(Protocol):
    """A framework's arrays, for the checks."""

    @property
    def wide(self) -> str:
        """The type that is computed in: ``"float32"`` or ``"float64"``."""
        ...

    @property
    def dtypes(self) -> Sequence[str]:
        """The storage types that the framework has."""
        ...

    def put(self, values: Stored, dtype: DType) -> Any:
        """An array of the framework with these elements."""
        ...

    def get(self, x: Any, dtype: DType) -> Stored:
        """The elements of one; of 0-d arrays too."""
        ...

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """``function(*arrays)``, a tuple of arrays, inside the framework's compiler where it has one."""
        ...


class NumpyArrays:
    """NumPy as such a framework: nothing is compiled."""

    wide = "float64"
    dtypes: Sequence[str] = ("float16", "float32", "float64")

    def put(self, values: Stored, dtype: DType) -> Any:
        """See ``Arrays.put``."""
        return np.array(values)

    def get(self, x: Any, dtype: DType) -> Stored:
        """See ``Arrays.get``."""
        return np.asarray(x)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """See ``Arrays.call``."""
        with np.errstate(all="ignore"):
            return function(*arrays)


@dataclass(frozen=True, slots=True)
class Situation:
    """Gradients, and what is asked about them."""

    arrays: Sequence[tuple[Stored, DType]]
    rule: Rule
    nonfinite: str = "skip"
    loss_scale: float = 1.0
    traced_scale: bool = False


def approximate_checks(operations: Operations, arrays: Arrays) -> Iterator[Check]:
    """Everything that operations on arrays without memory promise, as named checks."""
    for name in arrays.dtypes:
        for case, situation in _situations(DTYPES[name]):
            yield Check(f"{case}", partial(_hold, operations, arrays, situation))
    mixed = [(cases.random(DTYPES[name], 700, salt=i), DTYPES[name]) for i, name in enumerate(arrays.dtypes)]
    for rule in (GlobalNorm(1.0), ArrayNorm(3.0), Value(0.5)):
        yield Check(f"approximate/mixed/{rule!r}", partial(_hold, operations, arrays, Situation(mixed, rule)))


def _situations(dtype: DType) -> Iterator[tuple[str, Situation]]:
    plain = [(cases.random(dtype, n, salt=80 + n), dtype) for n in (5, 4097, 0, 1, 1000)]
    where = f"approximate-{{}}/{dtype}/{{}}"
    for limit, scale, order in itertools.product((1e-3, 7.0, 1e6, 0.0), (1.0, 1024.0, 3.0), (1.0, 2.0, math.inf)):
        situation = Situation(plain, GlobalNorm(limit, order), loss_scale=scale)
        yield where.format("norms", f"global-{limit:g}-scale-{scale:g}-ord-{order:g}"), situation
    yield where.format("norms", "each"), Situation(plain, ArrayNorm(0.5))
    groups = GroupNorm({"a": 2.0, "b": None}, {"a": ["0", "3"], "b": ["1", "2", "4"]})
    yield where.format("norms", "groups"), Situation(plain, groups)
    for order in (1.5, 3.0, 10.0):
        yield where.format("general", f"ord-{order:g}"), Situation(plain, GlobalNorm(1.0, order))
    for low, high in ((-0.5, 0.5), (-0.25, 1.5), (-math.inf, 0.125), (0.0, 0.0)):
        for scale in (1.0, 8.0, 3.0):
            value = Situation(plain, Value((low, high)), loss_scale=scale)
            yield where.format("value", f"{low}..{high}-scale-{scale:g}"), value
    matrix = cases.random(dtype, 21 * 37, salt=90).reshape(21, 37)
    weights = cases.random(dtype, 21 * 37, salt=91).reshape(21, 37)
    for axis in (0, 1):
        units = UnitNorm([widen(weights, dtype)], 0.5, axis=axis)
        yield where.format("units", f"axis-{axis}"), Situation([(matrix, dtype)], units)
    bad = cases.random(dtype, 300, salt=92)
    bad[[3, 77, 299]] = cases.stored([math.inf, math.nan, -math.inf], dtype)
    infinite = cases.random(dtype, 300, salt=93)
    infinite[5] = cases.stored([math.inf], dtype)[0]
    for policy, rule in itertools.product(("skip", "zero", "sanitize", "propagate"), (GlobalNorm(1.0), Value(0.5))):
        for kind, values in (("both", bad), ("inf", infinite)):
            poisoned = [plain[0], (values, dtype), plain[4]]
            yield where.format("policies", f"{policy}-{kind}-{rule!r}"), Situation(poisoned, rule, policy)
    for scale in (1024.0, 3.0, 2.0**-9):
        for rule in (GlobalNorm(1.0), Value((-0.01, 0.02))):
            traced = Situation(plain, rule, loss_scale=scale, traced_scale=True)
            yield where.format("scale", f"traced-{scale:g}-{rule!r}"), traced
    yield from _extremes(dtype, where)


def _extremes(dtype: DType, where: str) -> Iterator[tuple[str, Situation]]:
    """Squares that overflow or vanish, factors that are no normal number, sums of a million elements."""
    largest = math.log2(dtype.largest) - 2
    least = -1000 if dtype is FLOAT64 else max(-120, math.log2(dtype.smallest) + 2)
    for exponent in (least, least / 2, largest / 2, largest):
        size = 2.0 ** int(exponent)
        huge = [(cases.stored(cases.generator(dtype, 95).uniform(0.5, 1, 600) * size, dtype), dtype)]
        for limit in (size, size * 2.0**-140, 1e30):
            yield where.format("size", f"{size:.3g}-limit-{limit:.3g}"), Situation(huge, GlobalNorm(limit))
        both = [*huge, (cases.random(dtype, 50, salt=96), dtype)]
        yield where.format("size", f"{size:.3g}-and-1"), Situation(both, GlobalNorm(1.0))
    # Unscaled by a scale under 1, what is large is infinite.
    near = [(cases.stored(cases.generator(dtype, 98).uniform(-1, 1, 600) * 2.0**largest, dtype), dtype)]
    rules = GlobalNorm(dtype.largest), Value((0.0, math.inf))
    for policy, rule in itertools.product(("skip", "zero", "sanitize", "propagate"), rules):
        yield where.format("overflow", f"{policy}-{rule!r}"), Situation(near, rule, policy, 2.0**-9)
    million = cases.random(dtype, 1_000_003, salt=97)
    yield where.format("long", "a-million"), Situation([(million, dtype)], GlobalNorm(1.0))
    # Each small square is lost when it is added to the large one in the type that is computed in.
    small = 2.0**-13 if dtype is not FLOAT64 else 2.0**-27
    needle = np.full(1 << 18, small if dtype is not FLOAT16 else 2.0**-12)
    needle[0] = 1.0
    yield (
        where.format("long", "one-large-among-small"),
        Situation([(cases.stored(needle, dtype), dtype)], GlobalNorm(0.5)),
    )


def _hold(operations: Operations, arrays: Arrays, situation: Situation) -> None:
    expected, info = _reference(situation)
    made, numbers = _asked(operations, arrays, situation)
    size = sum(values.size for values, _ in situation.arrays)
    narrow = any(dtype is not FLOAT64 for _, dtype in situation.arrays)
    order = situation.rule.order
    general = order not in (1, 2, math.inf)
    far = NORMS[arrays.wide] + (size * 2.0**-54 if arrays.wide == "float64" else 0.0)
    far = GENERAL[arrays.wide] * order if general else far
    tiny = math.sqrt(size) * FLUSHED if narrow else 0.0
    if order == 1:
        tiny *= math.sqrt(size)
    top = float(np.finfo(arrays.wide).max)
    _near("norm", numbers["norm"], _held(info.norm, top), far, tiny)
    for name in ("skipped", "infs", "nans"):
        if int(numbers[name]) != int(getattr(info, name)):
            raise ConformanceError(f"{name} is {numbers[name]}, and the reference says {getattr(info, name)}")
    off = ELEMENTS[arrays.wide] if narrow or arrays.wide == "float32" else 2.0**-46 + size * 2.0**-52
    off = max(off, GENERAL[arrays.wide] * 2 * order) if general else off
    wanted = 0.0 if info.skipped and situation.nonfinite == "zero" else info.clipped_norm
    _near("clipped_norm", numbers["clipped_norm"], _held(wanted, top), 2 * off, tiny)
    for place, (y, z, (_, dtype)) in enumerate(zip(made, expected, situation.arrays, strict=True)):
        _near_all(
            f"array {place}", widen(y, dtype), widen(z, dtype), off + 2 * dtype.roundoff * (dtype is not FLOAT64), dtype
        )
    if isinstance(situation.rule, GlobalNorm) and not info.skipped and info.nonfinite == 0 and not general:
        _within(made, situation)


def _reference(situation: Situation) -> tuple[list[Stored], Any]:
    holders = [_Holder(values, dtype) for values, dtype in situation.arrays]
    clipped, info = run_new(
        [holder.array for holder in holders],
        situation.rule,
        {"nonfinite": situation.nonfinite, "loss_scale": situation.loss_scale, "backend": "numpy"},
        "approximate_checks",
    )
    return [holder.stored(y) for holder, y in zip(holders, clipped, strict=True)], info


class _Holder:
    """Stored elements as an array that the dock takes, of types that NumPy has not too."""

    def __init__(self, values: Stored, dtype: DType) -> None:
        self.dtype = dtype
        self.array = values.view(numpy_dtype(dtype)) if dtype.coded else values

    def stored(self, y: Any) -> Stored:
        return np.asarray(y).view(self.dtype.view)


def _asked(operations: Operations, arrays: Arrays, situation: Situation) -> tuple[list[Stored], dict[str, Any]]:
    how = How(loss_scale=situation.loss_scale, nonfinite=situation.nonfinite)
    cargo = unload([_Holder(values, dtype).array for values, dtype in situation.arrays], "approximate_checks")
    (stage,) = prepare(cargo, situation.rule, how)
    task = task_of(cargo, stage, how, after=None)
    names = ("norm", "clipped_norm", "skipped", "infs", "nans")

    def clip(*given: Any) -> tuple[Any, ...]:
        asked = task
        if situation.traced_scale:
            asked, given = replace(asked, loss_scale=given[-1], inverse=0.0), given[:-1]
        if asked.units is not None:
            count = len(given) // 2
            asked = replace(asked, units=replace(asked.units, weights=given[count:]))
            given = given[:count]
        answer = operations.clip(given, asked)
        return (*answer.arrays, *(getattr(answer, name) for name in names))

    given = [arrays.put(values, dtype) for values, dtype in situation.arrays]
    if task.units is not None:
        given += [arrays.put(w, DTYPES[w.dtype.name]) for w in task.units.weights]
    wide = DTYPES[arrays.wide]
    if situation.traced_scale:
        given.append(arrays.put(np.asarray(situation.loss_scale, wide.view), wide))
    results = arrays.call(clip, *given)
    made = [arrays.get(y, dtype) for y, (_, dtype) in zip(results, situation.arrays, strict=False)]
    return made, dict(zip(names, (np.asarray(x).item() for x in results[len(made) :]), strict=True))


def _held(norm: float, top: float) -> float:
    """What a norm is in a type that ends at ``top``."""
    return min(norm, top) if math.isfinite(norm) else norm


def _near(what: str, found: float, wanted: float, far: float, tiny: float) -> None:
    if found == wanted or (math.isnan(found) and math.isnan(wanted)):
        return
    if not abs(found - wanted) <= far * abs(wanted) + tiny:
        raise ConformanceError(f"{what} is {found!r}, more than {far:.3g} away from {wanted!r}")


def _near_all(what: str, found: Stored, wanted: Stored, far: float, dtype: DType) -> None:
    with np.errstate(all="ignore"):
        found, wanted = found.astype(np.float64), wanted.astype(np.float64)
        tiny = 2 * dtype.smallest + (FLUSHED_FLOAT64 if dtype is FLOAT64 else FLUSHED)
        good = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        good |= np.abs(found - wanted) <= far * np.abs(wanted) + tiny
        good &= (np.signbit(found) == np.signbit(wanted)) | (wanted != 0) | (found != 0)
    if not good.all():
        i = np.flatnonzero(~good.reshape(-1))[0]
        seen = f"element {i} is {found.reshape(-1)[i]!r} and not {wanted.reshape(-1)[i]!r}"
        raise ConformanceError(f"{what}: {seen}, and {int((~good).sum())} differ by more than {far:.3g}")


def _within(made: Sequence[Stored], situation: Situation) -> None:
    """The promise that no tolerance touches: a clipped norm is within the bound."""
    rule = situation.rule
    assert isinstance(rule, GlobalNorm)
    wide = np.concatenate(
        [
            widen(y, dtype).astype(np.longdouble).reshape(-1)
            for y, (_, dtype) in zip(made, situation.arrays, strict=True)
        ]
    )
    top = np.max(np.abs(wide), initial=0)
    unit = top if top > 0 else np.longdouble(1)
    scaled = np.abs(wide) / unit
    norm = {1.0: scaled.sum, math.inf: lambda: scaled.max(initial=0)}.get(
        rule.ord, lambda: np.sqrt((scaled**2).sum())
    )() * unit
    worst = max(dtype.roundoff if dtype.itemsize < 4 else 0.0 for _, dtype in situation.arrays)
    if norm > rule.max_norm * (1 + worst):
        raise ConformanceError(f"the norm of what was clipped is {norm!r}, and max_norm is {rule.max_norm!r}")
