"""A rule over arrays without memory, in their framework's own operations. See ``gradclip_core.operations``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradclip_backends.array_api.decided import GIVES_UP, Decision, Scene, decide_norms, inverse_of, most
from gradclip_backends.array_api.language_of import language_of
from gradclip_backends.array_api.languages import Language
from gradclip_backends.array_api.segments import Kinds, Measured, along, measured, sanitized
from gradclip_core.operations import Answer, Task
from gradclip_core.protocol import FLOAT64, DType, IntArray

DEVICES = ("gpu", "mps", "symbolic", "tpu", "xpu")
"""Kinds of places whose arrays are worked on by operations."""
SPEAK_FOR_THEMSELVES = ("jax", "jaxlib", "mlx", "tensorflow")
"""Modules of frameworks whose operations are known without ``array-api-compat``."""


class ArrayOperations:
    """See ``Operations``."""

    def not_supported_reasons(self, framework: str, device: str) -> list[str]:
        """See ``Operations.not_supported_reasons``."""
        if framework in SPEAK_FOR_THEMSELVES or importlib.util.find_spec("array_api_compat") is not None:
            return []
        return [
            f"it works on {framework}'s arrays through array-api-compat, which is not installed: "
            "pip install 'gradclip-core[array-api]'"
        ]

    def clip(self, arrays: Sequence[Any], task: Task) -> Answer:
        """See ``Operations.clip``."""
        full = [i for i, x in enumerate(arrays) if 0 not in x.shape]
        return _Call(arrays, task, full).answer() if full else _nothing(arrays, task)

    def norm(self, arrays: Sequence[Any], dtypes: Kinds, ord: float, mesh_axes: tuple[str, ...]) -> Any:
        """See ``Operations.norm``."""
        full = [i for i, x in enumerate(arrays) if 0 not in x.shape]
        if not full:
            return 0.0
        return _norm([arrays[i] for i in full], [dtypes[i] for i in full], ord, mesh_axes)


OPERATIONS = ArrayOperations()


def _language(arrays: Sequence[Any], kinds: Kinds) -> Language:
    wide = any(dtype is FLOAT64 for dtype, _ in kinds)
    return language_of(arrays[0], wide)


def _norm(arrays: Sequence[Any], kinds: Kinds, ord: float, mesh_axes: tuple[str, ...]) -> Any:
    language, count = _language(arrays, kinds), len(arrays)
    found = measured(language, arrays, kinds, [None] * count, ord, mesh_axes)
    return found.norms(np.zeros(count, np.int64), 1).value(language.xp, 1.0, most(language))[0]


def _nothing(arrays: Sequence[Any], task: Task) -> Answer:
    """Arrays without elements: nothing was measured, and plain numbers say so."""
    count = len(arrays)
    blank = np.zeros(count)
    return Answer(
        arrays, 0.0, 0.0, task.inverse, False, False, 0, 0, 0, False,
        blank, blank + task.inverse, blank.astype(np.int64), blank.astype(np.int64),
    )  # fmt: skip


class _Call:
    """One rule over arrays that have elements, and others that are handed through."""

    def __init__(self, arrays: Sequence[Any], task: Task, full: list[int]) -> None:
        self.all, self.task = arrays, task
        here, kinds, self.rows = [arrays[i] for i in full], [task.dtypes[i] for i in full], task.rows[full]
        self.scene = Scene(
            _language(here, kinds), task, full, here, kinds, [task.axes[i] for i in full],
            np.repeat(np.arange(len(full)), self.rows),
        )  # fmt: skip
        self.language, self.arrays, self.kinds = self.scene.language, here, kinds
        self.ends = np.cumsum(self.rows)
        self.xp = self.language.xp
        self.sanitize = task.nonfinite == "sanitize"
        self.may_grow = task.nonfinite != "propagate" and (task.loss_scale is not None or task.inverse > 1)
        """Whether unscaling can make finite elements infinite, and somebody asks."""

    def answer(self) -> Answer:
        """Measure, decide, multiply."""
        xp, task, scene = self.xp, self.task, self.scene
        found = measured(
            self.language,
            self.arrays,
            self.kinds,
            scene.axes,
            task.ord,
            task.mesh_axes,
            sanitize=self.sanitize,
            gives_up=task.nonfinite in GIVES_UP,
        )
        inverse, fault = inverse_of(scene)
        norm = scene.value(found.norms(np.zeros_like(scene.owners), 1), inverse)[0]
        infs, nans = (xp.sum(x) for x in (found.infs, found.nans))
        after: Any = None
        if task.bounds is not None:
            made, clipped, written, factor = self._clamped(inverse, found)
        else:
            decision, clipped, after, bad = decide_norms(scene, found, inverse)
            fault = bad if fault is None else fault if bad is None else fault | bad
            made, written, factor = self._multiplied(decision, found), xp.any(decision.touched), decision.factor
        if self.sanitize:
            written = written | (infs + nans > 0)
        overflow = self._overflow(made, infs)
        give_up = xp.zeros_like(clipped)
        if task.nonfinite in GIVES_UP:
            (give_up,) = self.language.settled(((infs + nans > 0) | (overflow > 0),))
        if fault is not None:
            (fault,) = self.language.settled((fault,))
        if self.sanitize and self.may_grow:
            made = [self._each(y, kind, lambda v: v) for y, kind in zip(made, self.kinds, strict=True)]
        made = [self._given_up(give_up, fault, x, y) for x, y in zip(self.arrays, made, strict=True)]
        stays = give_up if fault is None else give_up | fault
        if after is None:
            after = _norm(made, self.kinds, 2, task.mesh_axes)
        zeroed = task.nonfinite == "zero"
        factor = xp.where(give_up, xp.zeros_like(factor) if zeroed else xp.ones_like(factor), factor)
        after = xp.where(give_up, xp.zeros_like(norm) if zeroed else norm, after)
        written = written | give_up if zeroed else written & ~give_up
        if fault is not None:  # whatever the policy, nothing is done
            factor, after = xp.where(fault, xp.ones_like(factor), factor), xp.where(fault, norm, after)
            written = written & ~fault
        arrays = list(self.all)
        for i, y in zip(scene.full, made, strict=True):
            arrays[i] = y
        norms = scene.value(found.norms(scene.owners, len(scene.full)), inverse)
        return Answer(
            arrays,
            norm,
            after,
            xp.min(factor),
            clipped & ~stays,
            stays,
            infs,
            nans,
            overflow,
            written,
            self._spread(norms, 0.0),
            self._spread(self._grouped(factor, xp.min), 1.0),
            self._spread(self._grouped(found.infs, xp.sum), 0),
            self._spread(self._grouped(found.nans, xp.sum), 0),
        )

    # ---- the write -------------------------------------------------------------------------------

    def _multiplied(self, decision: Decision, found: Measured) -> list[Any]:
        made, xp = [], self.xp
        cleaned = found.infs + found.nans > 0
        for i, (x, kind) in enumerate(zip(self.arrays, self.kinds, strict=True)):
            first, second, touched, zero = (
                self._broadcast(self._of_scopes(values, decision.ids, i), i)
                for values in (decision.first, decision.second, decision.touched, decision.zero)
            )
            if self.sanitize:
                touched = touched | self._broadcast(cleaned[self._segments(i)], i)

            def multiplied(v: Any, first: Any = first, second: Any = second, zero: Any = zero) -> Any:
                y = v * first * second
                return xp.where(zero, xp.zeros_like(y), y)

            made.append(xp.where(touched, self._each(x, kind, multiplied), x))
        return made

    def _clamped(self, inverse: Any, found: Measured) -> tuple[list[Any], Any, Any, Any]:
        """By value: clamp every element of the unscaled gradient to [low, high]."""
        xp, made, beyond = self.xp, [], []
        assert self.task.bounds is not None
        unscales = self.task.loss_scale is not None or self.task.inverse != 1
        for i, (x, kind) in enumerate(zip(self.arrays, self.kinds, strict=True)):
            low, high = (self.language.number(value, x) for value in self.task.bounds[kind[0].name])
            outside: list[Any] = []

            def clamped(v: Any, low: Any = low, high: Any = high, outside: list[Any] = outside) -> Any:
                y = v * inverse
                outside.append(xp.any((y < low) | (y > high)))
                # By choice, not by minimum and maximum: NaN stays NaN, and so does the sign of a zero.
                y = xp.where(y < low, low, y)
                return xp.where(y > high, high, y)

            y = self._each(x, kind, clamped)
            beyond.append(outside[0])
            touched = outside[0]
            if self.sanitize:
                touched = touched | (found.infs[i] + found.nans[i] > 0)
            made.append(y if unscales else xp.where(touched, y, x))
        clipped = xp.any(xp.stack(beyond))
        written = xp.ones_like(clipped) if unscales else clipped
        return made, clipped, written, xp.ones_like(found.scales) * inverse

    def _each(self, x: Any, kind: tuple[DType, bool], work: Callable[[Any], Any]) -> Any:
        """``work`` on an array's numbers in the wide type; on both parts of complex ones."""
        language, (dtype, is_complex) = self.language, kind
        parts = language.parts(x) if is_complex else (x,)
        made = []
        for part in parts:
            v = language.cast(part, language.wide)
            made.append(language.cast(work(sanitized(language, v, dtype) if self.sanitize else v), part.dtype))
        return language.joined(made[0], made[1], x) if is_complex else made[0]

    def _given_up(self, give_up: Any, fault: Any, x: Any, y: Any) -> Any:
        """What a policy makes of an array where it gives up; a fault leaves it as it is."""
        if self.task.nonfinite in GIVES_UP:
            y = self.xp.where(give_up, self.xp.zeros_like(x) if self.task.nonfinite == "zero" else x, y)
        return y if fault is None else self.xp.where(fault, x, y)

    def _overflow(self, made: Sequence[Any], count: Any) -> Any:
        """How many finite elements are so no more: only unscaling by a loss scale < 1 can do that."""
        xp = self.xp
        if not self.may_grow:
            return xp.zeros_like(count)
        lost = [
            xp.sum(self.language.cast(xp.isfinite(x) & ~xp.isfinite(y), xp.int32))
            for x, y in zip(self.arrays, made, strict=True)
        ]
        return sum(lost[1:], start=lost[0])

    # ---- from segments to arrays -----------------------------------------------------------------

    def _segments(self, i: int) -> slice:
        """Which segments an array's are."""
        return slice(int(self.ends[i] - self.rows[i]), int(self.ends[i]))

    def _of_scopes(self, values: Any, ids: IntArray, i: int) -> Any:
        """For each of an array's segments the number of its scope."""
        ids = ids[self._segments(i)]
        first = int(ids[0])
        if (ids == np.arange(first, first + ids.size)).all():
            return values[first : first + ids.size]
        return self.xp.take(values, self.language.index(ids, values), axis=0)

    def _broadcast(self, values: Any, i: int) -> Any:
        """The numbers of an array's segments in a shape that goes with the array's."""
        x, reduced = self.arrays[i], self.scene.axes[i]
        return along(self.xp, values, x.shape, tuple(range(x.ndim)) if reduced is None else reduced)

    def _grouped(self, x: Any, fold: Any) -> Any:
        if (self.rows == 1).all():
            return x
        return self.xp.stack([fold(x[self._segments(i)]) for i in range(len(self.rows))])

    def _spread(self, values: Any, otherwise: float) -> Any:
        """For all arrays, those without elements too."""
        if len(self.scene.full) == len(self.all):
            return values
        places = {i: place for place, i in enumerate(self.scene.full)}
        blank = self.xp.zeros_like(values[0]) + otherwise
        return self.xp.stack([values[places[i]] if i in places else blank for i in range(len(self.all))])
