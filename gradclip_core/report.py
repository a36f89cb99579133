"""From what was measured and decided to what is reported. All of it in host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradclip_core.arrays.dock import Names
from gradclip_core.certificates import of_older_rule
from gradclip_core.info import ClipInfo, Details, Facts
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.plan import Decision, Segments, decide_norms, decide_nothing, decide_value, decide_zero
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.protocol import FloatArray, IntArray
from gradclip_core.rules import Value
from gradclip_core.sets.base import Certificate
from gradclip_core.stages import Stage


@dataclass(frozen=True, slots=True)
class Decided:
    """A stage that was measured and decided."""

    stage: Stage
    measured: Measured
    decision: Decision
    skipped: bool
    certificate: Certificate | None = None
    overflow: int = 0
    underflow: int | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """All stages of a call, and the norm after them."""

    decided: Sequence[Decided]
    after: float | None

    @property
    def skipped(self) -> bool:
        """Whether non-finite values made the call give up."""
        return self.decided[-1].skipped

    @property
    def certificate(self) -> Certificate | None:
        """That of the last stage that has one."""
        if self.skipped:
            return None
        for here in reversed(self.decided):
            known = here.certificate or of_older_rule(here.stage, here.measured, here.decision)
            if known is not None:
                return known
        return None

    @property
    def one_factor(self) -> float | None:
        """The factor, where all that was decided is one factor on everything."""
        factors = [here.decision.one_factor for here in self.decided]
        if self.skipped or None in factors:
            return None
        return float(np.prod([f for f in factors if f is not None]))


def conclude(stage: Stage, measured: Measured, segments: Segments) -> Decided:
    """What follows from the measurements. Under "raise" the caller has refused non-finite values before."""
    if measured.nonfinite.any():
        if stage.nonfinite == "skip":
            return Decided(stage, measured, decide_nothing(segments), True)
        if stage.nonfinite == "zero":
            return Decided(stage, measured, decide_zero(segments), True)
    if isinstance(stage.rule, Value):
        decision = decide_value(measured, stage.limit, segments, stage.inverse, stage.sanitize)
    else:
        assert stage.scopes is not None
        decision = decide_norms(measured, stage.scopes, segments, stage.inverse, stage.sanitize)
    return Decided(stage, measured, decision, False)


def array_ids(rows: IntArray) -> IntArray:
    """For each segment the array that it is of."""
    return np.repeat(np.arange(rows.size), rows)


def report(
    names: Names, story: Callable[[], Story], backend: str, passed: dict[str, list[str]], *, known: bool = False
) -> ClipInfo:
    """The info of a call, whose numbers are computed when they are first read; ``known``: reading waits for nothing."""
    return ClipInfo(
        lambda: _facts(names, story()), lambda: _details(names, story().decided), backend, passed, known=known
    )


@ieee_arithmetic
def _facts(names: Names, story: Story) -> Facts:
    first, last = story.decided[0], story.decided[-1]
    inverse = first.stage.inverse
    ids = array_ids(first.stage.rows)
    norm = float(scope_norms(first.measured, np.zeros_like(ids), 1).value(inverse)[0])
    counts = [here.underflow for here in story.decided]
    return Facts(
        norm=norm,
        clipped_norm=norm if story.after is None else story.after,
        scale=float(np.min(_factors(names, story.decided))) if names.arrays else inverse,
        clipped=any(here.decision.clipped for here in story.decided),
        skipped=last.skipped,
        infs=int(first.measured.found.infs.sum()),
        nans=int(first.measured.found.nans.sum()),
        certificate=story.certificate,
        overflow=sum(here.overflow for here in story.decided),
        underflow=None if None in counts else sum(n or 0 for n in counts),
    )


def _factors(names: Names, decided: Sequence[Decided]) -> FloatArray:
    """For each array the product of its stages' factors, the smallest of its units'."""
    product = np.ones(names.arrays)
    for here in decided:
        smallest = np.full(names.arrays, np.inf)
        np.minimum.at(smallest, array_ids(here.stage.rows), here.decision.actions.factor)
        product *= np.where(np.isposinf(smallest), 1.0, smallest)  # an array without elements
    return product


@ieee_arithmetic
def per_array(names: Names, decided: Sequence[Decided]) -> tuple[FloatArray, FloatArray, IntArray, IntArray]:
    """For each array: its norm before, the factor put on it, how many elements were infinite, and how many NaN."""
    first = decided[0]
    rows = first.stage.rows
    ids = array_ids(rows)
    norms = scope_norms(first.measured, ids, rows.size).value(first.stage.inverse)
    found = first.measured.found
    infs, nans = (np.bincount(ids, n, rows.size).astype(np.int64) for n in (found.infs, found.nans))
    return norms, _factors(names, decided), infs, nans


def _details(names: Names, decided: Sequence[Decided]) -> Details:
    norms, scales, infs, nans = (values.tolist() for values in per_array(names, decided))
    leaves = list(zip(names.index, names.tree.paths, strict=True))
    return (
        {path: norms[i] for i, path in leaves},
        {path: scales[i] for i, path in leaves},
        {path: (infs[i], nans[i]) for i, path in leaves if infs[i] or nans[i]},
    )
