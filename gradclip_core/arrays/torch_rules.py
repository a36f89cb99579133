"""Rules as text, and back: how a graph of ``torch.compile`` carries one, also into a file on disk.

Numbers and arrays of a rule travel as tensors beside the text, which names their places. Nothing in it is a handle
into this process.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradclip_core import registry, sets
from gradclip_core.arrays.dtypes import SUPPORTED
from gradclip_core.arrays.torch_parcel import Parcel, each, structure
from gradclip_core.errors import GradClipError
from gradclip_core.project import Project
from gradclip_core.protocol import Request
from gradclip_core.rules import ArrayNorm, Chain, GlobalNorm, GroupNorm, Value
from gradclip_core.tree import flatten
from gradclip_core.unitwise import UnitNorm

# Field -> what it holds. "plain" is text, a whole number or None.
_RADIUS = {"radius": "number"}
FIELDS: dict[type, dict[str, str]] = {
    GlobalNorm: {"max_norm": "number", "ord": "ord"},
    ArrayNorm: {"max_norm": "number", "ord": "ord"},
    GroupNorm: {"max_norm": "bounds", "groups": "groups", "ord": "ord"},
    Value: {"limit": "limit"},
    UnitNorm: {"params": "arrays", "clipping": "number", "eps": "number", "axis": "axis"},
    Project: {"onto": "rule", "scope": "plain", "groups": "groups"},
    sets.Box: {"low": "number", "high": "number"},
    sets.Ellipsoid: {"weights": "arrays", **_RADIUS},
    sets.HalfSpace: {"a": "arrays", "b": "number"},
    sets.Hyperplane: {"a": "arrays", "b": "number"},
    sets.L1Ball: _RADIUS,
    sets.L1InfBall: {**_RADIUS, "axis": "axis"},
    sets.L1L2Ball: {**_RADIUS, "axis": "axis"},
    sets.L1capL2: {"radius1": "number", "radius2": "number"},
    sets.L2Ball: _RADIUS,
    sets.LinfBall: _RADIUS,
    sets.LpBall: {**_RADIUS, "p": "number"},
    sets.NuclearBall: _RADIUS,
    sets.RadialEllipsoid: {"weights": "arrays", **_RADIUS},
    sets.Simplex: {"total": "number"},
    sets.SpectralBall: {**_RADIUS, "method": "plain"},
}
_BY_NAME = {kind.__name__: kind for kind in FIELDS}


class Leaves:
    """The gradients as functions of paths and shapes, which a rule may hold, are asked about them."""

    def __init__(self, paths: Sequence[str], tensors: Sequence[Any], empty: Sequence[str]) -> None:
        self.paths = paths
        """The first path of each."""
        self.tensors = tensors
        self.empty = empty
        """The paths at which there is None."""


# ------------------------------------------------------------------------------- read by the compiler


def describe(rule: Any, parcel: Parcel, leaves: Leaves) -> Any:
    """A rule or a set as tuples, lists and dicts of text."""
    kind = type(rule)
    if kind is Chain:
        return ("Chain", [describe(part, parcel, leaves) for part in rule.rules])
    if kind is sets.Intersection:
        parts = [describe(part, parcel, leaves) for part in rule.sets]
        return ("Intersection", parts, parcel.number(rule.tolerance), rule.max_iterations)
    if kind not in FIELDS:
        parcel.refuse(f"a {kind.__name__} is no rule or set of gradclip_core's own")
        return None
    told: dict[str, Any] = {}
    for name, holds in FIELDS[kind].items():
        value = getattr(rule, name)
        if holds == "number":
            told[name] = parcel.number(value)
        elif holds == "ord":
            told[name] = 2 if value == 2 else parcel.number(value)
        elif holds == "limit":
            told[name] = _each_number(value, parcel)
        elif holds == "bounds":
            told[name] = _bounds(value, parcel)
        elif holds == "groups":
            told[name] = _groups(value, parcel, leaves)
        elif holds == "axis":
            told[name] = _axis(value, leaves)
        elif holds == "arrays":
            told[name] = structure(each(value, parcel.companion), parcel)
        elif holds == "rule":
            told[name] = describe(value, parcel, leaves)
        else:
            told[name] = value
    return (kind.__name__, told)


def describe_how(how: Mapping[str, Any], parcel: Parcel) -> dict[str, Any]:
    """The common keywords, and those that nobody knows: the operator says so."""
    told: dict[str, Any] = {}
    for name, value in how.items():
        if name == "loss_scale":
            told[name] = parcel.number(value)
        elif name == "array_scales" and isinstance(value, Mapping):
            told[name] = _bounds(value, parcel)
        elif name == "underflow" and value == "count":
            parcel.refuse("underflow='count' is for the host to read")
        elif isinstance(value, float):
            told[name] = parcel.number(value)
        elif value is None or isinstance(value, (str, int)):
            told[name] = value
        else:
            parcel.refuse(f"{name} is a {type(value).__name__}")
    return told


def _each_number(value: Any, parcel: Parcel) -> Any:
    if isinstance(value, (tuple, list)):
        return [parcel.number(part) for part in value]
    return parcel.number(value)


def _bounds(value: Any, parcel: Parcel) -> Any:
    if not isinstance(value, Mapping):
        return parcel.number(value)
    for key in value:
        _check_name(key, parcel)
    # A group that is left alone is one without a bound; the rule has made inf of it.
    return {key: None if bound is None or bound == math.inf else parcel.number(bound) for key, bound in value.items()}


def _groups(value: Any, parcel: Parcel, leaves: Leaves) -> Any:
    if value is None:
        return None
    named: dict[Any, list[Any]] = {}
    if callable(value):
        for path in [*leaves.paths, *leaves.empty]:
            named.setdefault(value(path), []).append(path)
    else:
        for group, members in value.items():
            named[group] = [members] if isinstance(members, str) else list(members)
    for group in named:
        _check_name(group, parcel)
    return named


def _axis(value: Any, leaves: Leaves) -> Any:
    if not callable(value):
        return value
    pairs = zip(leaves.paths, leaves.tensors, strict=True)
    return {path: value(path, tuple(x.shape)) for path, x in pairs}


def _check_name(name: Any, parcel: Parcel) -> None:
    if not (name is None or isinstance(name, (str, int))):
        parcel.refuse(f"a group is named by a {type(name).__name__}")


# ------------------------------------------------------------- called by the compiler, on constants


def text(told: Any) -> str:
    """What was described as a text."""
    return repr(told)


def outline(told: Any, start: int) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """Of a structure: the path of each leaf, which array it is, the first path of each array, where there is None.

    ``start`` is the place of the first array.
    """
    places = places_of(told)
    _, tree = flatten(rebuilt(told, [np.empty(0)] * (1 + max(places, default=0))))
    index = [place - start for place in places]
    first: dict[int, str] = {}
    for array, path in zip(index, tree.paths, strict=True):
        first.setdefault(array, path)
    return tuple(tree.paths), tuple(index), tuple(first.values()), tuple(tree.empty_paths)


def backend_name(name: str | None, device: str, dtypes: list[Any]) -> str:
    """Who is going to do it. Where nobody can, the operator says why."""
    kinds = frozenset() if device == "cpu" else frozenset({"torch"})
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    known = frozenset(SUPPORTED[kind][0].name for kind in names if kind in SUPPORTED)
    try:
        return registry.select(name, Request(frozenset({device}), known, kinds))[0].name
    except GradClipError:
        return str(name)


for _function in (text, outline, backend_name):
    # What torch._dynamo.assume_constant_result leaves: called while tracing, and its result is a constant.
    setattr(_function, "_dynamo_marked_constant", True)  # noqa: B010  # mypy knows of no such attribute


# --------------------------------------------------------------------------- read by the operator


class Call:
    """A text, read once."""

    def __init__(self, told: str) -> None:
        self.asked, self.grads, self.out, self.rule, self.how, self.dtype = ast.literal_eval(told)
        self.places = np.array(places_of(self.grads), np.int64)
        """Of each leaf of the gradients."""
        self.count = len(np.unique(self.places))


parsed = functools.lru_cache(maxsize=256)(Call)


def rebuilt(told: Any, values: Sequence[Any]) -> Any:
    """The container that a structure describes, around the values at its places."""
    if isinstance(told, int):
        return values[told]
    if isinstance(told, list):
        return [values[part] if type(part) is int else rebuilt(part, values) for part in told]
    if isinstance(told, dict):
        return {key: rebuilt(part, values) for key, part in told.items()}
    return None


def places_of(told: Any) -> list[int]:
    """The places that a structure names, in order."""
    if isinstance(told, int):
        return [told]
    parts = told.values() if isinstance(told, dict) else told or ()
    return [place for part in parts for place in ([part] if type(part) is int else places_of(part))]


def remade(told: Any, tensors: Sequence[Any]) -> Any:
    """The rule or set that was described; it is checked as it is made."""
    if told[0] == "Chain":
        return Chain(*[remade(part, tensors) for part in told[1]])
    if told[0] == "Intersection":
        _, parts, tolerance, rounds = told
        made = [remade(part, tensors) for part in parts]
        return sets.Intersection(*made, tolerance=value_of(tolerance, tensors), max_iterations=rounds)
    kind = _BY_NAME[told[0]]
    return kind(**{name: _value(holds, told[1][name], tensors) for name, holds in FIELDS[kind].items()})


def how_of(told: Mapping[str, Any], tensors: Sequence[Any]) -> dict[str, Any]:
    """The common keywords."""
    return {name: value_of(value, tensors) for name, value in told.items()}


def _value(holds: str, told: Any, tensors: Sequence[Any]) -> Any:
    if holds == "rule":
        return remade(told, tensors)
    if holds == "arrays":
        return rebuilt(told, tensors)
    if holds == "axis" and isinstance(told, dict):
        return lambda path, shape: told[path]
    return told if holds in ("plain", "axis", "groups") else value_of(told, tensors)


def value_of(told: Any, tensors: Sequence[Any]) -> Any:
    """Numbers from their tensors, also in a list or a dict. One on a device stays there."""
    if isinstance(told, tuple) and told[:1] == ("number",):
        x = tensors[told[1]]
        return x.item() if x.device.type == "cpu" and x.dim() == 0 else x
    if isinstance(told, list):
        return tuple(value_of(part, tensors) for part in told)
    if isinstance(told, dict):
        return {key: value_of(part, tensors) for key, part in told.items()}
    return told
