"""``Plan``: a decision that has been made and not yet carried out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from gradclip_core.errors import GradClipError
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import Outcome, Structure, replay


class Plan:
    """Measured and decided; nothing written. Made by ``gradclip_core.plan``.

    An optimizer that multiplies each gradient by ``scale`` while it reads it saves the write pass
    altogether. A plan holds no gradient memory, only the few numbers of the decision.
    """

    __slots__ = ("__weakref__", "_applied", "_steps", "_story", "_structure", "info")

    info: ClipInfo
    """What was measured, and what would come of applying the plan."""

    def __init__(self, outcome: Outcome) -> None:
        self.info = outcome.info
        self._structure = Structure.of(outcome.cargo)
        self._steps = outcome.steps
        self._story = outcome.story
        self._applied = False

    @property
    def scale(self) -> float:
        """The factor for every stored gradient: ``clip coefficient / loss_scale``.

        On a device this waits for it.

        Raises
        ------
        GradClipError
            where the decision is not one factor: arrays get different ones, elements are clamped,
            or non-finite values were met (a factor of 0 would not remove a NaN: 0·NaN is NaN).
        """
        factor = self._story().one_factor
        if factor is not None:
            return factor
        if self.info.skipped:
            seen, cure = "non-finite values made this step be skipped", "Look at plan.info.skipped first"
        else:
            seen = "the decision is not one factor for every element"
            cure = "Look at plan.info.scales, or let plan.apply_(grads) write it"
        raise GradClipError("plan.scale", seen, cure)

    def apply(self, grads: Any) -> Any:
        """New arrays, clipped as planned. ``grads`` has the structure that was planned for."""
        return replay(self.info.backend, grads, self._steps, self._structure, "plan.apply", "new")

    def apply_(self, grads: Any) -> ClipInfo:
        """Clip ``grads`` in place, as planned. Where nothing is to be clipped, nothing is written.

        A plan may be carried out on several gradients of its structure (copies, the ranks' own); the same ones are
        multiplied again each time.
        """
        replay(self.info.backend, grads, self._steps, self._structure, "plan.apply_", "memory")
        self._applied = True
        return self.info

    def __copy__(self) -> Plan:
        return self._copied(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self._copied(lambda value: copy.deepcopy(value, memo))

    def _copied(self, each: Callable[[Any], Any]) -> Plan:
        made = object.__new__(type(self))
        for name in Plan.__slots__:
            if name != "__weakref__":
                setattr(made, name, each(getattr(self, name)))
        return made

    def __reduce__(self) -> Any:
        raise GradClipError(
            "pickling a plan",
            "it is a decision about gradients that are here",
            "Pickle the numbers that you need of it, or plan where the gradients are",
        )

    def __repr__(self) -> str:
        return f"Plan({self.info!r})"
