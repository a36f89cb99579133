"""Gradient surgery: gradients of several tasks, made to agree. Each function names its paper.

>>> import numpy as np
>>> from gradclip_core import surgery
>>> y, info = surgery.agem(np.array([1.0, -1.0]), reference=np.array([0.0, 2.0]))
>>> y.round(6).tolist(), info.clipped
([1.0, 0.0], True)
"""

from gradclip_core.surgery.memories import agem, agem_, gem, gem_
from gradclip_core.surgery.tasks import SurgeryReport, pcgrad

__all__ = ["SurgeryReport", "agem", "agem_", "gem", "gem_", "pcgrad"]
