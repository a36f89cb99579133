"""The projection of a matrix on a spectral ball by matrix products alone.

Newton-Schulz iteration brings every singular value of a matrix to 1 and leaves the singular
vectors: ``X <- X·(3·I - XᵀX)/2``. Of a symmetric matrix that is its sign function (Higham 2008,
*Functions of Matrices*, sections 5.3 and 8.3). While the smallest singular value that matters is
known to be small, each step is scaled as by Chen and Chow 2014, "A stable scaling of Newton-Schulz
for improving the sign function computation of a Hermitian matrix", preprint ANL/MCS-P5059-0114.
"""

from __future__ import annotations

import math

import numpy as np

from gradclip_core.protocol import FloatArray

# Larger scalings would bring the largest singular values down to the roundoff of the others.
_STABLE = 1.69770248526
_CLOSE = 2.0**-40
_ROUNDING = 2.0**-45
_SHAVE = 2.0**-38
_NEAR = 2.0**12
"""Radii up to which the margin covers the iteration's error, so that nothing has to be projected again."""
_STEP = 2.0**-50
"""How much nearer a matrix comes at once: what is left of the largest singular values is this relative to the rest."""


def upper_bound(matrix: FloatArray) -> float:
    """Not below the largest singular value, and at most n^(1/16) of it for n columns."""
    largest = float(np.max(np.abs(matrix), initial=0.0))
    if not largest:
        return 0.0
    power = matrix / largest
    length = float(np.linalg.norm(power))
    size = largest * length
    power /= length
    power = power.T @ power
    # ‖G^k‖_F^(1/k) for k = 1, 2, 4, each power brought back to norm 1.
    logarithm, share = 0.0, 1.0
    for step in range(3):
        if step:
            power = power @ power
            share /= 2
        length = float(np.linalg.norm(power))
        if length < 2.0**-1000:
            return size  # the Frobenius norm, where a power has underflowed
        logarithm += share * math.log(length)
        power /= length
    return min(size, size * math.exp(0.5 * logarithm)) * (1 + 2.0**-40)


def unit_singular_values(matrix: FloatArray, least: float) -> FloatArray:
    """``U·f(Σ)·Vᵀ`` for a matrix ``U·Σ·Vᵀ`` with singular values up to 1.

    f is 1 for values from ``least`` up, and between 0 and 1 below.
    """
    alpha, settling = 1.0, 0
    while settling < 2:
        if least < 1 - 2.0**-50:
            alpha = min(math.sqrt(3 / (1 + least + least * least)), _STABLE)
            ends = (0.5 * alpha * s * (3 - (alpha * s) ** 2) for s in (least, 1.0))
            # At least the growth of the unscaled step: rounding may hold the last bits back.
            least = max(min(ends), least * (1 + 2.0**-52))
        else:
            alpha, settling = 1.0, settling + 1
        matrix = (1.5 * alpha) * matrix - (0.5 * alpha**3) * (matrix @ (matrix.T @ matrix))
    return matrix


def within(matrix: FloatArray, radius: float, shave: float) -> FloatArray | None:
    """The projection of a matrix on ``σ_max <= radius``; None where it is inside, to twice the margin.

    The radius that is aimed at is a margin below ``radius``: ``shave`` for the storage type's rounding, and
    what the iteration's own error can be. That error is relative to the largest singular value: a matrix
    that is far outside comes nearer in steps, and is projected once more from close by, which leaves it inside.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    result, first = tall, True
    while (bound := upper_bound(result)) > radius:
        near = bound <= _NEAR * radius
        margin = min(radius * (_SHAVE + shave) + 2 * _ROUNDING * min(bound, _NEAR * radius), 0.5 * radius)
        aim = max(radius - margin, bound * _STEP)
        polar, shifted, sign = _parts(result, bound, aim)
        if first and near and _excess(shifted, sign) <= 2 * margin:
            return None
        result, first = _combined(result, polar, sign, aim), False
        if near:
            break
    if first:
        return None
    return result if tall is matrix else np.ascontiguousarray(result.T)


def _parts(matrix: FloatArray, bound: float, aim: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The polar factor O of a matrix X, ``H - aim·I`` with ``H = OᵀX``, and the sign of that."""
    # Only singular values beyond the aim have to come to 1: smaller ones stay below it in H.
    polar = unit_singular_values(matrix / bound, min(0.5, 0.9 * aim / bound))
    positive = polar.T @ matrix
    shifted = 0.5 * (positive + positive.T) - aim * np.eye(matrix.shape[1])
    largest = max(bound - aim, aim) * (1 + 2.0**-40)
    sign = unit_singular_values(shifted / largest, _CLOSE * min(1.0, aim / largest))
    return polar, shifted, 0.5 * (sign + sign.T)


def _excess(shifted: FloatArray, sign: FloatArray) -> float:
    """Not below the largest eigenvalue of ``(S)₊ = (S + |S|)/2`` with ``|S| = S·sign(S)``."""
    magnitude = shifted @ sign
    return upper_bound(0.5 * (shifted + 0.5 * (magnitude + magnitude.T)))


def _combined(matrix: FloatArray, polar: FloatArray, sign: FloatArray, aim: float) -> FloatArray:
    """``(I - O·P·Oᵀ)·X·Q + aim·O·(I - Q²)``, with the projectors ``P = (I + sign(H - aim·I))/2`` and ``Q = I - P``.

    From both sides: what P's error and rounding leave of singular values far beyond the aim is their product
    with the square of a roundoff. Where H is at the aim, whatever P is there, the terms add up to it.
    """
    identity = np.eye(matrix.shape[1])
    outside = 0.5 * (identity + sign)
    inside = matrix @ (identity - outside)
    result: FloatArray = inside + polar @ (outside @ (aim * (2 * identity - outside) - polar.T @ inside))
    return result
