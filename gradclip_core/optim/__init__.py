"""Optimizers that consume a plan: clipping without a write pass. Each names its paper.

>>> import numpy as np, gradclip_core as gc
>>> params = {"w": np.array([1.0, -1.0], np.float32)}
>>> opt = gc.optim.AdamW(params, lr=0.1)
>>> grads = {"w": np.array([30.0, 40.0], np.float32)}
>>> opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0))), params["w"].round(4).tolist()
(True, [0.8989999890327454, -1.0989999771118164])
"""

from gradclip_core.optim.adam import Adam, AdamW
from gradclip_core.optim.groups import Group
from gradclip_core.optim.lion import Lion
from gradclip_core.optim.optimizer import Optimizer
from gradclip_core.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Group", "Lion", "Optimizer"]
