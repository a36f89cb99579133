"""The door for projections: ``clip_by_projection``."""

from __future__ import annotations

from typing import Any, Unpack

from gradclip_core.functions import Groups
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import run_in_place, run_new
from gradclip_core.project import Project
from gradclip_core.sets.base import Set
from gradclip_core.validate import Common


def clip_by_projection(
    grads: Any, onto: Set, scope: str = "global", *, groups: Groups | None = None, **how: Unpack[Common]
) -> tuple[Any, ClipInfo]:
    """Move the gradients to the nearest point of a set, in the Euclidean norm.

    ``y = argmin_{z in onto} ‖z - g‖₂``

    Parameters
    ----------
    grads, **how : see ``clip``. Real arrays; complex ones on an L2Ball only.
    onto : one of ``gradclip_core.sets``; its lengths are in units of the unscaled gradient. Each
        set says in its docstring what it is good for and whether its projection is exact.
    scope : what the set is applied to as one vector. ``"global"``: all arrays together;
        ``"group"``: each group, see ``groups``; ``"array"``: each array on its own. No difference
        to sets of elements (``Box``) or of matrices (``SpectralBall``).
    groups : for ``scope="group"``, as in ``clip_by_group_norm``.

    Returns
    -------
    (clipped, info)
        A scope that is in the set already comes back bit for bit (unscaled). 16-bit arrays are projected
        in float64 and rounded once. ``info.certificate`` holds the evidence that the result is
        the projection; it is None where a step was skipped, or NaN went through. Norms in ``info``
        are 2-norms, but 1-norms for ``L1Ball`` and ``Simplex`` and p-norms for ``LpBall``.
        ``info.scale`` is ``1/loss_scale``, but for ``L2Ball``: a projection is no factor.

    Raises
    ------
    InvalidArgumentError
        for arrays that have no projection on the set, such as a vector on a spectral ball.
    BackendError
        for arrays on a device, and a set other than ``L2Ball``, ``LinfBall`` and ``Box``.
    NonFiniteGradientError, GradClipError
        See ``clip``. Under ``nonfinite="propagate"`` a scope with a NaN or an infinity becomes
        NaN: no point is nearest to it.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> from gradclip_core import sets
    >>> clipped, info = gc.clip_by_projection({"w": np.array([0.75, 0.75, -0.25])}, sets.L1Ball(1.0))
    >>> clipped["w"].round(6).tolist(), info.certificate.optimality < 1e-15
    ([0.5, 0.5, -0.0], True)
    """
    return run_new(grads, Project(onto, scope, groups), how, "clip_by_projection")


def clip_by_projection_(
    grads: Any, onto: Set, scope: str = "global", *, groups: Groups | None = None, **how: Unpack[Common]
) -> ClipInfo:
    """``clip_by_projection``, in place. A scope that is in the set already is not written."""
    return run_in_place(grads, Project(onto, scope, groups), how, "clip_by_projection_")
