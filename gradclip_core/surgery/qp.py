"""A small quadratic program over nonnegative numbers, by active sets.

Lawson and Hanson 1974, *Solving Least Squares Problems*, chapter 23, algorithm NNLS, in terms of
the Gram matrix as in Bro and De Jong 1997, "A fast non-negativity-constrained least squares
algorithm", Journal of Chemometrics 11, 393-401.
"""

from __future__ import annotations

import numpy as np

from gradclip_core.protocol import BoolArray, FloatArray

# Relative to the largest entry of c: below it a gradient, and a part that is new, is rounding.
_TOLERANCE = 2.0**-44


def nonnegative(gram: FloatArray, c: FloatArray) -> FloatArray:
    """The ``x >= 0`` that minimises ``½ xᵀ·gram·x + cᵀ·x``. ``gram`` is that of unit vectors.

    Of linearly dependent vectors some get 0: the minimum is the same, and so is the combination.
    """
    x = np.zeros(c.size)
    active: BoolArray = np.zeros(c.size, np.bool_)
    refused: BoolArray = np.zeros(c.size, np.bool_)
    least = _TOLERANCE * float(np.max(np.abs(c), initial=0.0))
    for _ in range(30 * (c.size + 1)):
        downhill = np.where(active | refused, -np.inf, -(gram @ x + c))
        new = int(np.argmax(downhill))
        if not downhill[new] > least:
            break
        if _part_that_is_new(gram, active, new) <= _TOLERANCE:
            refused[new] = True  # it is a combination of those that are in: only rounding calls for it
            continue
        active[new] = True
        trial = _solve(gram, c, active)
        if trial[new] <= 0:
            active[new], refused[new] = False, True
            continue
        while (trial[active] <= 0).any():
            # As far as all stay nonnegative; those that become 0 leave.
            leaving = active & (trial <= 0)
            part = float(np.min(x[leaving] / (x[leaving] - trial[leaving])))
            x = x + part * (trial - x)
            active &= ~(leaving & (x <= least)) & ~(x <= 0)
            x[~active] = 0.0
            trial = _solve(gram, c, active)
        x = trial
        refused[:] = False
    return x


def _solve(gram: FloatArray, c: FloatArray, active: BoolArray) -> FloatArray:
    """The minimum over the active numbers, the others being 0."""
    x = np.zeros(c.size)
    if active.any():
        x[active] = np.linalg.solve(gram[np.ix_(active, active)], -c[active])
    return x


def _part_that_is_new(gram: FloatArray, active: BoolArray, new: int) -> float:
    """The squared distance of a unit vector from the span of the active ones."""
    if not active.any():
        return 1.0
    beside = gram[active, new]
    return float(1.0 - beside @ np.linalg.solve(gram[np.ix_(active, active)], beside))
