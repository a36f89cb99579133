"""Rules as values: frozen, comparable, checked when they are made.

A norm rule says who shares which threshold (``scopes``); ``plan.py`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradclip_core import validate
from gradclip_core.arrays.dock import Cargo
from gradclip_core.arrays.docked import Docked
from gradclip_core.axes import Axis, axes_of_units
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.protocol import FloatArray, IntArray, Scopes
from gradclip_core.tracing import in_graph, leave_graph


class Site:
    """What a rule may know of the gradients: names and shapes, no values. Read only if asked for."""

    def __init__(self, cargo: Cargo) -> None:
        self._cargo = cargo
        self._units: tuple[Axis, list[tuple[int, ...] | None]] | None = None

    @cached_property
    def paths(self) -> list[str]:
        """The path of each array."""
        return self._cargo.first_paths()

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array."""
        return self._cargo.shapes

    @cached_property
    def tied(self) -> dict[str, int]:
        """The paths at which an array occurs again -> which array that is."""
        firsts = set(self.paths) if len(self._cargo.arrays) < len(self._cargo.index) else None
        if firsts is None:
            return {}
        leaves = zip(self._cargo.tree.paths, self._cargo.index, strict=True)
        return {path: array for path, array in leaves if path not in firsts}

    def units(self, axis: Axis) -> list[tuple[int, ...] | None]:
        """The axes that the units of each array extend over; asked for the same again, the same list."""
        if self._units is None or self._units[0] is not axis:
            pairs = zip(self.paths, self.shapes, strict=True)
            self._units = axis, [axes_of_units(axis, path, shape) for path, shape in pairs]
        return self._units[1]

    @property
    def empty(self) -> list[str]:
        """The paths at which there is None, this time."""
        return self._cargo.tree.empty_paths

    @property
    def lengths(self) -> Mapping[str, int]:
        """The path of each list -> how many entries it has."""
        return self._cargo.tree.lengths


class Rule:
    """Base of all rules."""

    __slots__ = ()

    @property
    def stages(self) -> tuple[Rule, ...]:
        """The rules that are applied one after the other."""
        return (self,)

    @property
    def order(self) -> float:
        """The ``ord`` of the norms that are reported."""
        return 2.0

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """For each array the axes that its units extend over. None: every array is one segment."""
        return None


@dataclass(frozen=True, slots=True)
class WeightArrays:
    """The weights that a rule's limits come of: for each of the gradients' arrays one of the same shape."""

    arrays: Sequence[Docked]
    axes: list[tuple[int, ...] | None]
    clipping: float
    eps: float
    paths: list[str]


