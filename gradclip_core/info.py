"""What a call reports: ``ClipInfo``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from gradclip_core.sets.base import Certificate

T = TypeVar("T")
Details = tuple[dict[str, float], dict[str, float], dict[str, tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Facts:
    """The few numbers of a report, known at once on the host, and after a read on a device."""

    norm: float
    clipped_norm: float
    scale: float
    clipped: bool
    skipped: bool
    infs: int
    nans: int
    certificate: Certificate | None = None
    overflow: int = 0
    underflow: int | None = None


class ClipInfo:
    """What was measured and what was decided.

    All norms are those of the *unscaled* gradients, float64, in the rule's ``ord`` (2 for rules
    that have none; of a ``Chain`` the first rule's, before and after), whatever the gradients' dtype.

    On a device all of it is there, and brought to the host when the first of it is read: reading
    any attribute but ``backend`` and ``passed_over`` waits for the device, once.

    Attributes
    ----------
    norm : the norm of all gradients together, before, also for rules that bound smaller scopes.
        Under ``nonfinite="sanitize"`` that of the sanitized values.
    clipped_norm : the same, after, as the decision makes it: the rounding of the results to
        their dtype is not in it. For a by-value rule that clips it is measured on the result.
    scale : the factor put on the stored gradients, ``coefficient / loss_scale``; the smallest,
        where arrays got different ones. 1 if skipped, 0 if zeroed.
    clipped : whether the rule changed anything. Unscaling alone is no clipping.
    skipped : whether non-finite values made ``"skip"`` or ``"zero"`` give up this step.
    nonfinite, infs, nans : how many elements were infinite or NaN; infinite; NaN. Infinite gradients are what overflows
        look like, in half precision under a loss scale.
    overflow : how many finite elements would not be finite after unscaling, by a ``loss_scale`` < 1; not counted under
        "propagate". ``nonfinite``
        says what is done about them: they raise, skip or zero the step, become the largest finite value, or infinite.
    underflow : how many elements that were not zero the factor makes zero in the arrays' own dtype, in ``clip``'s
        ``underflow="count"`` and ``"raise"``; None where they were not counted.
    certificate : evidence that a projection is one, see ``gradclip_core.sets.Certificate``: computed from what was
        written; for norm clipping with ord=2 and clipping by value, which are projections on balls and a box, from
        the decision. Of several scopes the larger residuals, and the whole distance; of a ``Chain`` that of the last
        projection alone, for what it was given. None for rules that are no Euclidean projection, for a skipped
        step, and where NaN was propagated.
    backend : who did it.
    passed_over : backend that would have been preferred -> the reasons why it could not serve.
    norms : path of each array -> its norm before.
    scales : path of each array -> the factor put on it (the smallest of its units').
    culprits : paths of the arrays with non-finite elements.
    counts : path of each of the culprits -> how many of its elements were infinite, and how many NaN.

    The last four are computed when they are first read.

    Raises
    ------
    InvalidArgumentError
        on a device, when it is read: for a loss scale, or weights of ``adaptive_clip``, that the
        device alone could see to be invalid. No gradient was touched then.
    """

    def __init__(
        self,
        facts: Callable[[], Facts],
        details: Callable[[], Details],
        backend: str,
        passed_over: Mapping[str, list[str]],
        *,
        known: bool = False,
    ) -> None:
        self.backend = backend
        self.passed_over = passed_over
        self._make_facts = facts
        self._make_details = details
        self._heeded = False
        self._known_at_once = known

    @cached_property
    def _facts(self) -> Facts:
        return self._make_facts()

    @cached_property
    def _details(self) -> Details:
        return self._make_details()

    @property
    def norm(self) -> float:
        """The norm of all gradients together, before."""
        return self._facts.norm

    @property
    def clipped_norm(self) -> float:
        """The norm of all gradients together, after."""
        return self._facts.clipped_norm

    @property
    def scale(self) -> float:
        """The factor put on the stored gradients; the smallest, where arrays got different ones."""
        return self._facts.scale

    @property
    def clipped(self) -> bool:
        """Whether the rule changed anything."""
        return self._facts.clipped

    @property
    def skipped(self) -> bool:
        """Whether non-finite values made ``"skip"`` or ``"zero"`` give up this step."""
        self._heeded = True
        return self._facts.skipped

    @property
    def heeded(self) -> bool:
        """Whether anybody has read ``skipped`` so far. A ``Clipper`` insists on it."""
        return self._heeded

    def peek_skipped(self) -> bool:
        """``skipped``, without being taken for somebody who acts on it."""
        return self._facts.skipped

    @property
    def known(self) -> bool:
        """Whether the numbers are on the host, so that reading them waits for nothing."""
        return self._known_at_once or "_facts" in self.__dict__

    @property
    def nonfinite(self) -> int:
        """How many elements were infinite or NaN."""
        return self._facts.infs + self._facts.nans

    @property
    def infs(self) -> int:
        """How many elements were infinite."""
        return self._facts.infs

    @property
    def nans(self) -> int:
        """How many elements were NaN."""
        return self._facts.nans

    @property
    def overflow(self) -> int:
        """How many finite elements would not be so after unscaling; only ever > 0 for ``loss_scale`` < 1."""
        return self._facts.overflow

    @property
    def underflow(self) -> int | None:
        """How many elements that were not zero become zero; None where ``underflow="ignore"`` had them not counted."""
        return self._facts.underflow

    @property
    def certificate(self) -> Certificate | None:
        """Evidence that a projection is one; None for rules that are none."""
        return self._facts.certificate

    @property
    def norms(self) -> Mapping[str, float]:
        """Path of each array -> its norm before."""
        return self._details[0]

    @property
    def scales(self) -> Mapping[str, float]:
        """Path of each array -> the factor put on it (the smallest of its units')."""
        return self._details[1]

    @property
    def culprits(self) -> list[str]:
        """Paths of the arrays with non-finite elements."""
        return list(self._details[2])

    @property
    def counts(self) -> Mapping[str, tuple[int, int]]:
        """Path of each array with non-finite elements -> how many were infinite, and how many NaN."""
        return self._details[2]

    def __repr__(self) -> str:
        # Printing must not wait for a device, as a debugger would make it do.
        if not self.known:
            return f"ClipInfo(on the device, backend={self.backend!r})"
        return f"ClipInfo({', '.join(f'{k}={v!r}' for k, v in self._known().items())})"

    def _known(self) -> dict[str, object]:
        names = ("norm", "clipped_norm", "scale", "clipped", "skipped", "infs", "nans")
        return {
            **{name: getattr(self._facts, name) for name in names},
            **({} if self._facts.certificate is None else {"certificate": self._facts.certificate}),
            "backend": self.backend,
            "passed_over": self.passed_over,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClipInfo) and self._known() == other._known()

    def __hash__(self) -> int:
        return hash((self._facts, self.backend))

    def __reduce__(self) -> tuple[object, ...]:
        return _known, (self._facts, self._details, self.backend, dict(self.passed_over))


class _Known(Generic[T]):
    """What has been read, for an info that comes out of a pickle."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __call__(self) -> T:
        return self.value


def _known(facts: Facts, details: Details, backend: str, passed_over: dict[str, list[str]]) -> ClipInfo:
    return ClipInfo(_Known(facts), _Known(details), backend, passed_over, known=True)
