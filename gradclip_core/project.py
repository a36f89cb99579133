"""``Project``: the rule that moves each scope to the nearest point of a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.errors import BackendError, InvalidArgumentError, show
from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import Backend, IntArray
from gradclip_core.rules import GroupNorm, Rule, Site
from gradclip_core.sets.base import Set, View

SCOPES = ("global", "group", "array")


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of one scope: ``form`` over the arrays ``members``, in their order."""

    members: list[int]
    orders: list[tuple[int, ...]]
    """The axes of each in the order in which its elements are taken."""
    reading: Reading
    form: Form
    view: View | None
    """What was decided on, for the certificate; None in a plan, which holds no gradient memory."""


@dataclass(frozen=True, slots=True)
class Project(Rule):
    """Each scope is replaced by the nearest point of a set, in the Euclidean norm.

    ``y = argmin_{z in onto} ‖z - g‖₂``. See ``clip_by_projection`` for the parameters.
    """

    onto: Set
    scope: str = "global"
    groups: Mapping[Any, Sequence[str]] | Callable[[str], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.onto, Set):
            made = isinstance(self.onto, type) and issubclass(self.onto, Set)
            seen = "it is a class, not a set" if made else f"a {type(self.onto).__name__} is no set"
            raise InvalidArgumentError(
                f"Project, onto={show(self.onto)}", seen, "Pass one of gradclip_core.sets, such as sets.L1Ball(1.0)"
            )
        if not isinstance(self.scope, str) or self.scope not in SCOPES:
            raise InvalidArgumentError(
                f"Project, scope={show(self.scope)}", "there is no such scope", f"Pass one of {', '.join(SCOPES)}"
            )
        if self.scope == "group":
            GroupNorm(1.0, self.groups)  # type: ignore[arg-type]  # refuses what names no groups
        elif self.groups is not None:
            raise InvalidArgumentError(
                f"Project, groups={show(self.groups)}",
                f"there are no groups with scope={self.scope!r}",
                "Pass scope='group', or leave groups out",
            )

    @property
    def stages(self) -> tuple[Rule, ...]:
        """See ``Rule.stages``: the older rule, for the sets that have one."""
        rule = self.onto.as_rule(self.scope, self.groups)
        return (self,) if rule is None else (rule,)

    @property
    def order(self) -> float:
        """See ``Rule.order``."""
        return self.onto.order

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """See ``Rule.unit_axes``."""
        return self.onto.unit_axes(site)

    def refuse_unfit(self, cargo: Cargo, backend: Backend, asked: str) -> None:
        """Raise for a backend that cannot project, and for arrays that have no projection on the set."""
        if cargo.device != "cpu" or not hasattr(backend, "projections"):
            where = f"on {cargo.device}" if cargo.device != "cpu" else f"served by {backend.name}"
            raise BackendError(
                f"{asked}, arrays {where}",
                "projections other than on L2Ball, LinfBall and Box are made in host memory, by numba_cpu and numpy",
                "Pass arrays in host memory, or project on one of these three",
            )
        for i, docked in enumerate(cargo.arrays):
            path = cargo.first_path(i)
            if reason := self.onto.refuse(docked.shape, path):
                cure = "Leave it out, or project it on another set"
                raise InvalidArgumentError(f"{asked}, array '{path}'", reason, cure)

    def scope_of_arrays(self, site: Site) -> IntArray:
        """For each array the scope that it is in."""
        count = len(site.shapes)
        if self.scope == "global" and not self.onto.alone:
            return np.zeros(count, np.int64)
        if self.scope != "group":
            return np.arange(count)
        rule = GroupNorm(1.0, self.groups)  # type: ignore[arg-type]  # checked when this was made
        ids = rule.scopes(site, np.ones(count, np.int64)).ids
        return np.arange(count) if self.onto.alone else ids
