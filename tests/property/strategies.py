"""What there is to clip, and every rule to clip it by."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import gradclip_core as gc

Array = npt.NDArray[Any]
FIXED = settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FEW = settings(FIXED, max_examples=20)  # for tests that are many already
POLICIES = ("raise", "skip", "zero", "sanitize", "propagate")
ORDERS = (1, 2, math.inf, 3.0)
DTYPES = (np.float16, np.float32, np.float64)
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Layer:
    """A container as users write them."""

    weight: Any
    bias: Any


# ---- what there is to clip ------------------------------------------------------------------------


@st.composite
def array(draw: st.DrawFn, dtypes: tuple[Any, ...] = DTYPES, nonfinite: bool = False) -> Array:
    """Any shape, zero-size and 0-d included, any of the layouts that a user's array may have."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 0]), max_size=3)))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    x = (rng.standard_normal(shape) * draw(st.sampled_from([1.0, 0.0, 1e-4, 300.0]))).astype(dtype)
    if nonfinite and x.size:
        for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=2)):
            x.flat[draw(st.integers(0, x.size - 1))] = value
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "transposed", "read-only", "offset"]))
    return laid_out(x, layout)


def laid_out(x: Array, layout: str) -> Array:
    """The same elements, in another layout."""
    if layout == "F":
        return np.asfortranarray(x)
    if layout == "strided" and x.ndim:
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim else x
    if layout == "transposed":
        return np.ascontiguousarray(x.T).T
    if layout == "offset" and x.ndim:
        return np.concatenate([np.zeros((1, *x.shape[1:]), x.dtype), x])[1:]
    if layout == "read-only":
        x.setflags(write=False)
    return x


def containers(leaf: st.SearchStrategy[Array]) -> st.SearchStrategy[Any]:
    """Nested dicts, lists, tuples, namedtuples, dataclasses and None; bare arrays."""
    names = st.sampled_from(["a", "b", "weight", "0", "é"])

    def deeper(child: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.lists(child, max_size=3),
            st.lists(child, max_size=3).map(tuple),
            st.dictionaries(names, child, max_size=3),
            st.dictionaries(names, child, max_size=2).map(OrderedDict),
            st.builds(Pair, child, child),
            st.builds(Layer, weight=child, bias=child),
        )

    return st.recursive(st.one_of(leaf, st.none()), deeper, max_leaves=6).filter(lambda x: x is not None)


def leaves(x: Any) -> list[Array]:
    """The arrays in the container's own order: an independent, naive walk."""
    if x is None:
        return []
    if isinstance(x, (np.ndarray, np.generic)):
        return [np.asarray(x)]
    if isinstance(x, dict):
        return [leaf for child in x.values() for leaf in leaves(child)]
    if isinstance(x, Layer):
        return leaves(x.weight) + leaves(x.bias)
    return [leaf for child in x for leaf in leaves(child)]


def mapped(x: Any, f: Callable[[Array], Array]) -> Any:
    """The container again with ``f`` of each array, by an independent, naive walk."""
    if x is None:
        return None
    if isinstance(x, (np.ndarray, np.generic)):
        return f(np.asarray(x))
    if isinstance(x, dict):
        return type(x)((key, mapped(child, f)) for key, child in x.items())
    if isinstance(x, Layer):
        return Layer(mapped(x.weight, f), mapped(x.bias, f))
    if isinstance(x, Pair):
        return Pair(*(mapped(child, f) for child in x))
    return type(x)(mapped(child, f) for child in x)


def contents(x: Any) -> list[tuple[tuple[int, ...], str, bytes]]:
    """Everything that equality to the bit means; a NaN is a NaN, whatever its payload."""
    found = []
    for leaf in leaves(x):
        clean = np.where(np.isnan(leaf), leaf.dtype.type(np.nan), leaf)
        found.append((leaf.shape, leaf.dtype.name, clean.tobytes()))
    return found


def skeleton(x: Any) -> Any:
    """The container without its arrays."""
    if x is None or isinstance(x, (np.ndarray, np.generic)):
        return type(x).__name__
    if isinstance(x, dict):
        return type(x).__name__, [(key, skeleton(child)) for key, child in x.items()]
    if isinstance(x, Layer):
        return "Layer", skeleton(x.weight), skeleton(x.bias)
    return type(x).__name__, [skeleton(child) for child in x]


def numbers(info: gc.ClipInfo) -> Array:
    """All that a call reports in floats."""
    first = [info.norm, info.clipped_norm, info.scale, info.nonfinite]
    return np.array([*first, *info.norms.values(), *info.scales.values()])


def writable(x: Any) -> Any:
    """A copy that may be written, in the same layouts (strides that NumPy's own copy keeps, at least)."""
    return mapped(x, lambda leaf: leaf.copy(order="K"))


any_grads = containers(array())
any_float32 = containers(array((np.float32,)))

# Every rule, made for the gradients at hand.
Make = Callable[[Any], gc.GlobalNorm | Any]
RULES: dict[str, Make] = {
    "global": lambda grads: gc.GlobalNorm(0.5),
    "global 1": lambda grads: gc.GlobalNorm(0.5, 1),
    "global inf": lambda grads: gc.GlobalNorm(0.5, math.inf),
    "global 3": lambda grads: gc.GlobalNorm(0.5, 3),
    "group": lambda grads: gc.GroupNorm(0.5, lambda path: len(path) % 2),
    "array": lambda grads: gc.ArrayNorm(0.5),
    "unit": lambda grads: gc.UnitNorm(mapped(grads, np.ones_like), 0.1, axis="all_but_first"),
    "unit, last": lambda grads: gc.UnitNorm(mapped(grads, np.ones_like), 0.1, axis="all_but_last"),
    "value": lambda grads: gc.Value(0.3),
    "interval": lambda grads: gc.Value((-0.2, 0.4)),
    "half open": lambda grads: gc.Value((-math.inf, 0.25)),
    "chain": lambda grads: gc.Chain(gc.Value(0.4), gc.GlobalNorm(0.5)),
}
rules = pytest.mark.parametrize("rule", list(RULES))
norm_rules = pytest.mark.parametrize(
    "rule", [name for name in RULES if name.split()[0] in ("global", "group", "array")]
)
