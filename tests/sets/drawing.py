"""Gradients for every set of ``every.py``, and the few words that the general tests are written in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import protocol, sets

from .every import EVERY, Arrays, Example, flat

DTYPES = tuple(protocol.BASE_DTYPES)
WIDE = ("float32", "float64")
SCOPES = ("global", "group", "array")
SEEDS = (1, 2)

every_set = pytest.mark.parametrize("name", EVERY)


def numpy_dtype(dtype: str) -> Any:
    if dtype == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(dtype)


def draw(example: Example, dtype: str, seed: int, scale: float = 1.0) -> Arrays:
    """Normal numbers, with some of them zeros and some of them equal."""
    rng = np.random.default_rng(seed)
    grads: Arrays = {}
    for number, shape in enumerate(example.shapes):
        x = scale * rng.standard_normal(shape)
        if x.ndim == 1 and x.size > 8:
            x[3], x[5:8] = 0.0, x[5]
        grads[f"layer{number}"] = np.array(x, numpy_dtype(dtype))
    return grads


def project(grads: Arrays, onto: sets.Set, scope: str = "global", **how: Any) -> Arrays:
    return info_of(grads, onto, scope, **how)[0]


def info_of(grads: Arrays, onto: sets.Set, scope: str = "global", **how: Any) -> tuple[Arrays, gc.ClipInfo]:
    groups = (lambda path: path == "layer0") if scope == "group" else None
    made, info = gc.clip_by_projection(grads, onto, scope, groups=groups, **{"backend": "numpy", **how})
    return made, info


def bits(grads: Arrays) -> list[bytes]:
    return [np.ascontiguousarray(g).tobytes() for g in grads.values()]


def same(a: Arrays, b: Arrays) -> bool:
    """Equal numbers; -0 and 0 are."""
    return all(np.array_equal(x, b[path]) for path, x in a.items())


def times(grads: Arrays, factor: float) -> Arrays:
    return {path: np.asarray(g * g.dtype.type(factor), g.dtype) for path, g in grads.items()}


def roundoff(dtype: str) -> float:
    return protocol.DTYPES[dtype].roundoff


def slack(example: Example, dtype: str) -> float:
    """What the set's tolerance and the rounding of each element leave open, relatively."""
    return example.tolerance + 4 * roundoff(dtype)


def norm(x: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(x))


def close(a: Arrays, b: Arrays, example: Example, dtype: str, size: float) -> bool:
    return norm(flat(a) - flat(b)) <= slack(example, dtype) * size


def drawn(name: str, dtype: str, size: float = 0.3, seeds: tuple[int, ...] = SEEDS) -> Iterator[tuple[Arrays, Any]]:
    """Gradients outside of a set, and the set."""
    example = EVERY[name]
    for seed in seeds:
        grads = draw(example, dtype, seed)
        yield grads, example.make(grads, size)
