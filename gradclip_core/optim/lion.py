"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradclip_core.optim.groups import fractions
from gradclip_core.optim.optimizer import Optimizer
from gradclip_core.optim.settings import Fixed


class Lion(Optimizer):
    """The sign of an average of gradients, with decoupled weight decay: one array of state.

    With ``g`` the clipped gradient::

        u = β1·m + (1 - β1)·g
        p ← (1 - lr·λ)·p - lr·sign(u)                with sign(0) = 0, and NaN staying NaN
        m ← β2·m + (1 - β2)·g

    Parameters
    ----------
    params, groups, backend : see ``AdamW``; so for what is raised, and what is computed in which precision.
    lr : the learning rate; the authors advise a third to a tenth of AdamW's, and λ so much larger.
    betas : (β1, β2), each >= 0 and < 1.
    weight_decay : λ >= 0.

    Notes
    -----
    A step moves 20 bytes an element in float32. Of the clip's factor only its relation to what the average holds
    counts: the sign forgets the rest.

    References
    ----------
    Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le 2023, "Symbolic Discovery of
    Optimization Algorithms", https://arxiv.org/abs/2302.06675, algorithm 2.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> w = np.array([1.0, -1.0, 0.0])
    >>> gc.optim.Lion(w, lr=0.25).step(2 * w), w.tolist()
    (True, [0.75, -0.75, 0.0])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        groups: Any = None,
        backend: str | None = None,
    ) -> None:
        self._betas = fractions("Lion, betas", betas)
        super().__init__(params, "lion", lr, weight_decay, groups, backend)

    @property
    def fixed(self) -> Mapping[str, Any]:
        """``betas``."""
        return Fixed({"betas": self._betas}, f"{self._name}, fixed")

    def _numbers(self, lr: float, weight_decay: float, count: int) -> dict[str, float]:
        beta1, beta2 = self._betas
        return {
            "keep1": beta1,
            "take1": 1.0 - beta1,
            "keep2": beta2,
            "take2": 1.0 - beta2,
            "decay": 1.0 - lr * weight_decay,
            "lr": lr,
        }
