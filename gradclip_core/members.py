"""The arrays of one scope, and arrays of other containers that belong beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import flatten_in, lying
from gradclip_core.errors import InvalidArgumentError
from gradclip_core.passes import Axes
from gradclip_core.protocol import Buffer
from gradclip_core.rules import Site


@dataclass(frozen=True, slots=True)
class Members:
    """``members`` are indices into all arrays of the call."""

    site: Site
    arrays: Sequence[Docked]
    axes: Axes
    members: list[int]

    @property
    def orders(self) -> list[tuple[int, ...]]:
        """For each member its axes in the order in which its elements lie in its buffer."""
        return [lying(self.arrays[i], self.axes[i]) for i in self.members]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """For each member its shape in that order."""
        return [
            tuple(self.arrays[i].shape[axis] for axis in order)
            for i, order in zip(self.members, self.orders, strict=True)
        ]

    @property
    def paths(self) -> list[str]:
        """The path of each member."""
        return [self.site.paths[i] for i in self.members]

    def beside(self, container: Any, asked: str) -> list[Buffer]:
        """For each member the array of the same path and shape in another container, in host memory."""
        other = unload(container, asked, clips=False)
        index = match(other, self.site, asked)
        buffers = []
        for i, order in zip(self.members, self.orders, strict=True):
            docked = other.arrays[index[i]]
            if docked.device != "cpu" or docked.is_complex:
                kind = "complex" if docked.is_complex else f"on {docked.device}"
                cure = "Pass real arrays in host memory"
                raise InvalidArgumentError(f"{asked}, array '{self.site.paths[i]}'", f"it is {kind}", cure)
            buffers.append(flatten_in(docked, self.axes[i], order).buffer)
        return buffers


def match(other: Cargo, site: Site, asked: str, noun: str = "") -> list[int]:
    """For each gradient the array of another container that has its path and its shape.

    ``asked`` ends in the container's name. ``noun``: what the sentences call one of its arrays.
    """
    what = asked.rpartition(", ")[2]
    many, one = (f"{noun}s", noun) if noun else (what, f"array in {what}")
    for path, length in site.lengths.items():
        if other.tree.lengths.get(path, length) != length:
            where = f"at '{path}' " if path else ""
            counts = f"{other.tree.lengths[path]} {many} and {length} gradients"
            raise InvalidArgumentError(
                asked,
                f"{where}there are {counts}, which are paired by position",
                "Keep a None where there is no gradient, as in [p.grad for p in params]",
            )
    by_path = dict(zip(other.tree.paths, other.index, strict=True))
    for path, shape in zip(site.paths, site.shapes, strict=True):
        if path not in by_path:
            there = ", ".join(map(repr, list(by_path)[:5])) or "none"
            raise InvalidArgumentError(
                f"{asked}, gradient '{path}'",
                f"there is no {noun or 'array'} at that path; there are {there}",
                f"Pass {what} in a container of the same structure as grads",
            )
        found = other.arrays[by_path[path]].shape
        if found != shape:
            raise InvalidArgumentError(
                f"{asked}, gradient '{path}'",
                f"its shape is {shape}, and that of its {one} {found}",
                f"Pass {what} in a container of the same structure as grads",
            )
    return [by_path[path] for path in site.paths]