class NormRule(Rule):
    """Base of the rules that shrink scopes to a norm."""

    __slots__ = ()

    def weights(self, site: Site) -> WeightArrays | None:
        """What the limits come of, a scope for each segment, where they come of weights."""
        return None

    def scopes(self, site: Site, rows: IntArray) -> Scopes:
        """Who shares a threshold. ``rows`` holds the number of segments of each array."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _OneLimit(NormRule):
    """A norm rule with the same threshold for every scope."""

    max_norm: float
    ord: float = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_norm", validate.threshold("max_norm", self.max_norm, traced=True))
        object.__setattr__(self, "ord", validate.order(self.ord))

    @property
    def order(self) -> float:
        """See ``Rule.order``."""
        return self.ord

    @property
    def traced_bound(self) -> Any:
        """``max_norm``, where that is an array without a value."""
        return None if isinstance(self.max_norm, float) else self.max_norm

    def limits(self, count: int) -> FloatArray:
        """``max_norm`` for each of some scopes; NaN where nobody knows it yet."""
        return np.full(count, self.max_norm if self.traced_bound is None else np.nan)


@dataclass(frozen=True, slots=True)
class GlobalNorm(_OneLimit):
    """All gradients together: ``g · min(1, max_norm / ‖g‖)``."""

    def scopes(self, site: Site, rows: IntArray) -> Scopes:
        """One scope."""
        return Scopes(np.zeros(rows.sum(), np.int64), self.limits(1))


@dataclass(frozen=True, slots=True)
class ArrayNorm(_OneLimit):
    """Each array on its own: ``g_i · min(1, max_norm / ‖g_i‖)``."""

    def scopes(self, site: Site, rows: IntArray) -> Scopes:
        """A scope for each array."""
        return Scopes(np.repeat(np.arange(rows.size), rows), self.limits(rows.size))


@dataclass(frozen=True, slots=True)
class GroupNorm(NormRule):
    """Each group of arrays on its own. See ``clip_by_group_norm``."""

    max_norm: float | Mapping[Any, float | None]
    groups: Mapping[Any, Sequence[str]] | Callable[[str], Any]
    ord: float = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_norm", validate.mapping_or_number("max_norm", self.max_norm))
        object.__setattr__(self, "ord", validate.order(self.ord))
        if not (callable(self.groups) or isinstance(self.groups, Mapping)):
            raise InvalidArgumentError(
                f"groups={show(self.groups)}",
                f"a {type(self.groups).__name__} names no groups",
                "Pass {group: [path, ...]}, or a function from a path to its group",
            )

    @property
    def order(self) -> float:
        """See ``Rule.order``."""
        return self.ord

    def scopes(self, site: Site, rows: IntArray) -> Scopes:
        """A scope for each group, in the order in which the gradients first name it."""
        names = self._names(site)
        known: dict[Any, int] = {}
        ids = np.array([known.setdefault(name, len(known)) for name in names], np.int64)
        if isinstance(self.max_norm, Mapping):
            self._check_limits(set(known), site)
            limits = [self.max_norm[name] for name in known]
        else:
            limits = [self.max_norm] * len(known)
        return Scopes(np.repeat(ids, rows), np.array(limits, np.float64))

    def _names(self, site: Site) -> list[Any]:
        if not isinstance(self.groups, Mapping):
            return [_hashable(self.groups(path), f"groups('{path}')") for path in site.paths]
        found: dict[str, Any] = {}
        for group, members in self.groups.items():
            if not isinstance(members, Iterable):
                seen = f"a {type(members).__name__} names no paths"
                raise InvalidArgumentError(f"groups[{group!r}]={show(members)}", seen, "Pass {group: [path, ...]}")
            for path in [members] if isinstance(members, str) else members:
                if _hashable(path, f"groups[{group!r}]") in found:
                    seen = f"'{path}' is in group {found[path]!r} and in group {group!r}"
                    raise InvalidArgumentError("groups", seen, "Put each path into one group")
                found[path] = group
        there = {*site.paths, *site.empty}
        if again := next((path for path in found if path in site.tied), None):
            first = site.paths[site.tied[again]]
            seen = f"'{again}' is the same array as '{first}', and one array is in one group"
            raise InvalidArgumentError("groups", seen, f"Name it by its first path, '{first}', alone")
        if unknown := [path for path in found if path not in there]:
            seen = f"there is no gradient at {_some(unknown)}"
            raise InvalidArgumentError("groups", seen, f"Paths here look like {_some(site.paths)}")
        if missing := [path for path in site.paths if path not in found]:
            seen = f"{_some(missing)} of the gradients are in no group"
            raise InvalidArgumentError("groups", seen, "Name every path, or pass a function from a path to its group")
        return [found[path] for path in site.paths]

    def _check_limits(self, groups: set[Any], site: Site) -> None:
        assert isinstance(self.max_norm, Mapping)
        if missing := [group for group in groups if group not in self.max_norm]:
            seen = f"there is no threshold for {', '.join(sorted(map(repr, missing)))}"
            raise InvalidArgumentError(
                "max_norm", seen, "Give one for every group (None to leave it alone), or a number"
            )
        if isinstance(self.groups, Mapping):
            declared = set(self.groups)
        else:
            declared = groups | {self.groups(path) for path in site.empty}
        if unknown := [group for group in self.max_norm if group not in declared]:
            seen = f"there is no group {', '.join(sorted(map(repr, unknown)))}"
            raise InvalidArgumentError("max_norm", seen, "Take it out, or put gradients into that group")


def article(noun: str) -> str:
    """A type's name with the article before it that is spoken: "an int", "an L1Ball"."""
    spoken = noun[:1] in "AEIOaeio" or noun[:2] in ("L1", "L2") or (noun[:2] in ("Li", "Lp") and noun[-4:] == "Ball")
    return f"an {noun}" if spoken or noun == "ndarray" else f"a {noun}"


def _some(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:5]))


def _hashable(name: Any, asked: str) -> Any:
    """``name``, if it can name a group or a path."""
    try:
        hash(name)
    except TypeError as error:
        seen = f"a {type(name).__name__} cannot be a name ({error})"
        raise InvalidArgumentError(f"{asked}={show(name)}", seen, "Name groups and paths by strings") from error
    return name


@dataclass(frozen=True, slots=True)
class Value(Rule):
    """Element by element: ``min(max(g, low), high)``. ``limit`` v stands for (-v, v)."""

    limit: float | tuple[float, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", validate.interval(self.limit))


class Chain(Rule):
    """Rules one after the other: ``Chain(Value(1.0), GlobalNorm(1.0))``.

    The loss scale and the non-finite policy belong to the first; each later rule measures what
    the ones before it made. Norms in ``info`` are in the first rule's order, before and after all
    of them; the certificate is that of the last rule that has one, for what that rule was given.
    """

    __slots__ = ("rules",)

    def __init__(self, *rules: Rule) -> None:
        for rule in rules:
            checked_rule("Chain", rule)
        if not rules:
            raise InvalidArgumentError("Chain()", "it has no rules", "Pass at least one, such as GlobalNorm(1.0)")
        self.rules = rules

    @property
    def stages(self) -> tuple[Rule, ...]:
        """See ``Rule.stages``."""
        return tuple(stage for rule in self.rules for stage in rule.stages)

    @property
    def order(self) -> float:
        """The first rule's: that of the norm before is what the gradients are first measured in."""
        return self.stages[0].order

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.rules))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)


def checked_rule(asked: str, rule: Any) -> Rule:
    """``rule``, if it is one."""
    if not isinstance(rule, Rule):
        if in_graph():
            leave_graph(f"{asked}: {article(type(rule).__name__)} is no rule.")
        from gradclip_core.sets.base import Set

        several = isinstance(rule, (list, tuple)) and all(isinstance(part, Rule) for part in rule)
        cure = "Pass Chain(rule, rule), not a list" if several else "Pass one, such as GlobalNorm(1.0)"
        seen = f"{article(type(rule).__name__)} is no rule"
        if isinstance(rule, Set):
            seen, cure = f"{seen} but a set to project on", f"Pass Project({show(rule)})"
        raise InvalidArgumentError(f"{asked}, rule={show(rule)}", seen, cure)
    return rule
