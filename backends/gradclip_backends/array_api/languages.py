"""What is special to a framework whose arrays are worked on without their memory: its names, its widest float.

Most speak the array API standard. JAX adds a sum that a compiler keeps in order, and collectives over a mesh.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_core.errors import BackendError, InvalidArgumentError

Pair = tuple[Any, Any]


class Language:
    """A namespace of array functions, and what the standard leaves open."""

    wide_name = "float64"
    """The type that is computed in."""

    def __init__(self, namespace: Any) -> None:
        self.xp = namespace

    @property
    def wide(self) -> Any:
        """The namespace's object for ``wide_name``."""
        return getattr(self.xp, self.wide_name)

    @property
    def exact(self) -> bool:
        """Whether squares of float32 are exact in it, and sums of them need no care."""
        return self.wide_name == "float64"

    def number(self, value: Any, like: Any) -> Any:
        """A number or NumPy array of them, as an array of the wide type where ``like`` is."""
        return self.xp.asarray(np.asarray(value, self.wide_name), dtype=self.wide)

    def cast(self, x: Any, dtype: Any) -> Any:
        """``x`` in another type."""
        return self.xp.astype(x, dtype)

    def index(self, values: Any, like: Any) -> Any:
        """Places in an array, to take from it."""
        return self.xp.asarray(np.asarray(values, np.int64))

    def size(self, x: Any) -> Any:
        """How many elements an array has."""
        return math.prod(x.shape)

    def still(self, x: Any) -> Any:
        """A value that derivatives are not taken of: a scale that is divided out again."""
        return x

    def settled(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numbers that are computed once, and not again wherever one of them is used."""
        return values

    def parts(self, x: Any) -> Pair:
        """Real and imaginary parts."""
        return self.xp.real(x), self.xp.imag(x)

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """A complex array of its parts. Never by arithmetic: inf · 0i is NaN."""
        raise BackendError(
            f"array_api, a complex array of {type(like).__module__.partition('.')[0]}",
            "its framework has no way to put a complex number together that keeps infinities",
            "Pass the real and imaginary parts",
        )

    def summed(self, terms: Any, axes: tuple[int, ...]) -> Pair:
        """The sum of numbers of the wide type over some axes, and what rounding took from it."""
        if self.exact:
            total = self.xp.sum(terms, axis=axes)
            return total, self.xp.zeros_like(total)
        return halved(self.xp, terms, axes)

    def over_mesh(self, x: Any, axes: Sequence[str], like: Any, *, largest: bool) -> Any:
        """The sum, or the largest, of the values that the shards along some mesh axes have."""
        raise BackendError(
            f"array_api, mesh_axes={tuple(axes)!r}", "only JAX has named mesh axes", "Leave mesh_axes out"
        )


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


class Torch(Language):
    """PyTorch: under ``torch.func``, and on devices without kernels, of which mps has no float64."""

    def __init__(self, namespace: Any, device: str) -> None:
        super().__init__(namespace)
        self.wide_name = "float32" if device.partition(":")[0] == "mps" else "float64"

    def number(self, value: Any, like: Any) -> Any:
        """See ``Language.number``."""
        return self.xp.asarray(np.asarray(value, self.wide_name), dtype=self.wide, device=like.device)

    def index(self, values: Any, like: Any) -> Any:
        """See ``Language.index``."""
        return self.xp.asarray(np.asarray(values, np.int64), device=like.device)

    def still(self, x: Any) -> Any:
        """See ``Language.still``."""
        return x.detach()

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """See ``Language.joined``."""
        return sys.modules["torch"].complex(real, imaginary)


class Mlx(Language):
    """MLX: float32, since its devices other than the processor have nothing wider; float64 for arrays of that."""

    def __init__(self, namespace: Any, wide: bool) -> None:
        super().__init__(namespace)
        self.wide_name = "float64" if wide else "float32"

    def still(self, x: Any) -> Any:
        """See ``Language.still``."""
        return self.xp.stop_gradient(x)

    def number(self, value: Any, like: Any) -> Any:
        """See ``Language.number``."""
        return self.xp.array(np.asarray(value, self.wide_name), dtype=self.wide)

    def index(self, values: Any, like: Any) -> Any:
        """See ``Language.index``."""
        return self.xp.array(np.asarray(values, np.int32))

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """See ``Language.joined``: beside each other in memory they are one."""
        pair = self.xp.stack([real, imaginary], axis=-1)
        return self.xp.reshape(pair.view(self.xp.complex64), real.shape)


class Dask(Language):
    """dask: NumPy's operations, later."""

    def index(self, values: Any, like: Any) -> Any:
        """See ``Language.index``."""
        return np.asarray(values, np.int64)  # a lazy index would have to be computed

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """See ``Language.joined``."""
        axes = tuple(range(like.ndim))
        return sys.modules["dask.array"].blockwise(_complex, axes, real, axes, imaginary, axes, dtype=like.dtype)


def _complex(real: Any, imaginary: Any) -> Any:
    joined = np.empty(real.shape, np.result_type(real.dtype, np.complex64))
    joined.real, joined.imag = real, imaginary
    return joined


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs of numbers >= 0, as a pair again: within 2^-46 of it, relative (Knuth's two-sum, Dekker)."""
    s = a[0] + b[0]
    t = s - a[0]
    rest = (a[1] + b[1]) + ((a[0] - (s - t)) + (b[0] - t))
    high = s + rest
    return high, rest - (high - s)


def halved(xp: Any, terms: Any, axes: tuple[int, ...]) -> Pair:
    """Sums by adding the second half to the first, as long as there are two: log2(n) operations."""
    kept = tuple(axis for axis in range(terms.ndim) if axis not in axes)
    shape = tuple(terms.shape[axis] for axis in kept)
    if kept + axes != tuple(range(terms.ndim)):
        terms = xp.permute_dims(terms, kept + axes)
    rows = math.prod(shape)
    terms = xp.reshape(terms, (rows, math.prod(terms.shape) // rows))
    size = 1 << max(0, terms.shape[1] - 1).bit_length()
    if size > terms.shape[1]:
        terms = xp.concat([terms, xp.zeros_like(terms[:, : size - terms.shape[1]])], axis=1)
    pair = terms, xp.zeros_like(terms)
    while size > 1:
        size //= 2
        pair = add((pair[0][:, :size], pair[1][:, :size]), (pair[0][:, size:], pair[1][:, size:]))
    # Of infinities the rest is NaN, and the sum stands for itself.
    return xp.reshape(pair[0], shape), xp.reshape(pair[1], shape)


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


def language_of(array: Any, wide: bool) -> Language:
    """How to speak to an array's framework. ``wide``: about float64."""
    if (jax := sys.modules.get("jax")) and isinstance(array, jax.Array):
        return Jax(jax.numpy)
    if (tensorflow := sys.modules.get("tensorflow")) and isinstance(array, tensorflow.Tensor):
        from gradclip_backends.array_api.tensorflow_language import TensorFlow

        return TensorFlow()
    if (mlx := sys.modules.get("mlx.core")) and isinstance(array, mlx.array):
        return Mlx(mlx, wide)
    compat = importlib.import_module("array_api_compat")
    namespace = compat.array_namespace(array)
    if (torch := sys.modules.get("torch")) and isinstance(array, torch.Tensor):
        return Torch(namespace, str(array.device))
    if (dask := sys.modules.get("dask.array")) and isinstance(array, dask.Array):
        return Dask(namespace)
    return Language(namespace)
