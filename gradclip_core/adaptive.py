"""The door for adaptive clipping (AGC): ``adaptive_clip``."""

from __future__ import annotations

from typing import Any, Unpack

from gradclip_core.axes import Axis
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import run_in_place, run_new
from gradclip_core.unitwise import UnitNorm
from gradclip_core.validate import Common


def adaptive_clip(
    grads: Any, params: Any, clipping: float = 0.01, *, eps: float = 1e-3, axis: Axis, **how: Unpack[Common]
) -> tuple[Any, ClipInfo]:
    """Adaptive gradient clipping (AGC): each unit within ``clipping`` times its weights' norm.

    ``g_u ← g_u · min(1, clipping · max(‖w_u‖, eps) / ‖g_u‖)`` for each unit u of each weight.

    Parameters
    ----------
    grads, **how : see ``clip``.
    params : the weights, in a container of the same structure (matched by path and shape; it may
        have paths that ``grads`` has not). Only read. Any floating dtype.
    clipping : the λ of the paper, > 0.
    eps : the least weight norm, so that weights that start at zero train; > 0.
    axis : the axes over which a unit extends. Libraries disagree, so there is no default:
        ``"all_but_first"`` for weights stored output-first (PyTorch; what timm does),
        ``"all_but_last"`` for output-last (JAX, Flax; what the paper's own code does); an int, a
        tuple, None (the whole array), or a function ``(path, shape) -> `` any of these. Arrays
        with at most one axis are one unit whatever ``axis`` says, as in the paper.

    Raises
    ------
    InvalidArgumentError
        for axes that an array has not, params that do not match, or that are not finite (on a
        device when ``info`` is read; the gradients are left alone).

    References
    ----------
    Brock, De, Smith, Simonyan 2021, https://arxiv.org/abs/2102.06171, equation 3.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> w = np.array([[3.0, 4.0], [0.0, 0.0]])
    >>> g = np.array([[6.0, 8.0], [3.0, 4.0]])
    >>> clipped, info = gc.adaptive_clip(g, w, clipping=1.0, eps=1e-3, axis=1)
    >>> np.linalg.norm(clipped, axis=1).round(6).tolist()
    [5.0, 0.001]
    """
    return run_new(grads, UnitNorm(params, clipping, eps, axis=axis), how, "adaptive_clip")


def adaptive_clip_(
    grads: Any, params: Any, clipping: float = 0.01, *, eps: float = 1e-3, axis: Axis, **how: Unpack[Common]
) -> ClipInfo:
    """``adaptive_clip``, in place."""
    return run_in_place(grads, UnitNorm(params, clipping, eps, axis=axis), how, "adaptive_clip_")
