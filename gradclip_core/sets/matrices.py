"""The spectral and the nuclear ball: bounds on the singular values of each matrix.

Both norms depend on the singular values alone, so that the projection keeps the singular vectors
and projects the vector of singular values: on a box for the spectral norm, on an L1 ball for the
nuclear norm (Lewis 1995, "The convex analysis of unitarily invariant matrix functions", Journal
of Convex Analysis 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gradclip_core import validate
from gradclip_core.errors import GradClipError, InvalidArgumentError, show
from gradclip_core.forms import Form
from gradclip_core.protocol import FLOAT64, BoolArray, DType, FloatArray
from gradclip_core.sets import newton_schulz
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.given import Given, as_written, given
from gradclip_core.sets.threshold import threshold_of

if TYPE_CHECKING:
    from gradclip_core.rules import Site

METHODS = ("svd", "newton_schulz")
_LOST = 2.0**-960
"""A radius in the units of u at which its parts lose bits: one that is less than 2^-1300 of the largest element."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One array: its matrices before and after, (rows, m, n), and which of them were outside."""

    array: int
    before: FloatArray
    after: FloatArray
    outside: BoolArray


class MatrixSet(Set):
    """Base of the sets of matrices. Every array is a scope of its own, and every matrix is projected by itself."""

    __slots__ = ()

    radius: float
    alone = True
    moments = ("dy", "d2")

    @property
    def finest(self) -> float:
        """See ``Set.finest``."""
        return self.radius

    def refuse(self, shape: tuple[int, ...], path: str) -> str:
        """See ``Set.refuse``."""
        if len(shape) >= 2:
            return ""
        return f"its shape is {shape}, and {type(self).__name__} is a set of matrices, or of stacks of them"

    def unit_axes(self, site: Site) -> list[tuple[int, ...] | None] | None:
        """The last two axes: a segment is a matrix."""
        return [(len(shape) - 2, len(shape) - 1) if len(shape) > 2 else None for shape in site.shapes]

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        radius = view.scaled(self.radius)
        parts = []
        project = self._project if radius >= _LOST else _vanished
        for i, (buffer, shape) in enumerate(zip(view.buffers, view.shapes, strict=True)):
            stack = view.values(i).reshape(buffer.rows, *shape[-2:])
            parts.append(_Part(i, stack, *project(view, i, stack, radius)))
        if not any(part.outside.any() for part in parts):
            return None
        values = [part.after.reshape(view.buffers[part.array].rows, -1) for part in parts]
        return given(view, values, lambda found: self._evidence(view, parts, found))

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """``sup_z <d, z> = radius · (dual norm of d)``, from singular values of what was written."""
        assert isinstance(form, Given)
        return form.certificate(found)

    def _evidence(self, view: View, parts: Sequence[_Part], found: Moments) -> Certificate:
        radius = view.scaled(self.radius)
        excess, support = 0.0, 0.0
        for part in parts:
            if part.outside.any():
                path = view.arrays.paths[part.array]
                written = as_written(view, part.array, part.after[part.outside])
                longest = float(np.max(self.gauge(_singular_values(written, path))))
                excess = max(excess, longest / radius - 1 if longest else 0.0)
                taken = _singular_values(part.before[part.outside] - written, path)
                support += radius * math.fsum(self.dual(taken))
        outside = np.concatenate([part.outside for part in parts])
        moved = view.original(math.sqrt(float(np.sum(found["d2"]))))
        return Certificate.of(excess, support, math.fsum(found["dy"][outside]), moved)

    def _project(self, view: View, array: int, stack: FloatArray, radius: float) -> tuple[FloatArray, BoolArray]:
        """The matrices projected, and which of them were outside; the others are what they were."""
        path = view.arrays.paths[array]
        outside = np.zeros(stack.shape[0], np.bool_)
        if not stack.size:
            return stack, outside
        # A Frobenius norm this small needs no singular values.
        norms = np.sqrt(np.einsum("rij,rij->r", stack, stack))
        near = np.flatnonzero(norms * self.reach(min(stack.shape[1:])) > radius * (1 - 2.0**-40))
        if near.size:
            outside[near] = self.gauge(_singular_values(stack[near], path)) > radius
        if not outside.any():
            return stack, outside
        after = stack.copy()
        after[outside] = self._shrunk(view, array, stack[outside], radius)
        return after, outside

    def _shrunk(self, view: View, array: int, stack: FloatArray, radius: float) -> FloatArray:
        """The projection of matrices that are outside, aimed so that what is written is inside.

        How far rounding leads out depends on how the errors of all elements add up, so it is
        measured, and the radius aimed at is lowered by it until nothing is outside.
        """
        path, dtype = view.arrays.paths[array], view.buffers[array].dtype
        u, s, v = _svd(stack, path)
        limit = radius * _allowed(dtype)
        aims = np.full(stack.shape[0], radius * (1 - 2.0**-49))
        after = np.empty_like(stack)
        over = np.ones(stack.shape[0], np.bool_)
        for attempt in range(16):
            after[over] = (u[over] * self._shrink(s[over], aims[over])[:, None, :]) @ v[over]
            excess = self.gauge(_singular_values(as_written(view, array, after), path)) - limit
            over = excess > 0
            if not over.any():
                break
            # Too small a step would round to the same elements; each is at least twice the one before.
            steps = np.maximum(1.5 * excess[over], radius * 2.0**attempt * dtype.roundoff / 16)
            aims[over] = np.maximum(aims[over] - steps, 0.0)
        return after

    def _shrink(self, s: FloatArray, aims: FloatArray) -> FloatArray:
        return np.array([self.shrink(*pair) for pair in zip(s, aims, strict=True)])

    def reach(self, rank: int) -> float:
        """The gauge is at most this times the Frobenius norm."""
        raise NotImplementedError

    def gauge(self, s: FloatArray) -> FloatArray:
        """The set's norm, of singular values (rows, rank)."""
        raise NotImplementedError

    def dual(self, s: FloatArray) -> FloatArray:
        """Its dual norm."""
        raise NotImplementedError

    def shrink(self, s: FloatArray, aim: float) -> FloatArray:
        """The singular values projected."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SpectralBall(MatrixSet):
    """``{Y : σ_max(Y) <= radius}`` for each matrix: ``Y = U·min(Σ, radius)·Vᵀ`` of ``G = U·Σ·Vᵀ``.

    A matrix is an array of two axes; of more axes the last two are matrices, as in NumPy's linalg,
    each projected by itself. Vectors are refused. The scope makes no difference: every matrix has
    ``radius`` for itself. Those that are inside keep their bits (but for a stack of float64
    matrices that lie more than 2^600 apart); an array with none outside is not written. Zeros, where
    the radius is less than 2^-1300 of the largest element.

    ``method="svd"``: LAPACK's SVD in float64. Approximate: within ``2^-44 · √rank · σ_max(G)``,
    in the Frobenius norm, of the projection, before it is rounded to the storage type (tested up to
    rank 60). For float32 and
    float64 ``σ_max(Y) <= radius`` holds as LAPACK measures it, and projecting twice is projecting
    once; for 16-bit types ``σ_max(Y) <= radius·(1 + u)``, u their unit roundoff.

    ``method="newton_schulz"``: matrix products alone, the same method on any hardware:
    ``Y = G - O·(H - r·I)₊`` with the polar factor O of G and ``H = OᵀG``, both by Newton-Schulz
    iteration in float64, see ``newton_schulz.py``. It aims a little inside. Within
    ``2^-36 · radius + 2^-42 · σ_max(G)`` of the projection, in the spectral norm, before it is rounded
    (measured: up to 400 columns, condition numbers 1 to 10^16, σ_max(G) up to 10^6 radii), and in
    float64 feasible, measured up to 10^308 radii; float32 aims one ulp further inside, so within
    ``2^-22 · radius + 2^-42 · σ_max(G)``, which its rounding exceeds where the errors of
    many elements line up. A matrix is left alone up to ``radius·(1 + 2^-36)`` (16-bit types too;
    float32: ``2^-21``). It takes about 45 steps of two products, twice that beyond 2^12 radii and again for each
    2^50 of them; with LAPACK on a CPU the SVD took a fifth of its time at 400 columns.

    The certificate takes singular values from LAPACK with both methods. Results are not the same
    bits on every machine, because LAPACK's and BLAS's are not.
    """

    radius: float
    method: str = "svd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("SpectralBall, radius", self.radius))
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise InvalidArgumentError(
                f"SpectralBall, method={show(self.method)}",
                "there is no such method",
                f"Pass one of {', '.join(METHODS)}",
            )

    def _project(self, view: View, array: int, stack: FloatArray, radius: float) -> tuple[FloatArray, BoolArray]:
        if self.method == "svd":
            return MatrixSet._project(self, view, array, stack, radius)
        outside, after = np.zeros(stack.shape[0], np.bool_), stack.copy()
        dtype = view.buffers[array].dtype
        shave = 2 * dtype.roundoff if dtype.itemsize == 4 else 0.0
        for row, matrix in enumerate(stack):
            if matrix.size:
                found = newton_schulz.within(matrix, radius, shave)
                if found is not None:
                    outside[row], after[row] = True, found
        return after, outside

    def reach(self, rank: int) -> float:
        """See ``MatrixSet.reach``."""
        return 1.0

    def gauge(self, s: FloatArray) -> FloatArray:
        """σ_max."""
        return s[:, 0]

    def dual(self, s: FloatArray) -> FloatArray:
        """Σσ."""
        return np.array([math.fsum(row) for row in s])

    def shrink(self, s: FloatArray, aim: float) -> FloatArray:
        """See ``MatrixSet.shrink``."""
        return np.minimum(s, aim)


@dataclass(frozen=True, slots=True)
class NuclearBall(MatrixSet):
    """``{Y : Σσ(Y) <= radius}`` for each matrix: ``Y = U·max(Σ - τ, 0)·Vᵀ`` of ``G = U·Σ·Vᵀ``.

    τ >= 0 is the threshold at which the singular values add up to ``radius``, as for ``L1Ball``.
    The result has low rank. Which arrays are matrices, and what the scope means, is as for
    ``SpectralBall``: ``radius`` is each matrix's own, with every scope.

    Approximate: LAPACK's SVD in float64; τ is exact for the singular values that it finds. Within
    ``2^-44 · √rank · σ_max(G)``, in the Frobenius norm, of the projection, before it is rounded to
    the storage type. For float32 and float64 ``Σσ(Y) <= radius`` holds as LAPACK measures it, and
    projecting twice is projecting once; for 16-bit types ``Σσ(Y) <= radius·(1 + u)``.
    """

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", validate.positive("NuclearBall, radius", self.radius))

    def reach(self, rank: int) -> float:
        """See ``MatrixSet.reach``."""
        return math.sqrt(rank)

    def gauge(self, s: FloatArray) -> FloatArray:
        """Σσ."""
        return np.array([math.fsum(row) for row in s])

    def dual(self, s: FloatArray) -> FloatArray:
        """σ_max."""
        return s[:, 0]

    def shrink(self, s: FloatArray, aim: float) -> FloatArray:
        """See ``MatrixSet.shrink``."""
        if aim <= 0:
            return np.zeros_like(s)
        high, low = threshold_of(s, Fraction(aim))
        return np.maximum((s - high) - low, 0.0)


def _vanished(view: View, array: int, stack: FloatArray, radius: float) -> tuple[FloatArray, BoolArray]:
    """Zeros, where beside the gradient the radius is none."""
    return np.zeros_like(stack), (stack != 0).any(axis=(1, 2))


def _allowed(dtype: DType) -> float:
    """The norm that what was written may have, over the radius."""
    if dtype.itemsize <= 2:
        return 1 + dtype.roundoff
    return 1 - 2.0**-51 if dtype is FLOAT64 else 1.0


def _singular_values(stack: FloatArray, path: str) -> FloatArray:
    try:
        found: FloatArray = np.linalg.svd(stack, compute_uv=False)  # type: ignore[assignment]  # float64 as the stack
    except np.linalg.LinAlgError as error:
        raise _no_svd(path, error) from error
    return found


def _svd(stack: FloatArray, path: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    try:
        found = np.linalg.svd(stack, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise _no_svd(path, error) from error
    return found.U, found.S, found.Vh


def _no_svd(path: str, error: Exception) -> GradClipError:
    cure = "Project it on a SpectralBall with method='newton_schulz', or clip it by another norm"
    return GradClipError(f"projection of array '{path}'", f"LAPACK found no SVD of it ({error})", cure)
