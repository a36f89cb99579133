"""The sets that gradients are projected on. Each says which of its results are exact, and which how close.

>>> import numpy as np, gradclip_core as gc
>>> from gradclip_core import sets
>>> gc.clip_by_projection(np.array([3.0, -1.0, 0.5]), sets.L1Ball(2.0))[0]
array([ 2., -0.,  0.])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Name -> the module that it is in. Imported when somebody asks: most programs use one set, or none.
_WHERE = {
    "Box": "balls",
    "Certificate": "base",
    "Ellipsoid": "ellipsoid",
    "HalfSpace": "planes",
    "Hyperplane": "planes",
    "Intersection": "intersection",
    "L1Ball": "l1",
    "L1InfBall": "l1inf",
    "L1L2Ball": "l1l2",
    "L1capL2": "l1capl2",
    "L2Ball": "balls",
    "LinfBall": "balls",
    "LpBall": "lp",
    "NuclearBall": "matrices",
    "RadialEllipsoid": "ellipsoid",
    "Set": "base",
    "Simplex": "l1",
    "SpectralBall": "matrices",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


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
