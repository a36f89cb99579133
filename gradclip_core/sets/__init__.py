"""The sets that gradients are projected on. Each says which of its results are exact, and which how close.

>>> import numpy as np, gradclip_core as gc
>>> from gradclip_core import sets
>>> gc.clip_by_projection(np.array([3.0, -1.0, 0.5]), sets.L1Ball(2.0))[0]
array([ 2., -0.,  0.])
"""

from gradclip_core.sets.balls import Box, L2Ball, LinfBall
from gradclip_core.sets.base import Certificate, Set
from gradclip_core.sets.ellipsoid import Ellipsoid, RadialEllipsoid
from gradclip_core.sets.intersection import Intersection
from gradclip_core.sets.l1 import L1Ball, Simplex
from gradclip_core.sets.l1capl2 import L1capL2
from gradclip_core.sets.l1inf import L1InfBall
from gradclip_core.sets.l1l2 import L1L2Ball
from gradclip_core.sets.lp import LpBall
from gradclip_core.sets.matrices import NuclearBall, SpectralBall
from gradclip_core.sets.planes import HalfSpace, Hyperplane

__all__ = [
    "Box",
    "Certificate",
    "Ellipsoid",
    "HalfSpace",
    "Hyperplane",
    "Intersection",
    "L1Ball",
    "L1InfBall",
    "L1L2Ball",
    "L1capL2",
    "L2Ball",
    "LinfBall",
    "LpBall",
    "NuclearBall",
    "RadialEllipsoid",
    "Set",
    "Simplex",
    "SpectralBall",
]
