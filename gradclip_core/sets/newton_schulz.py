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

    With the polar factor O of X and ``H = OᵀX``, ``P(X) = X - O·(H - r·I)₊``, and
    ``(S)₊ = (S + |S|)/2`` with ``|S| = S·sign(S)``. The r that is aimed at is a margin below
    ``radius``: ``shave`` for the storage type's rounding, and what the iteration's own error can be.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    bound = upper_bound(tall)
    if bound <= radius:
        return None
    margin = min(radius * (_SHAVE + shave) + 2 * _ROUNDING * bound, 0.5 * radius)
    aim = radius - margin
    # Only singular values beyond the aim have to come to 1: smaller ones stay below it in H.
    polar = unit_singular_values(tall / bound, min(0.5, 0.9 * aim / bound))
    positive = polar.T @ tall
    shifted = 0.5 * (positive + positive.T) - aim * np.eye(tall.shape[1])
    largest = max(bound - aim, aim) * (1 + 2.0**-40)
    sign = unit_singular_values(shifted / largest, _CLOSE * min(1.0, aim / largest))
    magnitude = shifted @ sign
    excess = 0.5 * (shifted + 0.5 * (magnitude + magnitude.T))
    if upper_bound(excess) <= 2 * margin:
        return None
    result = tall - polar @ excess
    return result if tall is matrix else np.ascontiguousarray(result.T)
