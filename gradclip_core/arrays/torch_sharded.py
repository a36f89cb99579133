"""PyTorch's DTensors, as FSDP2 and tensor parallelism make gradients: this process's shard is docked.

A DTensor has no memory of its own (DLPack hands out NULL for one); the tensor behind it has. What the other processes
hold is known to ``sharded.py`` by its numbers, which go over the process groups of the DTensor's own mesh.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradclip_core.arrays.docked import Docked, Door, Refused
from gradclip_core.errors import InvalidArgumentError, UnsupportedArrayError
from gradclip_core.protocol import FloatArray
from gradclip_core.sharded import Shared

torch: Any = sys.modules["torch"]


@dataclass(frozen=True, slots=True)
class MeshLine:
    """The processes along one axis of a mesh, see ``sharded.Line``."""

    group: Any
    device: str
    """The type of device that the group's transport takes its numbers from."""

    @property
    def key(self) -> object:
        """See ``Line.key``."""
        return self.group.group_name

    def gather(self, numbers: FloatArray) -> FloatArray:
        """See ``Line.gather``."""
        distributed = torch.distributed
        with torch.no_grad():
            ours = torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)
            found = [torch.empty_like(ours) for _ in range(distributed.get_world_size(self.group))]
            distributed.all_gather(found, ours, group=self.group)
            everywhere: FloatArray = torch.stack(found).cpu().numpy()
        return everywhere


@dataclass(frozen=True, slots=True)
class Shard:
    """See ``Holder``. ``like`` is the user's DTensor."""

    like: Any
    shared: Shared
    original: bool = True
    """Whether the memory is that of ``like``, and not new."""
    kind: str = "sharded"
    lies: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Holder.shape``."""
        return tuple(self.like.shape)

    @property
    def key(self) -> tuple[object, ...]:
        """See ``Holder.key``: not by its memory, of which this process may have none."""
        return (id(self.like),)

    def refusal(self) -> Refused:
        """See ``Holder.refusal``."""
        return Refused(
            UnsupportedArrayError,
            "it is a DTensor, of which this process holds a shard, and all of it is needed here",
            "Pass x.full_tensor(), or x.to_local() if the shard is what is meant",
        )

    def renewed(self) -> Shard:
        """See ``Holder.renewed``."""
        return replace(self, original=False)

    def around(self, values: Any) -> Any:
        """See ``Holder.around``."""
        x = self.like
        with torch.no_grad():
            made = sys.modules["torch.distributed.tensor"].DTensor
            where = {"device_mesh": x.device_mesh, "placements": x.placements, "run_check": False}
            return made.from_local(values, **where, shape=x.shape, stride=x.stride())

    def after_write(self, values: Any) -> None:
        """See ``Holder.after_write``: the DTensor counts its versions itself."""
        if self.original and not self.like.is_inference():
            torch.autograd.graph.increment_version([self.like])


def dock_shard(door: Door, x: Any) -> Docked:
    """The shard of a DTensor that this process has, as ``door`` docks the tensor that it is."""
    mesh = x.device_mesh
    if any(placement.is_partial() for placement in x.placements):
        raise Refused(
            InvalidArgumentError,
            f"it is a DTensor of placements {tuple(x.placements)}: what each process holds has yet to be added up",
            "Redistribute it first: x.redistribute(placements=[Shard(0)]), or [Replicate()]",
        )
    if mesh.get_coordinate() is None:
        raise Refused(
            InvalidArgumentError,
            "it is a DTensor, and this process is none of its mesh's",
            "Clip on the processes of the mesh alone",
        )
    with torch.no_grad():
        local = x.to_local()
    docked = door.dock(local)
    elements = x.numel() * (2 if docked.is_complex else 1)
    device = str(mesh.device_type)
    axes = [axis for axis, placement in enumerate(x.placements) if not placement.is_replicate()]
    lines = tuple(MeshLine(mesh.get_group(axis), device) for axis in axes if mesh.size(axis) > 1)
    look = f"{tuple(x.placements)} on a mesh of shape {tuple(mesh.shape)}"
    docked.holder = Shard(x, Shared(elements, lines, look))
    return docked
