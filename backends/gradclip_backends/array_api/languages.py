"""What is special to a framework whose arrays are worked on without their memory: its names, its widest float.

Most speak the array API standard; JAX and TensorFlow have files of their own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_core.errors import BackendError

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

    def powers_of_two(self, magnitudes: Sequence[Any]) -> Sequence[Any]:
        """See ``power_of_two``, for arrays of one axis: for all of them at once, since it is many operations."""
        powers, made, first = power_of_two(self, joined(self.xp, magnitudes)), [], 0
        for here in magnitudes:
            made.append(powers[first : first + here.shape[0]])
            first += here.shape[0]
        return made

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

    def extremes(self, magnitudes: Any, infs: Any, nans: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Over some axes: the largest of numbers >= 0, of which no derivative is taken, and two counts."""
        xp = self.xp
        return xp.max(magnitudes, axis=axes), xp.sum(infs, axis=axes), xp.sum(nans, axis=axes)

    def over_mesh(self, x: Any, axes: Sequence[str], like: Any, *, largest: bool) -> Any:
        """The sum, or the largest, of the values that the shards along some mesh axes have."""
        raise BackendError(
            f"array_api, mesh_axes={tuple(axes)!r}", "only JAX has named mesh axes", "Leave mesh_axes out"
        )


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


def power_of_two(language: Language, largest: Any) -> Any:
    """A power of two that brings each number to [1, 2), or as near to that as a normal one with a normal inverse can.

    By comparisons: no framework's ``log2`` or ``exp2`` is promised to be exact.
    """
    xp = language.xp
    steps = [2**k for k in range(9 if language.exact else 6, -1, -1)]
    y, scale = largest, xp.ones_like(largest)
    for k in steps:
        big = y >= 2.0**k
        y, scale = xp.where(big, y * 2.0**-k, y), xp.where(big, scale * 2.0**-k, scale)
    for k in steps:
        small = y < 2.0 ** (1 - k)
        y, scale = xp.where(small, y * 2.0**k, y), xp.where(small, scale * 2.0**k, scale)
    end = 2.0 ** (2 * steps[0] - 2)  # ±1 beyond is where a number or its inverse is no normal one
    scale = xp.where(scale > end, xp.zeros_like(scale) + end, scale)
    return language.still(xp.where(scale < 1 / end, xp.zeros_like(scale) + 1 / end, scale))


def joined(xp: Any, parts: Sequence[Any]) -> Any:
    """One after the other, as one array."""
    return parts[0] if len(parts) == 1 else xp.concat(list(parts))
