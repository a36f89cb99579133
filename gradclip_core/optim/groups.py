"""Which parameters have a learning rate or a weight decay of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.optim.settings import Settable
from gradclip_core.validate import number

_KEYS = ("paths", "lr", "weight_decay")


def not_negative(name: str, value: Any) -> float:
    """Finite and >= 0."""
    cure = "Pass a finite number >= 0"
    checked = number(name, value, cure)
    if not 0 <= checked < math.inf:
        raise InvalidArgumentError(f"{name}={show(value)}", "it is not a finite number >= 0", cure)
    return checked + 0.0  # -0.0 is 0


def fraction(name: str, value: Any) -> float:
    """0 <= value < 1."""
    cure = "Pass a number >= 0 and < 1"
    checked = number(name, value, cure)
    if not 0 <= checked < 1:
        raise InvalidArgumentError(f"{name}={show(value)}", "it is no weight of a running average", cure)
    return checked + 0.0


def fractions(name: str, value: Any) -> tuple[float, float]:
    """Two of them."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgumentError(f"{name}={show(value)}", "it is no pair", "Pass two numbers >= 0 and < 1")
    return fraction(f"{name}[0]", value[0]), fraction(f"{name}[1]", value[1])


class Group(Settable):
    """Parameters with a learning rate or a weight decay of their own. Both may be set between steps.

    None: the optimizer's own. Made by the optimizer, see ``AdamW``.
    """

    def __init__(
        self, name: str, asked: str, lr: Any = None, weight_decay: Any = None, paths: Sequence[str] = ()
    ) -> None:
        self._called = f"{asked}, groups[{name!r}]"
        self._paths = tuple(paths)
        self.lr = lr
        self.weight_decay = weight_decay

    @property
    def paths(self) -> tuple[str, ...]:
        """Of its parameters, each once."""
        return self._paths

    @property
    def lr(self) -> float | None:
        """The learning rate."""
        return self._lr

    @lr.setter
    def lr(self, value: Any) -> None:
        self._lr = None if value is None else not_negative(f"{self._called}['lr']", value)

    @property
    def weight_decay(self) -> float | None:
        """The weight decay."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self._weight_decay = None if value is None else not_negative(f"{self._called}['weight_decay']", value)

    def __repr__(self) -> str:
        return f"Group(lr={self.lr}, weight_decay={self.weight_decay}, paths={list(self.paths)})"


def checked_groups(groups: Any, paths: Sequence[str], tied: Mapping[str, int], asked: str) -> dict[str, Group]:
    """The groups, and for each its paths: those of the parameters, one for each array.

    ``tied``: the paths at which an array occurs again, and which array that is.
    """
    cure = "Pass {name: {'paths': [path, ...], 'lr': ..., 'weight_decay': ...}}"
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise InvalidArgumentError(f"{asked}, groups={show(groups)}", "it is no mapping", cure)
    made: dict[str, Group] = {}
    taken: dict[str, str] = {}
    for name, entry in groups.items():
        where = f"{asked}, groups[{name!r}]"
        if not isinstance(entry, Mapping):
            raise InvalidArgumentError(f"{where}={show(entry)}", "it is no group", cure)
        if unknown := [key for key in entry if key not in _KEYS]:
            raise InvalidArgumentError(f"{where}={show(entry)}", f"{show(unknown[0])} is no key of a group", cure)
        if "paths" not in entry:
            raise InvalidArgumentError(f"{where}={show(entry)}", "it has no 'paths'", cure)
        members: list[str] = []
        for path in _chosen(entry["paths"], paths, where):
            first = paths[tied[path]] if path in tied else path
            if first not in paths:
                seen = f"there is no parameter at '{path}'; there are {_some(paths)}"
                raise InvalidArgumentError(where, seen, "Pass paths of the parameters")
            if taken.setdefault(first, name) != name:
                seen = f"parameter '{first}' is in group {taken[first]!r} too"
                raise InvalidArgumentError(where, seen, "Put each parameter into one group")
            if first not in members:
                members.append(first)
        if not members:
            seen = f"it catches no parameter; their paths are {_some(paths)}"
            raise InvalidArgumentError(where, seen, "Pass paths of the parameters, or leave the group out")
        made[name] = Group(name, asked, entry.get("lr"), entry.get("weight_decay"), members)
    return made


def _chosen(named: Any, paths: Sequence[str], where: str) -> list[str]:
    if callable(named):
        return [path for path in paths if named(path)]
    if isinstance(named, (str, bytes)) or not isinstance(named, Sequence):
        cure = "Pass a list of paths, or a function from a path to True or False"
        raise InvalidArgumentError(f"{where}['paths']={show(named)}", "it is no list of paths", cure)
    for path in named:
        if not isinstance(path, str):
            seen = f"{show(path)} is no path: a path is a str, and this is of type {type(path).__name__}"
            raise InvalidArgumentError(f"{where}['paths']", seen, f"Pass paths of the parameters: {_some(paths)}")
    return list(named)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:5])) + (", ..." if len(paths) > 5 else "")
