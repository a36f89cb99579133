"""The five policies for infinities and NaNs, the same for every rule, and the three for what a factor makes zero."""

from __future__ import annotations

from collections.abc import Sequence

from gradclip_core.errors import NonFiniteGradientError
from gradclip_core.protocol import IntArray

POLICIES = ("raise", "skip", "zero", "sanitize", "propagate")
UNDERFLOW_POLICIES = ("ignore", "count", "raise")
_SHOWN = 8


def refuse(asked: str, paths: Sequence[str], infs: IntArray, nans: IntArray) -> NonFiniteGradientError:
    """The error that names each culprit, with its counts. ``infs`` and ``nans`` are per array."""
    culprits = [
        f"'{path}' ({inf} inf, {nan} NaN)" for path, inf, nan in zip(paths, infs, nans, strict=True) if inf or nan
    ]
    shown = ", ".join(culprits[:_SHOWN])
    if len(culprits) > _SHOWN:
        shown += f" and {len(culprits) - _SHOWN} more arrays"
    return NonFiniteGradientError(
        asked,
        f"the gradients hold non-finite values: {shown}",
        "No gradient was touched. To go on, pass nonfinite='skip', 'zero', 'sanitize' or 'propagate'",
    )
