"""What a call reports: ``ClipInfo``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class ClipInfo:
    """What was measured and what was decided.

    All norms are those of the *unscaled* gradients, float64, in the rule's ``ord`` (2 for rules
    that have none), whatever the gradients' dtype.
    """

    norm: float
    """The norm of all gradients together, before."""
    clipped_norm: float
    """The same, after: what the decision makes of it, or for a by-value rule what was measured."""
    scale: float
    """The factor put on the stored gradients; the smallest, where arrays got different ones."""
    clipped: bool
    """Whether the rule changed anything. Unscaling alone is no clipping."""
    skipped: bool
    """Whether non-finite values made ``"skip"`` or ``"zero"`` give up this step."""
    nonfinite: int
    """How many elements were infinite or NaN."""
    backend: str
    """Who did it."""
    passed_over: Mapping[str, list[str]]
    """The backends that would have been preferred, with the reasons why they could not serve."""
    _norms: Callable[[], dict[str, float]] = field(repr=False, compare=False)
    _scales: Callable[[], dict[str, float]] = field(repr=False, compare=False)
    _culprits: Callable[[], list[str]] = field(repr=False, compare=False)

    @cached_property
    def norms(self) -> Mapping[str, float]:
        """Path of each array -> its norm before."""
        return self._norms()

    @cached_property
    def scales(self) -> Mapping[str, float]:
        """Path of each array -> the factor put on it (the smallest of its units')."""
        return self._scales()

    @cached_property
    def culprits(self) -> list[str]:
        """Paths of the arrays with non-finite elements."""
        return self._culprits()
