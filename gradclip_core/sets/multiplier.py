"""The multiplier of a constraint: Newton's method on the reciprocal of a norm, in a bracket.

Where a norm falls as the multiplier rises, its reciprocal is nearly straight (concave, for the
secular equation of a trust region: Moré and Sorensen 1983, "Computing a trust region step",
https://doi.org/10.1137/0904038, section 3), so that few steps do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_STEPS = 200

Read = Callable[[float], tuple[float, float]]
"""A multiplier -> the norm there, and what its relative excess is multiplied by for Newton's step; inf for no step."""


def find_multiplier(read: Read, start: float, low: float, high: float, aim: float, slack: float) -> float:
    """A multiplier within [low, high] where ``aim·(1 - slack) <= norm <= aim``; else the least known to be enough.

    Where steps stay short, because the elements lie decades apart, the bracket is halved in the exponent.
    """
    wanted = aim * (1 - slack / 2)
    multiplier, off = start, math.inf
    for _ in range(_STEPS):
        norm, reach = read(multiplier)
        if aim * (1 - slack) <= norm <= aim:
            return multiplier
        if norm > wanted:
            low = multiplier
        else:
            high = multiplier
        before, off = off, abs(norm / wanted - 1)
        following = multiplier + (norm - wanted) / wanted * reach if reach < math.inf else math.inf
        if not low < following < high or off > before / 2:
            following = math.sqrt(low or high * 2.0**-60) * math.sqrt(high)
        if not low < following < high:
            break
        multiplier = following
    return high
