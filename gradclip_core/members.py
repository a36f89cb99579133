"""The arrays of one scope, and arrays of other containers that belong beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import flatten_in, lying
from gradclip_core.errors import InvalidArgumentError, UnsupportedArrayError
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
        try:
            other = unload(container, asked, clips=False)
        except UnsupportedArrayError as error:
            if "complex" not in error.cure:
                raise
            cure = "Convert to one of bfloat16, float16, float32, float64"
            raise UnsupportedArrayError(error.asked, error.seen, cure) from error
        index = match(other, self.site, asked)
        self._refuse_untied(other, index, asked)
        buffers = []
        for i, order in zip(self.members, self.orders, strict=True):
            docked = other.arrays[index[i]]
            if docked.device != "cpu" or docked.is_complex:
                kind = "complex" if docked.is_complex else f"on {docked.device}"
                cure = "Pass real arrays in host memory"
                raise InvalidArgumentError(f"{asked}, array '{self.site.paths[i]}'", f"it is {kind}", cure)
            buffers.append(flatten_in(docked, self.axes[i], order).buffer)
        return buffers

    def _refuse_untied(self, other: Cargo, index: list[int], asked: str) -> None:
        """Raise where gradients that are one array have companions that are not."""
        what = asked.rpartition(", ")[2]
        by_path = dict(zip(other.tree.paths, other.index, strict=True))
        for path, array in self.site.tied.items():
            if by_path.get(path) != index[array]:
                first = self.site.paths[array]
                here = "another array" if path in by_path else "nothing"
                raise InvalidArgumentError(
                    f"{asked}, gradient '{path}'",
                    f"it is the same array as '{first}', so one gradient, but in {what} there is {here} at '{path}'",
                    f"Put the same array at both paths of {what}, or leave '{path}' out of the gradients",
                )


def _refuse_bare(other: Cargo, site: Site, asked: str) -> None:
    """Raise where one of the two is a list of arrays, and the other an array alone."""
    what = asked.rpartition(", ")[2]
    alone = [paths == ["0"] and lengths.get("") == 0 for paths, lengths in _structures(other, site)]
    lists = [lengths.get("", 0) > 0 for _, lengths in _structures(other, site)]
    if alone[1] and lists[0]:
        cure = f"Pass {what} as an array too, or the gradient in a list"
        raise InvalidArgumentError(asked, f"the gradient is an array alone, and {what} a list of arrays", cure)
    if alone[0] and lists[1]:
        cure = f"Pass {what} in a container of the same structure as grads"
        raise InvalidArgumentError(asked, f"the gradients are a list of arrays, and {what} an array alone", cure)


def _structures(other: Cargo, site: Site) -> list[tuple[list[str], Mapping[str, int]]]:
    return [(other.tree.paths, other.tree.lengths), (site.paths, site.lengths)]


def match(other: Cargo, site: Site, asked: str, noun: str = "") -> list[int]:
    """For each gradient the array of another container that has its path and its shape.

    ``asked`` ends in the container's name. ``noun``: what the sentences call one of its arrays.
    """
    what = asked.rpartition(", ")[2]
    shapes = other.shapes
    alike = other.tree.paths == site.paths and other.tree.lengths == site.lengths
    if alike and [shapes[i] for i in other.index] == site.shapes:  # as good as always, and at once
        return list(other.index)
    _refuse_bare(other, site, asked)
    many, one = (f"{noun}s", noun) if noun else (what, f"array in {what}")
    lengths = other.tree.lengths
    for path, length in site.lengths.items():
        if lengths.get(path, length) != length:
            where = f"at '{path}' " if path else ""
            counts = f"{lengths[path]} {many} and {length} gradients"
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
        found = shapes[by_path[path]]
        if found != shape:
            raise InvalidArgumentError(
                f"{asked}, gradient '{path}'",
                f"its shape is {shape}, and that of its {one} {found}",
                f"Pass {what} in a container of the same structure as grads",
            )
    return [by_path[path] for path in site.paths]
