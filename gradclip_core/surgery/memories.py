"""A-GEM and GEM: a gradient that does not raise the losses on what was learned before, to first order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import run_in_place, run_new
from gradclip_core.project import Project
from gradclip_core.sets.base import Set
from gradclip_core.surgery.cone import Ahead, Cone
from gradclip_core.tree import kept
from gradclip_core.validate import Common


def agem(grads: Any, reference: Any, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Project the gradients so that they do not go against a reference gradient (A-GEM).

    ``g ← g - (<g, ref>/<ref, ref>)·ref`` where ``<g, ref> < 0``, else g as it is: the projection on
    ``{y : <y, ref> >= 0}``.

    Parameters
    ----------
    grads, **how : see ``gradclip_core.clip``. Real arrays in host memory.
    reference : the gradient on the memory's batch, in a container of the same structure (matched by
        path and shape; it may have paths that ``grads`` has not), any real floating dtypes. Only read. Any
        positive multiple of it does the same, so that it needs no unscaling by ``loss_scale``.

    Returns
    -------
    (projected, info)
        New arrays, like ``grads``. Where there is no conflict, or the reference is zero, they are the
        gradients bit for bit. ``info.clipped`` says whether there was one; ``info.certificate`` and
        the accuracy are those of ``sets.HalfSpace``: ``<y, ref> >= 0`` holds in exact arithmetic
        for float32 and float64. The norms in ``info`` are 2-norms.

    Raises
    ------
    InvalidArgumentError
        for a reference whose structure does not match, or that is not finite, and for a result
        that the gradients' type cannot hold.
    NonFiniteGradientError, GradClipError
        See ``gradclip_core.clip``. ``nonfinite`` is about ``grads``.

    Notes
    -----
    Two read passes over both and one write pass; one read pass where there is no conflict.

    References
    ----------
    Chaudhry, Ranzato, Rohrbach, Elhoseiny 2019, "Efficient Lifelong Learning with A-GEM",
    https://arxiv.org/abs/1812.00420, equation 11.

    Examples
    --------
    >>> import numpy as np
    >>> from gradclip_core import surgery
    >>> g, ref = {"w": np.array([3.0, -1.0])}, {"w": np.array([-1.0, 1.0])}
    >>> y, info = surgery.agem(g, ref)
    >>> y["w"].round(6).tolist(), bool(y["w"] @ ref["w"] >= 0)
    ([1.0, 1.0], True)
    """
    return run_new(grads, Project(Ahead(kept(reference))), how, "agem")


def agem_(grads: Any, reference: Any, **how: Unpack[Common]) -> ClipInfo:
    """``agem``, in place. Where there is no conflict nothing is written."""
    return run_in_place(grads, Project(Ahead(kept(reference))), how, "agem_")


def gem(grads: Any, memories: Sequence[Any], *, margin: float = 0.0, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Project the gradients so that they go against none of several reference gradients (GEM).

    ``y = argmin ‖y - g‖`` over ``{y : <y, g_k> >= 0 for all k}``, by the dual quadratic program in as
    many variables as there are memories: ``y = g + Σ v_k·g_k``, where v minimises
    ``½ Σ_kl v_k·v_l·<g_k, g_l> + Σ_k v_k·<g, g_k>`` over ``v_k >= margin``.

    Parameters
    ----------
    grads, **how : see ``gradclip_core.clip``. Real arrays in host memory.
    memories : a list with a reference gradient for each earlier task, each as ``reference`` in
        ``agem``. Only read. They may be linearly dependent; zeros forbid nothing; an empty list
        forbids nothing at all.
    margin : the least weight of each memory where there is a conflict, >= 0. It favours the earlier
        tasks: the result is the projection of ``g + margin·Σ g_k``. As in the authors' program, where
        the bound of the dual is the margin; memories have to be unscaled for it to mean the same.

    Returns
    -------
    (projected, info)
        New arrays, like ``grads``. Where no ``<g, g_k>`` is negative they are the gradients bit for
        bit, whatever the margin. Close: negative is what ``Σ|g_i·g_k,i|`` times ``1.02 · 2^-24``
        (float64: 2^-45) does not explain. With one memory and no margin this is ``agem``, to the bit.
        ``info.certificate`` holds the KKT residuals of what was written: ``feasibility``, the largest
        ``-<y, g_k>/‖g_k‖``; ``optimality``, the larger of ``‖y - (g + Σ v_k·g_k)‖`` and the
        largest ``|<y, g_k>|/‖g_k‖`` with ``v_k > margin``; both relative to ``‖y‖ + ‖g - y‖``.
        A result that is nothing but rounding, where the memories leave 0 alone, is off that much.

    Raises
    ------
    InvalidArgumentError
        for memories that are no list, whose structure does not match, or that are not finite, for
        a margin that is negative or not finite, and a result that the gradients' type cannot hold.
    NonFiniteGradientError, GradClipError
        See ``gradclip_core.clip``. ``nonfinite`` is about ``grads``.

    Notes
    -----
    With T memories: T dots with the gradients, and in a conflict T²/2 among the memories and up to
    3T with the result, all in float64 in a fixed order, so that every backend gives the same bits;
    the result is held in float64 until it is written (8 bytes an element, twice).

    References
    ----------
    Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual Learning",
    https://arxiv.org/abs/1706.08840. Zhou and Li 2021, "A Fixed Version of Quadratic Program in
    Gradient Episodic Memory", https://arxiv.org/abs/2107.07384, mends the derivation of the dual.

    Examples
    --------
    >>> import numpy as np
    >>> from gradclip_core import surgery
    >>> memories = [np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])]
    >>> y, info = surgery.gem(np.array([-2.0, 1.0, 3.0]), memories)
    >>> (y + 0.0).round(6).tolist(), info.certificate.optimality < 1e-15
    ([0.0, 1.0, 3.0], True)
    """
    return run_new(grads, Project(_cone(memories, margin)), how, "gem")


def gem_(grads: Any, memories: Sequence[Any], *, margin: float = 0.0, **how: Unpack[Common]) -> ClipInfo:
    """``gem``, in place. Where there is no conflict nothing is written."""
    return run_in_place(grads, Project(_cone(memories, margin)), how, "gem_")


def _cone(memories: Any, margin: Any) -> Set:
    cure = "Pass a finite number >= 0"
    least = validate.number("margin", margin, cure)
    if not 0 <= least < math.inf:
        raise InvalidArgumentError(f"margin={show(margin)}", "it is not a finite number >= 0", cure)
    if not isinstance(memories, (list, tuple, Iterator)) or hasattr(memories, "_fields"):
        raise InvalidArgumentError(
            f"gem, memories={show(memories)}",
            f"a {type(memories).__name__} is no list of gradients",
            "Pass a list with one container for each earlier task",
        )
    containers = [kept(memory) for memory in memories]
    if len(containers) == 1 and least == 0:
        return Ahead(containers[0], "gem, memories[0]")
    return Cone(containers, least)
