"""Arrays to the simulated device and back, and the comparison of a call there with the reference's on the host."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.property.strategies import Layer, Pair, mapped

Array = npt.NDArray[Any]
FACTS = ("norm", "clipped_norm", "scale", "clipped", "skipped", "nonfinite")
POLICIES = ("raise", "skip", "zero", "sanitize", "propagate")


def cp() -> Any:
    """CuPy, or what is in its place now."""
    return importlib.import_module("cupy")


def laid_out(x: Array) -> tuple[Array, int]:
    """The memory that an array spans, in a copy, and where its first element is."""
    spans = [step * (n - 1) for n, step in zip(x.shape, x.strides, strict=True)]
    low, high = sum(min(span, 0) for span in spans), sum(max(span, 0) for span in spans) + x.itemsize
    block = np.zeros(high - low, np.uint8)
    np.ndarray(x.shape, x.dtype, block.data, -low, x.strides)[...] = x
    return block, -low


def upload(x: Array) -> Any:
    """A CuPy array with the same elements and the same strides, in memory of its own."""
    cupy = cp()
    if not x.size:
        return cupy.empty(x.shape, x.dtype)
    block, start = laid_out(x)
    return cupy.ndarray(x.shape, x.dtype, cupy.asarray(block).data + start, x.strides)


def copied(container: Any) -> Any:
    """The container again, with NumPy arrays of the same strides that may be written."""
    known: dict[int, Array] = {}

    def copy(x: Array) -> Array:
        if id(x) not in known:
            block, start = laid_out(x) if x.size else (np.zeros(1, np.uint8), 0)
            known[id(x)] = np.ndarray(x.shape, x.dtype, block.data, start, x.strides)
        return known[id(x)]

    return mapped(container, copy)


def on_device(container: Any) -> Any:
    """The container again, with its arrays on the device; an array that it holds twice is one there too."""
    known: dict[int, Any] = {}

    def moved(x: Array) -> Any:
        return known.setdefault(id(x), upload(x))

    return mapped(container, moved)


def fetch(container: Any) -> Any:
    """The container again, with NumPy arrays."""
    if container is None or isinstance(container, np.ndarray):
        return container
    if hasattr(container, "__dlpack__"):
        return container.get()
    if isinstance(container, dict):
        return type(container)((key, fetch(child)) for key, child in container.items())
    if isinstance(container, Layer):
        return Layer(fetch(container.weight), fetch(container.bias))
    if isinstance(container, Pair):
        return Pair(*map(fetch, container))
    return type(container)(fetch(child) for child in container)


def leaves(container: Any) -> list[Array]:
    """The host arrays of a container, in its own order."""
    found: list[Array] = []

    def note(x: Array) -> Array:
        found.append(x)
        return x

    mapped(container, note)
    return found


def contents(container: Any) -> list[tuple[tuple[int, ...], str, bytes]]:
    """Everything that equality to the bit means; a NaN is a NaN, whatever its payload and sign."""
    found = []
    for x in leaves(fetch(container)):
        clean = np.ascontiguousarray(x).reshape(x.shape)
        parts = clean.reshape(-1).view(clean.real.dtype) if clean.dtype.kind == "c" else clean.reshape(-1)
        parts = np.where(np.isnan(parts), parts.dtype.type(math.nan), parts) if parts.size else parts
        found.append((x.shape, x.dtype.name, parts.tobytes()))
    return found


def told(info: gc.ClipInfo) -> dict[str, object]:
    """All that an info says, NaN being equal to itself."""
    facts = {name: repr(getattr(info, name)) for name in FACTS}
    return {**facts, "norms": repr(info.norms), "scales": repr(info.scales), "culprits": info.culprits}


def check(host: Any, rule: Rule, *, scale: Any = None, **how: Any) -> gc.ClipInfo:
    """A rule in all the ways there are: each gives the reference's bits, and its info. That info.

    ``scale`` stands for ``loss_scale`` on the device, which the reference is told as a number.
    """
    before = contents(host)
    ours = how if scale is None else {**how, "loss_scale": scale}
    expected, info = gc.clip(host, reference_rule(rule), backend="numpy", **how)
    grads = on_device(host)
    made, new_info = gc.clip(grads, rule, **ours)
    assert contents(grads) == before, "the originals of a call that makes new arrays are written"
    assert contents(made) == contents(expected)
    assert told(new_info) == told(info)
    assert new_info.backend == "cupy_raw"
    plan = gc.plan(grads, rule, **ours)
    assert contents(grads) == before, "a plan writes"
    assert contents(plan.apply(grads)) == contents(expected)
    assert told(plan.info) == told(info)
    in_place = gc.clip_(grads, rule, **ours)
    assert contents(grads) == contents(expected)
    # A later rule measures what an earlier one wrote, in the order of that memory: here not that of new arrays.
    assert told(in_place) == told(gc.clip_(copied(host), reference_rule(rule), backend="numpy", **how))
    again = on_device(host)
    assert told(plan.apply_(again)) == told(info)
    assert contents(again) == contents(expected)
    return info


def reference_rule(rule: Rule) -> Rule:
    """The same rule, its weights on the host."""
    if isinstance(rule, gc.UnitNorm):
        return gc.UnitNorm(fetch(rule.params), rule.clipping, rule.eps, axis=rule.axis)
    if isinstance(rule, gc.Chain):
        return gc.Chain(*map(reference_rule, rule.rules))
    return rule


def some(seed: int = 0, scale: float = 1.0, dtype: Any = np.float32) -> dict[str, Array]:
    """A few arrays of every size that matters: blocks, a tail, one element, none."""
    rng = np.random.default_rng(seed)
    shapes: Mapping[str, tuple[int, ...]] = {"w": (97, 55), "b": (300,), "none": (0, 3), "one": ()}
    with np.errstate(over="ignore"):
        return {name: np.asarray(rng.standard_normal(shape) * scale).astype(dtype) for name, shape in shapes.items()}
