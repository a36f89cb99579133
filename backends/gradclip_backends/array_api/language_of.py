"""Which language an array's framework speaks: its own where it has one, the standard's otherwise."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from gradclip_backends.array_api.languages import Dask, Language, Mlx, Torch


def language_of(array: Any, wide: bool) -> Language:
    """How to speak to an array's framework. ``wide``: about float64."""
    if (jax := sys.modules.get("jax")) and isinstance(array, jax.Array):
        from gradclip_backends.array_api.jax_language import Jax

        return Jax(jax.numpy)
    if (tensorflow := sys.modules.get("tensorflow")) and isinstance(array, tensorflow.Tensor):
        from gradclip_backends.array_api.tensorflow_language import TensorFlow

        return TensorFlow()
    if (mlx := sys.modules.get("mlx.core")) and isinstance(array, mlx.array):
        return Mlx(mlx, wide)
    compat = importlib.import_module("array_api_compat")
    namespace = compat.array_namespace(array)
    if (torch := sys.modules.get("torch")) and isinstance(array, torch.Tensor):
        return Torch(namespace, str(array.device))
    if (dask := sys.modules.get("dask.array")) and isinstance(array, dask.Array):
        return Dask(namespace)
    return Language(namespace)
