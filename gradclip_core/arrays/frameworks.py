"""Whose arrays are known, and by which door they come in. A framework is a row here and a file beside.

A framework is recognised by its types, and only where somebody has imported it: nothing here imports one.
"""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from typing import cast

from gradclip_core.arrays.docked import Door


@dataclass(frozen=True, slots=True)
class Framework:
    """One row of the table."""

    module: str
    """Where its types are; imported by somebody, or none of its arrays is here."""
    types: tuple[str, ...]
    """Names of classes in ``module``; an instance of one of them, or of a subclass, comes in by its door."""
    door: str
    """``"package.module:OBJECT"``, imported with the first array."""


FRAMEWORKS = (
    Framework("numpy", ("ndarray", "generic"), "gradclip_core.arrays.numpy_door:DOOR"),
    Framework("torch", ("Tensor",), "gradclip_core.arrays.torch_door:DOOR"),
    Framework("cupy", ("ndarray",), "gradclip_core.arrays.cupy_door:DOOR"),
    Framework("jax", ("Array",), "gradclip_core.arrays.jax_door:DOOR"),
    Framework(
        "tensorflow",
        ("Tensor", "Variable", "IndexedSlices", "SparseTensor", "RaggedTensor"),
        "gradclip_core.arrays.tensorflow_door:DOOR",
    ),
    Framework("keras", ("Variable",), "gradclip_core.arrays.keras_door:DOOR"),
    Framework("paddle", ("Tensor", "static.Variable", "pir.Value"), "gradclip_core.arrays.paddle_door:DOOR"),
    Framework("mlx.core", ("array",), "gradclip_core.arrays.mlx_door:DOOR"),
    Framework("dask.array", ("Array",), "gradclip_core.arrays.lazy_door:DASK"),
    Framework("ndonnx", ("Array",), "gradclip_core.arrays.lazy_door:NDONNX"),
)


def framework_of(x: object) -> Framework | None:
    """The row that an object is an array of; None where it is nobody's."""
    for framework in FRAMEWORKS:
        if framework.module in sys.modules and isinstance(x, _types(framework)):
            return framework
    return None


def door_of(x: object) -> Door | None:
    """The door of an object's framework."""
    framework = framework_of(x)
    return None if framework is None else load(framework)


def load(framework: Framework) -> Door:
    """A framework's door, imported if it was not yet."""
    module, _, name = framework.door.partition(":")
    return cast(Door, getattr(importlib.import_module(module), name))


@functools.cache
def _types(framework: Framework) -> tuple[type, ...]:
    found = []
    for name in framework.types:
        at: object = sys.modules[framework.module]
        for part in name.split("."):
            at = getattr(at, part, None)
        if isinstance(at, type):
            found.append(at)
    return tuple(found)
