"""Calls of the public functions on NVRTC's own PTX, interpreted, with every byte and every request counted.

Counted is the second call on the same gradients, in place: what the first one allocates, compiles and uploads is there.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.lanes import on
from tests.gpu.engine import Region
from tests.gpu.standin import Log, Machine

LANE = "ptx-90"
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Two segments that take several warps, a full one, a short one. Every row fills whole sectors of 32 bytes in every
# dtype, so that what is read of the gradients is a multiple of them.
SHAPES: Mapping[str, tuple[int, ...]] = {"w": (64, 336), "v": (16, 512), "full": (4096,), "short": (80,)}
SECTOR = 32


@dataclass(frozen=True)
class Cost:
    """What one call does. Bytes of gradients are in units of all gradients' bytes."""

    read: float
    written: float
    weights: float
    """Bytes of the weights that are read, in the same units."""
    workspace: int
    """Bytes of the workspace, and of what else is neither gradient nor weight: whole sectors read and written."""
    launches: int
    memsets: int
    waits: int
    allocations: int
    kernels: tuple[str, ...]


def _rules(limit: float) -> dict[str, Callable[[Any], Rule]]:
    """Every kind of rule, with thresholds that are far over or far under every norm there is."""
    groups = {"matrices": ["w", "v"], "vectors": ["full", "short"]}
    return {
        "global": lambda weights: gc.GlobalNorm(limit),
        "group": lambda weights: gc.GroupNorm(dict.fromkeys(groups, limit), groups),
        "array": lambda weights: gc.ArrayNorm(limit),
        "AGC": lambda weights: gc.UnitNorm(weights, limit, axis="all_but_first"),
        "value": lambda weights: gc.Value(limit),
        "chain: value, global": lambda weights: gc.Chain(gc.Value(limit), gc.GlobalNorm(limit)),
    }


RULES = tuple(_rules(1.0))


def _stored(dtype: str) -> Any:
    return importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def cost(standin: Machine, dtype: str, rule: str, *, clipped: bool, nonfinite: str = "skip") -> Cost:
    """The second of two calls that do the same."""
    cupy = importlib.import_module("cupy")
    rng = np.random.default_rng(0)
    host = {name: rng.standard_normal(shape).astype(_stored(dtype)) for name, shape in SHAPES.items()}
    grads = {name: cupy.asarray(x) for name, x in host.items()}
    weights = {name: cupy.asarray(x) for name, x in host.items()}
    chosen = _rules(2.0**-10 if clipped else 2.0**10)[rule](weights)
    gc.clip_(grads, chosen, nonfinite=nonfinite)
    for name, x in host.items():
        grads[name].set(x)
    standin.log.clear()
    info = gc.clip_(grads, chosen, nonfinite=nonfinite)
    counts, waited = standin.log.counts(), waits(standin.log)
    found = _traffic(
        standin, _regions(standin, grads), _regions(standin, weights), sum(x.nbytes for x in host.values())
    )
    assert info.clipped == clipped, f"{rule}, {dtype}: the thresholds of this tool do not do what it says"
    return Cost(
        *found,
        counts["launch"],
        counts["memset"],
        waited,
        counts["alloc"],
        tuple(
            name.removesuffix("_inline").removesuffix("_table") for name in standin.log.kernels()[: counts["launch"]]
        ),
    )


def waits(log: Log) -> int:
    """How often the host had to wait: a synchronisation right after another has nothing to wait for."""
    kinds = [entry.kind for entry in log.of("launch", "memset", "d2h", "h2d", "sync")]
    return sum(kind == "sync" and before != "sync" for before, kind in zip(["", *kinds], kinds, strict=False))


def _regions(standin: Machine, arrays: Mapping[str, Any]) -> set[Region]:
    """The allocations that arrays lie in."""
    return {(block.address, block.size) for x in arrays.values() for block in [standin.inside(x.data.ptr, 1)]}


def _traffic(
    standin: Machine, grads: set[Region], weights: set[Region], nbytes: int
) -> tuple[float, float, float, int]:
    read = written = of_weights = sectors = 0
    for entry in standin.log.of("launch"):
        traffic = entry.traffic
        assert traffic is not None
        read += sum(n for region, n in traffic.read.items() if region in grads)
        written += sum(n for region, n in traffic.written.items() if region in grads)
        of_weights += sum(n for region, n in traffic.read.items() if region in weights)
        sectors += sum(traffic.sectors.values())
    return read / nbytes, written / nbytes, of_weights / nbytes, SECTOR * sectors - read - written - of_weights


@functools.cache
def costs() -> dict[tuple[str, str, bool], Cost]:
    """Every rule, dtype, and either outcome."""
    with on(LANE) as standin:
        return {
            (rule, dtype, clipped): cost(standin, dtype, rule, clipped=clipped)
            for rule in RULES
            for dtype in DTYPES
            for clipped in (False, True)
        }
