"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.optim.groups import not_negative
from gradclip_core.optim.optimizer import Optimizer
from gradclip_core.optim.settings import Fixed
from gradclip_core.validate import number


class SGD(Optimizer):
    """Gradient descent, with momentum μ, dampening τ, Nesterov's look ahead, and an L2 penalty λ.

    With ``g`` the clipped gradient, ``g ← g + λ·p`` where λ is not 0, and then::

        p ← p - lr·g                                                     μ = 0
        b ← μ·b + (1 - τ)·g, at a parameter's first step b ← g
        p ← p - lr·b                     or, with nesterov,  p ← p - lr·(g + μ·b)

    Parameters
    ----------
    params, groups, backend : see ``AdamW``; so for what is raised, and what is computed in which precision.
    lr : the learning rate, >= 0.
    momentum : μ >= 0. Without it there is no state.
    dampening : τ, finite; 0 with ``nesterov``.
    nesterov : whether to look ahead; needs a momentum.
    weight_decay : λ >= 0, coupled: the momentum sees it.

    Raises
    ------
    InvalidArgumentError
        also for ``nesterov`` without momentum, or with dampening.

    Notes
    -----
    A step moves 12 bytes an element in float32, 20 with momentum.

    References
    ----------
    Sutskever, Martens, Dahl, Hinton 2013, "On the importance of initialization and momentum in deep learning",
    with the learning rate outside the momentum, as in ``torch.optim.SGD``.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> w = np.array([4.0, -4.0])
    >>> opt = gc.optim.SGD(w, lr=0.25, momentum=0.5)
    >>> opt.step(w * 2), w.tolist(), opt.step(w * 2), w.tolist()
    (True, [2.0, -2.0], True, [0.0, 0.0])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        groups: Any = None,
        backend: str | None = None,
    ) -> None:
        self._momentum = not_negative("SGD, momentum", momentum)
        self._dampening = number("SGD, dampening", dampening, "Pass a finite number")
        if not math.isfinite(self._dampening):
            raise InvalidArgumentError(f"SGD, dampening={show(dampening)}", "it is not finite", "Pass a finite number")
        if not isinstance(nesterov, bool):
            raise InvalidArgumentError(f"SGD, nesterov={show(nesterov)}", "it is no bool", "Pass True or False")
        if nesterov and self._momentum == 0:
            cure = "Pass a momentum > 0"
            raise InvalidArgumentError("SGD, nesterov=True", "without momentum there is nothing to look ahead by", cure)
        if nesterov and self._dampening != 0:
            seen = f"Nesterov's momentum knows no dampening, and here it is {self._dampening}"
            raise InvalidArgumentError("SGD, nesterov=True", seen, "Pass dampening=0, or nesterov=False")
        self._nesterov = nesterov
        kind = "sgd" if self._momentum == 0 else "nesterov" if nesterov else "momentum"
        super().__init__(params, kind, lr, weight_decay, groups, backend)

    @property
    def fixed(self) -> Mapping[str, Any]:
        """``momentum``, ``dampening`` and ``nesterov``."""
        numbers = {"momentum": self._momentum, "dampening": self._dampening, "nesterov": self._nesterov}
        return Fixed(numbers, "SGD, fixed")

    def _numbers(self, lr: float, weight_decay: float, count: int) -> dict[str, float]:
        first = count == 1
        return {
            "l2": weight_decay,
            "keep": 0.0 if first else self._momentum,
            "take": 1.0 if first else 1.0 - self._dampening,
            "ahead": self._momentum,
            "lr": lr,
        }
