"""The entrance: every leaf of a container described, checked, and known by its path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.arrays import dlpack_door, numpy_door
from gradclip_core.arrays.docked import Docked, Door, Refused
from gradclip_core.arrays.express import Fleet, fleet_of
from gradclip_core.arrays.layout import overlapping_pair, overlaps_itself
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
    def device(self) -> str:
        """Where the arrays are: the first one's device. ``choose`` has refused several."""
        return self.arrays[0].device if self.arrays and self.manifest is None else "cpu"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each array."""
        return self.arrays.shapes if isinstance(self.arrays, Fleet) else [docked.shape for docked in self.arrays]

    @property
    def looks(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array."""
        if isinstance(self.arrays, Fleet):
            return list(zip(self.shapes, (dtype.name for dtype in self.arrays.manifest.dtypes), strict=True))
        return [(docked.shape, docked.dtype.name) for docked in self.arrays]

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


def unload(container: Any, asked: str, *, in_place: bool = False, clips: bool = True) -> Cargo:
    """Dock every leaf of a container, or raise before anything is written.

    ``in_place`` demands memory that may be written, each element once. ``clips`` refuses arrays
    that are no gradients although they have one.
    """
    leaves, tree = flatten(container)
    fleet = fleet_of(leaves, _doors.get(type(leaves[0]))) if leaves else None
    if fleet is not None:
        return Cargo(tree, fleet, range(len(leaves)))
    arrays: list[Docked] = []
    index: list[int] = []
    known: dict[object, int] = {}
    for position, leaf in enumerate(leaves):
        door = _doors.get(type(leaf)) or _find_door(leaf, asked, tree, position)
        try:
            docked = door.dock(leaf)
            if clips:
                _refuse_parameter(leaf, door, in_place)
        except Refused as refused:
            raise refused.kind(f"{asked}, array '{tree.paths[position]}'", refused.seen, refused.cure) from refused
        # Where there is no memory, nothing can be shared.
        key = docked.key if docked.pointer and 0 not in docked.shape else position
        found = known.setdefault(key, len(arrays))
        if found == len(arrays):
            arrays.append(docked)
        index.append(found)
    cargo = Cargo(tree, arrays, index)
    _check_overlap(cargo, asked)
    if in_place:
        _check_writable(cargo, asked)
    return cargo


def _find_door(leaf: Any, asked: str, tree: Tree, position: int) -> Door:
    kind = type(leaf)
    torch = sys.modules.get("torch")
    door: Door
    if isinstance(leaf, (np.ndarray, np.generic)):
        door = numpy_door.DOOR
    elif torch is not None and issubclass(kind, torch.Tensor):
        from gradclip_core.arrays import torch_door

        door = torch_door.DOOR
    elif sys.modules.get("cupy") is not None and issubclass(kind, sys.modules["cupy"].ndarray):
        from gradclip_core.arrays import cupy_door

        door = cupy_door.DOOR
    elif hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
        door = dlpack_door.DOOR
    else:
        path = tree.paths[position]
        if torch is not None and issubclass(kind, torch.nn.Module):
            cure = "Pass its gradients: [p.grad for p in module.parameters()]"
        elif "jax" in sys.modules and issubclass(kind, sys.modules["jax"].core.Tracer):
            cure = "Clip outside jit, grad and vmap, on the arrays that they return"
        elif isinstance(leaf, str):
            cure = "Pass the arrays alone, or a dict of them: {name: p.grad for name, p in model.named_parameters()}"
        else:
            cure = "Pass NumPy arrays, CuPy arrays, PyTorch tensors, or objects with __dlpack__"
        raise UnsupportedArrayError(f"{asked}, leaf '{path}'", f"a {kind.__module__}.{kind.__name__} is no array", cure)
    _doors[kind] = door
    return door


def _refuse_parameter(leaf: Any, door: Door, in_place: bool) -> None:
    """Tensors that autograd knows: ``model.parameters()`` in place of the gradients, or a graph's own."""
    if not getattr(leaf, "requires_grad", False) or door is numpy_door.DOOR or door is dlpack_door.DOOR:
        return
    if not leaf.is_leaf and sys.modules["torch"].is_grad_enabled():
        raise Refused(
            InvalidArgumentError,
            "it is part of an autograd graph, which would take the clipped values for the unclipped ones",
            "Clip under torch.no_grad(), or pass x.detach(); multiply by plan.scale to differentiate through it",
        )
    if leaf.is_leaf and leaf.grad is not None:
        raise Refused(
            InvalidArgumentError,
            "it is a parameter that has a gradient, so its weights would be clipped and its gradient not",
            "Pass [p.grad for p in parameters]; to clip the weights themselves, pass p.data",
        )
    if in_place and isinstance(leaf, sys.modules["torch"].nn.Parameter):
        raise Refused(
            InvalidArgumentError,
            "it is a parameter that has no gradient yet: its weights would be clipped",
            "Call backward first, and pass [p.grad for p in parameters]; to clip the weights themselves, pass p.data",
        )


def _check_overlap(cargo: Cargo, asked: str) -> None:
    for device in {docked.device for docked in cargo.arrays}:
        here = [i for i, docked in enumerate(cargo.arrays) if docked.device == device and docked.pointer]
        pair = overlapping_pair([cargo.arrays[i] for i in here])
        if pair is not None:
            a, b = (cargo.first_path(here[i]) for i in pair)
            raise UnsafeMemoryError(
                f"{asked}, arrays '{a}' and '{b}'",
                "they share memory without being the same array, so elements would be counted and scaled twice",
                "Pass the array that holds both, or copies",
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
