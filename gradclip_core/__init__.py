"""Gradient clipping for every array: exact, fast, the same bits everywhere.

>>> import numpy as np, gradclip_core as gc
>>> clipped, info = gc.clip_by_global_norm([np.array([3.0, 4.0])], max_norm=1.0)
>>> info.norm
5.0
"""

import importlib
from typing import TYPE_CHECKING, Any

from gradclip_core.adaptive import adaptive_clip, adaptive_clip_
from gradclip_core.amp.clipper import Clipper
from gradclip_core.amp.scaler import LossScaler, LossScaleWarning
from gradclip_core.errors import (
    BackendError,
    ContainerError,
    GradClipError,
    GradientUnderflowError,
    InvalidArgumentError,
    NonFiniteGradientError,
    ReadOnlyError,
    UnsafeMemoryError,
    UnsupportedArrayError,
)
from gradclip_core.explain import explain
from gradclip_core.functions import (
    clip,
    clip_,
    clip_by_global_norm,
    clip_by_global_norm_,
    clip_by_group_norm,
    clip_by_group_norm_,
    clip_by_norm,
    clip_by_norm_,
    clip_by_value,
    clip_by_value_,
    global_norm,
    plan,
)
from gradclip_core.half import to_half
from gradclip_core.info import ClipInfo
from gradclip_core.planned import Plan
from gradclip_core.project import Project
from gradclip_core.projections import clip_by_projection, clip_by_projection_
from gradclip_core.rules import ArrayNorm, Chain, GlobalNorm, GroupNorm, Value
from gradclip_core.traced_info import TracedInfo
from gradclip_core.tracing import kept_whole
from gradclip_core.unitwise import UnitNorm

if TYPE_CHECKING:
    from gradclip_core import optim as optim

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # ``gc.optim`` is imported when somebody asks: most programs bring an optimizer of their own.
    if name != "optim":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("gradclip_core.optim")


__all__ = [
    "ArrayNorm",
    "BackendError",
    "Chain",
    "ClipInfo",
    "Clipper",
    "ContainerError",
    "GlobalNorm",
    "GradClipError",
    "GradientUnderflowError",
    "GroupNorm",
    "InvalidArgumentError",
    "LossScaleWarning",
    "LossScaler",
    "NonFiniteGradientError",
    "Plan",
    "Project",
    "ReadOnlyError",
    "TracedInfo",
    "UnitNorm",
    "UnsafeMemoryError",
    "UnsupportedArrayError",
    "Value",
    "adaptive_clip",
    "adaptive_clip_",
    "clip",
    "clip_",
    "clip_by_global_norm",
    "clip_by_global_norm_",
    "clip_by_group_norm",
    "clip_by_group_norm_",
    "clip_by_norm",
    "clip_by_norm_",
    "clip_by_projection",
    "clip_by_projection_",
    "clip_by_value",
    "clip_by_value_",
    "explain",
    "global_norm",
    "plan",
    "to_half",
]

kept_whole(globals()[name] for name in __all__)
