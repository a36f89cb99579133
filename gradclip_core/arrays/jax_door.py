"""The door for JAX arrays. Imported only when one arrives, and JAX with it already.

Concrete ones in host memory are read where they are, sharded ones gathered first. Tracers, and arrays on devices
whose memory nobody here can read, are worked on by JAX's own operations. On CUDA they come in by DLPack.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.arrays.dlpack_door import DOOR as BY_DLPACK
from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.immutable_door import ImmutableDoor
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.traced_info import tell_frameworks

jax: Any = sys.modules["jax"]
_SMALL = 1 << 16
"""Bytes up to which arrays are handed over together: each one by itself costs 20 µs of Python."""


class JaxDoor(ImmutableDoor):
    """See ``Door``."""

    name = "jax"

    def dock(self, x: Any) -> Docked:
        """A concrete array where it is, or one that JAX alone can work on."""
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise Refused(UnsupportedArrayError, "it is a random key", "Leave it out of the gradients")
        if isinstance(x, jax.core.Tracer):
            return self.symbol(x, x.shape, x.dtype.name)
        if x.is_deleted():
            raise Refused(
                UnsupportedArrayError,
                "it was deleted: it was donated to a function, or .delete() was called",
                "Pass what that function returned, or do not donate it",
            )
        if not x.is_fully_addressable:
            raise Refused(
                UnsupportedArrayError,
                "parts of it are in other processes",
                "Clip inside jax.jit, where XLA knows how to reach them",
            )
        platform = next(iter(x.devices())).platform
        if platform in ("gpu", "cuda", "rocm") and len(x.devices()) == 1:
            return BY_DLPACK.dock(x)
        if platform != "cpu":
            return self.symbol(x, x.shape, x.dtype.name, f"{platform}:jax")
        return super().dock(x)

    def traced(self, x: Any) -> bool:
        """Whether it is a tracer."""
        return isinstance(x, jax.core.Tracer)

    def constant(self, x: Any) -> Docked:
        """A concrete array beside traced ones: a constant of their program."""
        x = jax.numpy.asarray(x)
        return self.symbol(x, x.shape, x.dtype.name)

    def view(self, x: Any) -> npt.NDArray[Any]:
        """See ``ImmutableDoor.view``. Waits for the array to be computed."""
        return np.asarray(x)

    def views(self, leaves: Sequence[Any]) -> list[npt.NDArray[Any]] | None:
        """See ``WithViews``."""
        if isinstance(leaves[0], jax.core.Tracer):
            return None
        try:
            devices = {device for sharding in {x.sharding for x in leaves} for device in sharding.device_set}
            if any(device.platform != "cpu" for device in devices):
                return None
            return list(map(np.asarray, leaves))
        except (AttributeError, RuntimeError, TypeError):  # random keys, deleted arrays, other processes' parts
            return None

    def make(self, values: Sequence[npt.NDArray[Any]], likes: Sequence[Any]) -> list[Any]:
        """Arrays with the sharding of their likes. Memory that is aligned JAX takes over as it is."""
        default = jax.devices()[0]
        shardings = [like.sharding for like in likes]
        usual = {sharding for sharding in set(shardings) if sharding.device_set == {default}}
        made: list[Any] = [None] * len(values)
        together = []
        for i, (value, like) in enumerate(zip(values, likes, strict=True)):
            if value.nbytes <= _SMALL and not like.committed and shardings[i] in usual:
                together.append(i)
            else:
                made[i] = jax.device_put(value, like.sharding if like.committed else None)
        if len(together) > 1:
            for i, x in zip(together, _handed_over([values[i] for i in together]), strict=True):
                made[i] = x
        elif together:
            made[together[0]] = jax.numpy.asarray(values[together[0]])
        return made


@jax.jit  # type: ignore[untyped-decorator, unused-ignore]
def _handed_over(values: list[Any]) -> list[Any]:
    """What it is given; called with NumPy's arrays it is the shortest way into JAX for many of them."""
    return values


DOOR = JaxDoor()
tell_frameworks()
