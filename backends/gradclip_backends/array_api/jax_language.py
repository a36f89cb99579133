"""JAX's operations, for tracers and for devices whose memory nobody here can read: loops that XLA keeps, collectives.

What an array's own loop is given besides the array are numbers, not entries of a vector: XLA takes an entry out inside
the loop, and loops that take different entries are compiled one by one, where equal ones are compiled once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_backends.array_api.languages import Language, Pair, add
from gradclip_core.errors import InvalidArgumentError


class Jax(Language):
    """JAX: float64 where ``jax_enable_x64`` is on; compensated float32 otherwise."""

    def __init__(self, namespace: Any) -> None:
        super().__init__(namespace)
        self.jax: Any = sys.modules["jax"]
        self.wide_name = "float64" if self.jax.config.jax_enable_x64 else "float32"

    def still(self, x: Any) -> Any:
        """See ``Language.still``."""
        return self.jax.lax.stop_gradient(x)

    def settled(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """See ``Language.settled``: XLA would put them into the loop over each array, and compile them as often.

        It keeps no barrier on the CPU, but a sort, here of what is in order, goes into no loop of another.
        """
        xp, lax = self.xp, self.jax.lax
        flat = [xp.reshape(value, (-1,)) for value in values]
        count = flat[0].shape[0]
        if count == 1:  # of one there would be nothing to sort
            flat = [xp.concat([value, value]) for value in flat]
        _, *done = lax.sort((lax.iota(np.int32, flat[0].shape[0]), *flat), num_keys=1)
        return tuple(xp.reshape(v[:count], value.shape) for v, value in zip(done, values, strict=True))

    def powers_of_two(self, magnitudes: Sequence[Any]) -> Sequence[Any]:
        """See ``Language.powers_of_two``: one array by itself, by its bits, so little that it can stand in any loop."""
        xp, lax = self.xp, self.jax.lax
        whole, bits, bias = (np.int64, 52, 1023) if self.exact else (np.int32, 23, 127)
        made = []
        for here in magnitudes:
            exponent = lax.bitcast_convert_type(here, whole) >> bits
            inverse = xp.clip(2 * bias - exponent, 1, 2 * bias - 1)  # normal, and with a normal inverse
            made.append(lax.bitcast_convert_type(inverse << bits, self.wide))
        return made

    def index(self, values: Any, like: Any) -> Any:
        """See ``Language.index``; where x64 is off there is no int64."""
        return self.xp.asarray(np.asarray(values, np.int32))

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """See ``Language.joined``."""
        return self.jax.lax.complex(real, imaginary)

    def summed(self, terms: Any, axes: tuple[int, ...]) -> Pair:
        """See ``Language.summed``."""
        if self.exact:
            return super().summed(terms, axes)
        pair: Pair = _jax_summed()(terms, axes)
        return pair

    def extremes(self, magnitudes: Any, infs: Any, nans: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """See ``Language.extremes``: in one loop. XLA makes three of three, each with an array of its own."""
        lax, zero, none = self.jax.lax, np.zeros((), self.wide_name)[()], np.int32(0)

        def both(a: Any, b: Any) -> Any:
            return lax.max(a[0], b[0]), a[1] + b[1], a[2] + b[2]

        largest, infs, nans = lax.reduce((self.still(magnitudes), infs, nans), (zero, none, none), both, axes)
        return largest, infs, nans

    def over_mesh(self, x: Any, axes: Sequence[str], like: Any, *, largest: bool) -> Any:
        """See ``Language.over_mesh``: over those of the axes along which the array differs, where JAX keeps account."""
        jax = self.jax
        varying = _varying(jax.typeof(like))
        # An index differs along its axis; where JAX does not say so, it keeps no account (check_vma=False).
        try:
            axes = tuple(a for a in axes if a in varying or a not in _varying(jax.typeof(jax.lax.axis_index(a))))
        except NameError as error:
            raise InvalidArgumentError(
                f"mesh_axes={tuple(axes)!r}",
                f"there is no such mesh axis here ({str(error).partition(chr(10))[0]})",
                "Name axes of the mesh of the jax.shard_map around this call, or leave mesh_axes out",
            ) from error
        if not axes:
            return x
        return self.still(jax.lax.pmax(self.still(x), axes)) if largest else jax.lax.psum(x, axes)


def _varying(kind: Any) -> Any:
    """The mesh axes along which an array differs, as its type says since JAX 0.10, and before."""
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


@functools.cache
def _jax_summed() -> Any:
    """Sums of pairs by ``lax.reduce``, one axis after the other: never reshaped, so that shards stay where they are."""
    jax: Any = sys.modules["jax"]
    jnp, lax, zero = jax.numpy, jax.lax, np.float32(0)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
    def summed(terms: Any, axes: tuple[int, ...]) -> Any:
        pair = terms, jnp.zeros_like(terms)
        for axis in sorted(axes, reverse=True):
            pair = lax.reduce(pair, (zero, zero), add, (axis,))
        return tuple(pair)

    @summed.defjvp  # type: ignore[untyped-decorator, unused-ignore]
    def _(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
        slope = jnp.sum(tangents[0], axis=axes)
        return summed(primals[0], axes), (slope, jnp.zeros_like(slope))

    return summed
