"""The entrance: every leaf of a container described, checked, and known by its path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradclip_core.arrays import dlpack_door, frameworks, numpy_door
from gradclip_core.arrays.docked import Docked, Door, Refused
from gradclip_core.arrays.express import Fleet, fleet_of
from gradclip_core.arrays.layout import overlapping_pair, overlaps_itself
from gradclip_core.arrays.symbols import of_one_program
from gradclip_core.errors import InvalidArgumentError, ReadOnlyError, UnsafeMemoryError, UnsupportedArrayError
from gradclip_core.protocol import Manifest
from gradclip_core.tree import Tree, flatten

_doors: dict[type, Door] = {}


@dataclass(frozen=True, slots=True)
class Names:
    """The leaves' paths, which array each is, and how many arrays there are."""

    tree: Tree
    index: Sequence[int]
    arrays: int


@dataclass(frozen=True, slots=True)
class Cargo:
    """A container's arrays. An array that it holds twice (a tied weight) is in ``arrays`` once."""

    tree: Tree
    arrays: Sequence[Docked]
    index: Sequence[int]
    """For each leaf, its entry of ``arrays``."""

    @property
    def manifest(self) -> Manifest | None:
        """All arrays in one table, where they came in by ``express.py``: real, dense, in host memory, each once."""
        return self.arrays.manifest if isinstance(self.arrays, Fleet) else None

    def names(self) -> Names:
        """What a report needs of the arrays, without holding on to their memory."""
        return Names(self.tree.names_only(), self.index, len(self.arrays))

    @property
    def in_memory(self) -> bool:
        """Whether backends can read them; ``symbols.py`` has seen to it that all can, or none."""
        return isinstance(self.arrays, Fleet) or not self.arrays or self.arrays[0].memory

    @property
    def holds(self) -> bool:
        """Whether the memory of some is but a part of a user's array, see ``Holder``."""
        return not isinstance(self.arrays, Fleet) and any(docked.holder is not None for docked in self.arrays)

    @property
    def device(self) -> str:
        """Where the arrays are: the first one's device. ``choose`` has refused several."""
        return self.arrays[0].device if self.arrays and self.manifest is None else "cpu"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array: of a whole one, where the memory is a part of it."""
        return self.arrays.shapes if isinstance(self.arrays, Fleet) else [docked.whole for docked in self.arrays]

    @property
    def looks(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array."""
        if isinstance(self.arrays, Fleet):
            return list(zip(self.shapes, (dtype.name for dtype in self.arrays.manifest.dtypes), strict=True))
        return [(docked.whole, docked.look) for docked in self.arrays]

    def first_path(self, array: int) -> str:
        """The path of the first leaf that is this array."""
        return self.tree.paths[self.index.index(array)]

    def first_paths(self) -> list[str]:
        """The path of each array."""
        if isinstance(self.index, range):
            return self.tree.paths
        found: dict[int, str] = {}
        for array, path in zip(self.index, self.tree.paths, strict=True):
            found.setdefault(array, path)
        return list(found.values())


def unload(container: Any, asked: str, *, in_place: bool = False, clips: bool = True, parts: bool = False) -> Cargo:
    """Dock every leaf of a container, or raise before anything is written.

    ``in_place`` demands memory that may be written, each element once. ``clips`` refuses arrays
    that are no gradients although they have one. ``parts`` takes arrays of which the memory is but a part
    (``Holder``); who passes it asks ``held.py`` what may be done with them.
    """
    leaves, tree = flatten(container)
    fleet = fleet_of(leaves, _doors.get(type(leaves[0]))) if leaves else None
    if fleet is not None and not (in_place and fleet.read_only):
        return Cargo(tree, fleet, range(len(leaves)))
    arrays: list[Docked] = []
    index: list[int] = []
    known: dict[object, int] = {}
    for position, leaf in enumerate(leaves):
        door = _doors.get(type(leaf)) or _find_door(leaf, asked, tree, position)
        try:
            docked = door.dock(leaf)
            if clips:
                if not docked.symbolic:  # through those, derivatives are taken
                    _refuse_parameter(leaf, door, in_place)
                if docked.memory and hasattr(docked.door, "refuse_recorded"):  # derivatives go through operations alone
                    docked.door.refuse_recorded(docked.array)
            if docked.holder is not None and not parts:
                raise docked.holder.refusal()
        except Refused as refused:
            raise refused.kind(f"{asked}, array '{tree.paths[position]}'", refused.seen, refused.cure) from refused
        # Where there is no memory, nothing can be shared; but an empty shard is one of an array that has some.
        there = (docked.pointer and 0 not in docked.shape) or docked.holder is not None
        # What nobody may write, nobody scales twice: of x + y, one object is the gradient of x and that of y.
        key = docked.key if there and not docked.immutable else position
        found = known.setdefault(key, len(arrays))
        if found == len(arrays):
            arrays.append(docked)
        index.append(found)
    if clips:
        _refuse_pairs(leaves, tree, asked)
    cargo = of_one_program(Cargo(tree, arrays, index), asked)
    _check_overlap(cargo, asked)
    if in_place:
        _check_writable(cargo, asked)
        if cargo.holds:
            _check_replaced(cargo, asked)
    return cargo


