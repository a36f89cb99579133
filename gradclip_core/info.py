"""What a call reports: ``ClipInfo``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Details = Callable[[], tuple[dict[str, float], dict[str, float], list[str]]]


@dataclass(frozen=True)
class ClipInfo:
    """What was measured and what was decided.

    All norms are those of the *unscaled* gradients, float64, in the rule's ``ord`` (2 for rules
    that have none), whatever the gradients' dtype.

    Attributes
    ----------
    norm : the norm of all gradients together, before, also for rules that bound smaller scopes.
        Under ``nonfinite="sanitize"`` that of the sanitized values.
    clipped_norm : the same, after, as the decision makes it: the rounding of 16-bit results is
        not in it. For a by-value rule that clips it is measured on the result.
    scale : the factor put on the stored gradients, ``coefficient / loss_scale``; the smallest,
        where arrays got different ones. 1 if skipped, 0 if zeroed.
    clipped : whether the rule changed anything. Unscaling alone is no clipping.
    skipped : whether non-finite values made ``"skip"`` or ``"zero"`` give up this step.
    nonfinite : how many elements were infinite or NaN.
    backend : who did it.
    passed_over : backend that would have been preferred -> the reasons why it could not serve.
    norms : path of each array -> its norm before.
    scales : path of each array -> the factor put on it (the smallest of its units').
    culprits : paths of the arrays with non-finite elements.

    The last three are computed when they are first read.
    """

    norm: float
    clipped_norm: float
    scale: float
    clipped: bool
    skipped: bool
    nonfinite: int
    backend: str
    passed_over: Mapping[str, list[str]] = field(hash=False)
    _details: Details = field(repr=False, compare=False)

    @cached_property
    def _read(self) -> tuple[dict[str, float], dict[str, float], list[str]]:
        return self._details()

    @property
    def norms(self) -> Mapping[str, float]:
        """Path of each array -> its norm before."""
        return self._read[0]

    @property
    def scales(self) -> Mapping[str, float]:
        """Path of each array -> the factor put on it (the smallest of its units')."""
        return self._read[1]

    @property
    def culprits(self) -> list[str]:
        """Paths of the arrays with non-finite elements."""
        return self._read[2]

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.norm, self.clipped_norm, self.scale, self.clipped, self.skipped, self.nonfinite)
        return ClipInfo, (*fields, self.backend, self.passed_over, _Known(self._read))


class _Known:
    """Details that have been read, for an info that comes out of a pickle."""

    def __init__(self, details: tuple[dict[str, float], dict[str, float], list[str]]) -> None:
        self.details = details

    def __call__(self) -> tuple[dict[str, float], dict[str, float], list[str]]:
        return self.details
