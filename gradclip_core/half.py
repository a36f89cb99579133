"""``to_half``: clip in the gradients' own precision, and write 16 or 8 bits in the same pass."""

from __future__ import annotations

from typing import Any, Unpack

from gradclip_core.casting import dtype_named
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import run_new
from gradclip_core.rules import Rule, checked_rule
from gradclip_core.validate import Common

HALVES = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def to_half(grads: Any, dtype: Any, rule: Rule, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Clip, and convert to 16 or 8 bits in the same pass, for optimizers that communicate in them.

    ``y = round(min(max(g · factor, -M), M))``, M the largest finite value of ``dtype``: saturating.

    Parameters
    ----------
    grads, rule, **how : see ``clip``. Real numbers in host memory, of any floating dtype.
    dtype : ``"float16"``, ``"bfloat16"``, ``"float8_e4m3fn"`` or ``"float8_e5m2"``, or a framework's object
        for one of them. NumPy has the last three from ``ml_dtypes``.

    Returns
    -------
    (halves, info)
        New arrays of the gradients' frameworks, in a container of the same type. Norms in ``info`` are those of
        the gradients. The product is rounded to ``dtype`` once, to nearest, ties to even: in its normal
        range ``‖halves‖ ≤ max_norm · (1 + u)``, u the unit roundoff of ``dtype``. Infinities of a step
        that ``"skip"`` skips become ± M; NaN stays NaN.

    Raises
    ------
    NonFiniteGradientError, GradClipError
        See ``clip``. Also where a projection has moved to elements beyond M.

    References
    ----------
    Micikevicius et al. 2022, "FP8 formats for deep learning", https://arxiv.org/abs/2209.05433.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> halves, info = gc.to_half({"w": np.array([3.0, 4.0, 1e6], np.float32)}, "float16", gc.Value(1e5))
    >>> halves["w"].tolist()
    [3.0, 4.0, 65504.0]
    """
    kind = dtype_named("to_half", dtype, HALVES)
    return run_new(grads, checked_rule("to_half", rule), how, "to_half", dtype=kind)