def _find_door(leaf: Any, asked: str, tree: Tree, position: int) -> Door:
    kind = type(leaf)
    door = frameworks.door_of(leaf)
    if door is None and hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
        door = dlpack_door.DOOR
    if door is None:
        path = tree.paths[position]
        torch = sys.modules.get("torch")
        if torch is not None and issubclass(kind, torch.nn.Module):
            cure = "Pass its gradients: [p.grad for p in module.parameters()]"
        elif isinstance(leaf, str):
            cure = "Pass the arrays alone, or a dict of them: {name: p.grad for name, p in model.named_parameters()}"
        else:
            cure = "Pass arrays of NumPy, PyTorch, JAX or another framework, or objects with __dlpack__"
        raise UnsupportedArrayError(f"{asked}, leaf '{path}'", f"a {kind.__module__}.{kind.__name__} is no array", cure)
    _doors[kind] = door
    return door


def _refuse_pairs(leaves: list[Any], tree: Tree, asked: str) -> None:
    """Weights among gradients: the pairs of TensorFlow's and Keras's optimizers, of which each half has a norm."""
    if not any(hasattr(kind, "trainable") for kind in set(map(type, leaves))):
        return
    weights = [position for position, leaf in enumerate(leaves) if getattr(leaf, "trainable", False) is True]
    if weights and len(weights) < len(leaves):
        raise InvalidArgumentError(
            f"{asked}, array '{tree.paths[weights[0]]}'",
            "it is a trainable variable among gradients, and its weights would count as one",
            "Of pairs (gradient, variable) pass the gradients: [g for g, v in pairs]. A variable that holds a gradient "
            "is made with trainable=False",
        )


def _refuse_parameter(leaf: Any, door: Door, in_place: bool) -> None:
    """Tensors that autograd knows: ``model.parameters()`` in place of the gradients, or a graph's own."""
    if not getattr(leaf, "requires_grad", False) or door is numpy_door.DOOR or door is dlpack_door.DOOR:
        return
    framework: Any = _framework(type(leaf))
    if not leaf.is_leaf and framework.is_grad_enabled():
        raise Refused(
            InvalidArgumentError,
            "it is part of an autograd graph, which would take the clipped values for the unclipped ones",
            f"Clip under {framework.__name__}.no_grad(), or pass x.detach()"
            + ("; derivatives go through a clip inside torch.func.grad" if framework.__name__ == "torch" else ""),
        )
    if leaf.is_leaf and leaf.grad is not None:
        raise Refused(
            InvalidArgumentError,
            "it is a parameter that has a gradient, so its weights would be clipped and its gradient not",
            "Pass [p.grad for p in parameters]; to clip the weights themselves, pass p.data",
        )
    if in_place and isinstance(leaf, framework.nn.Parameter):
        raise Refused(
            InvalidArgumentError,
            "it is a parameter that has no gradient yet: its weights would be clipped",
            "Call backward first, and pass [p.grad for p in parameters]; to clip the weights themselves, pass p.data",
        )


def _framework(kind: type) -> Any:
    """PyTorch or Paddle, whose tensor a type is or inherits from: what is asked of it, both have by the same name."""
    names = {base.__module__.partition(".")[0] for base in kind.__mro__}
    return sys.modules["paddle" if "paddle" in names else "torch"]


def _check_overlap(cargo: Cargo, asked: str) -> None:
    for device in {docked.device for docked in cargo.arrays}:
        here = [
            i
            for i, docked in enumerate(cargo.arrays)
            if docked.device == device and docked.pointer and not docked.immutable
        ]
        pair = overlapping_pair([cargo.arrays[i] for i in here])
        if pair is not None:
            a, b = (cargo.first_path(here[i]) for i in pair)
            raise UnsafeMemoryError(
                f"{asked}, arrays '{a}' and '{b}'",
                "they share memory without being the same array, so elements would be counted and scaled twice",
                "Pass the array that holds both, or copies",
            )


def _check_replaced(cargo: Cargo, asked: str) -> None:
    """Memory that an array keeps where nothing is written to it, and another array of the call would write."""
    for i, docked in enumerate(cargo.arrays):
        lies = None if docked.holder is None else docked.holder.lies
        if lies is not None and overlapping_pair([*cargo.arrays, lies]) is not None:
            raise UnsafeMemoryError(
                f"{asked}, array '{cargo.first_path(i)}'",
                "it is not coalesced, and shares memory with another array, which would be written",
                "Give it memory of its own: p.grad = p.grad.coalesce()",
            )


def _check_writable(cargo: Cargo, asked: str) -> None:
    for i, docked in enumerate(cargo.arrays):
        if docked.read_only:
            raise ReadOnlyError(
                f"{asked}, array '{cargo.first_path(i)}'",
                docked.read_only,
                "Pass arrays that may be written" if asked.endswith(", out") else _use_new(asked),
            )
        if overlaps_itself(docked):
            raise UnsafeMemoryError(
                f"{asked}, array '{cargo.first_path(i)}'",
                f"several of its elements are the same memory (strides {docked.strides} bytes), "
                "which in place would be scaled more than once",
                "Pass arrays without such strides" if asked.endswith(", out") else _use_new(asked),
            )


def _use_new(asked: str) -> str:
    if asked == "Clipper.step_":
        return "Call the Clipper itself, clipped, info = clipper(grads), which returns new arrays"
    return f"Use {asked.rstrip('_')}, which returns new arrays"
