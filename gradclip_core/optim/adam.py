"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradclip_core.optim.groups import fractions, not_negative
from gradclip_core.optim.optimizer import Optimizer
from gradclip_core.optim.settings import Fixed


class Adam(Optimizer):
    """Adam; its weight decay is that of an L2 penalty, which the running averages see.

    ``g ← g + λ·p`` where λ is not 0, and then as ``AdamW`` without weight decay. See there for the parameters,
    what is raised, and what is computed in which precision.

    References
    ----------
    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980, algorithm 1.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> w = np.array([1.0, 1.0])
    >>> opt = gc.optim.Adam(w, lr=0.5)
    >>> for _ in range(200):
    ...     _ = opt.step(2 * w)                      # of w·w
    >>> bool(abs(w).max() < 1e-3)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        groups: Any = None,
        backend: str | None = None,
    ) -> None:
        name = type(self).__name__
        self._betas = fractions(f"{name}, betas", betas)
        self._eps = not_negative(f"{name}, eps", eps)
        super().__init__(params, "adam", lr, weight_decay, groups, backend)

    @property
    def fixed(self) -> Mapping[str, Any]:
        """``betas`` and ``eps``."""
        return Fixed({"betas": self._betas, "eps": self._eps}, f"{self._name}, fixed")

    def _numbers(self, lr: float, weight_decay: float, count: int) -> dict[str, float]:
        beta1, beta2 = self._betas
        return {
            "l2": weight_decay,
            "take1": 1.0 - beta1,
            "keep2": beta2,
            "take2": 1.0 - beta2,
            "root": math.sqrt(1.0 - beta2**count),
            "eps": self._eps,
            "decay": 1.0,
            "lr": lr / (1.0 - beta1**count),
        }


class AdamW(Adam):
    """Adam with decoupled weight decay.

    At a parameter's step t, with ``g`` the clipped gradient::

        m ← m + (1 - β1)·(g - m)
        v ← β2·v + (1 - β2)·g·g
        p ← (1 - lr·λ)·p - (lr/(1 - β1^t))·m / (√v/√(1 - β2^t) + eps)

    Parameters
    ----------
    params : what is updated: a bare array, or any nesting of dict, list, tuple, namedtuple, dataclass and None,
        of writable arrays in host memory, bfloat16, float16, float32 or float64, each dense (its elements fill one
        stretch of memory, in any order of the axes). The caller's memory, held on to and written by
        ``step``. A tied array counts once.
    lr : the learning rate, >= 0; ``opt.lr`` may be set between steps, by a schedule.
    betas : (β1, β2), of the running averages, each >= 0 and < 1.
    eps : >= 0. With 0 an element that never had a gradient becomes NaN, 0/0.
    weight_decay : λ >= 0.
    groups : ``{name: {"paths": [path, ...], "lr": ..., "weight_decay": ...}}`` for parameters with a rate or a decay
        of their own; ``paths`` may be a function from a path to True or False. What is in no group has the
        optimizer's. ``opt.groups[name].lr`` may be set too.
    backend : a name from the registry; None: the fastest that there is.

    Raises
    ------
    InvalidArgumentError
        for a number without meaning, or a group that names no parameter or one that is taken.
    ReadOnlyError, UnsafeMemoryError, UnsupportedArrayError, BackendError
        for parameters that may not be written, overlap or are strided, are complex or float8, or are on a device.

    Notes
    -----
    Computed, and its state kept, in float32 (float64 for float64 parameters), every operation rounded as
    ``gradclip_core.updates`` says, none fused: the same bits on every backend, with every number of threads.
    The factors of a step are computed in float64 and rounded once. 16-bit parameters are rounded once, when they
    are stored: an update below half their ulp is lost, so keep float32 masters where that matters.
    A step moves 28 bytes an element in float32: g, p, m and v read, p, m and v written. 8 bytes an element of state.

    References
    ----------
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101,
    algorithm 2, with λ multiplied by lr as in ``torch.optim.AdamW``. Kingma and Ba 2015, see ``Adam``.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> params = {"w": np.ones(3, np.float32), "bias": np.ones(1, np.float32)}
    >>> opt = gc.optim.AdamW(params, lr=0.01, groups={"plain": {"paths": ["bias"], "weight_decay": 0.0}})
    >>> grads = {"w": np.array([3.0, -4.0, 0.0], np.float32), "bias": None}
    >>> opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0)))
    True
    >>> params["w"].round(4).tolist(), params["bias"].tolist()
    ([0.9898999929428101, 1.0098999738693237, 0.9998999834060669], [1.0])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        groups: Any = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, groups=groups, backend=backend)

    def _numbers(self, lr: float, weight_decay: float, count: int) -> dict[str, float]:
        return {**super()._numbers(lr, 0.0, count), "decay": 1.0 - lr * weight_decay}
