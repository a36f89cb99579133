"""What the tests of the promise share: how much may be given away, and of what orders and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings

Array = npt.NDArray[Any]
U = Fraction(2) ** -53
# How much of max_norm may be given away, docs/numerics.md: the shave, a factor rounded down to 24
# bits, products rounded down. Two ulp of a float32 1, and never more than 4.0001 of max_norm itself.
GIVEN_AWAY = Fraction(2) ** -22 + Fraction(2) ** -37
# The shave of 2u, a factor rounded down by less than 2u, products rounded down by u.
GIVEN_AWAY_FLOAT64 = 5 * U + Fraction(2) ** -79
FIXED = settings(derandomize=True, deadline=None, max_examples=60, database=None)
ORDERS = [1, 2, math.inf]


def bits(x: Array) -> bytes:
    return x.tobytes()


def spread(arrays: Sequence[Array], quantum: Fraction, ord: float) -> Fraction:
    """``n^(1/ord) · quantum``, rounded up: what ``n`` errors of a quantum can come to."""
    n = sum(x.size for x in arrays)
    return quantum * (1 if ord == math.inf else n if ord == 1 else math.isqrt(n) + 1)


def lossy_lanes(large: float, small: float) -> Array:
    """In each lane one large element and fifteen whose squares are near half an ulp of its square."""
    x = np.full((16, 256), small)
    x[0] = large
    return x.ravel()
