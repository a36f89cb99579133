"""Containers: what is walked, in which order, by which paths, and what comes back."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core.tree import flatten

Array = npt.NDArray[Any]


def a(*values: float) -> Array:
    return np.array(values or (3.0, 4.0))


def halved(container: Any) -> Any:
    """The container after a clip that halves: each array here has a norm of 5, or is empty of them."""
    return gc.clip_by_norm(container, 2.5)[0]


class Pair(NamedTuple):
    weight: Any
    bias: Any = None


@dataclasses.dataclass
class Layer:
    weight: Any
    bias: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    weight: Any
    built: int = dataclasses.field(init=False, default=0, repr=False, metadata={})

    def __post_init__(self) -> None:
        object.__setattr__(self, "built", None)
        if isinstance(self.weight, list):
            raise AssertionError("not to be run again on the clipped copy")


@dataclasses.dataclass(slots=True)
class Slots:
    weight: Any
    bias: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    weight: Any


class Names(list[Any]):
    """A list by another name."""


class Reversed(collections.UserDict[str, Any]):
    """A mapping that is no dict."""


# ------------------------------------------------------------------------- types, paths and values


@pytest.mark.parametrize(
    ("container", "paths"),
    [
        ({"w": a(), "b": [a(), None]}, ["w", "b.0"]),
        ([a(), (a(), [a()])], ["0", "1.0", "1.1.0"]),
        ((a(),), ["0"]),
        (Pair(a(), a()), ["weight", "bias"]),
        (Pair(a()), ["weight"]),
        (Layer(a(), {"x": a()}), ["weight", "bias.x"]),
        (Frozen(a()), ["weight"]),
        (Slots(a(), a()), ["weight", "bias"]),
        (FrozenSlots((a(), a())), ["weight.0", "weight.1"]),
        (OrderedDict(z=a(), a=a()), ["z", "a"]),
        (defaultdict(list, {"x": [a()]}), ["x.0"]),
        (deque([a(), a()], maxlen=7), ["0", "1"]),
        (Names([a()]), ["0"]),
        (Reversed({"q": a()}), ["q"]),
        (types.MappingProxyType({"k": a()}), ["k"]),
        ({("enc", 0): a(), 1: a(), None: a()}, ["('enc', 0)", "1", "None"]),
        ({"encoder": {"layers": [{"weight": a()}]}}, ["encoder.layers.0.weight"]),
        (None, []),
        ([], []),
        ({}, []),
        ([None, [None, {}], ()], []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_come_back_as_what_they_were(container: Any, paths: list[str]) -> None:
    leaves, tree = flatten(container)
    assert tree.paths == paths
    clipped, info = gc.clip_by_norm(container, 2.5)
    assert list(info.norms) == paths
    assert info.norms == dict.fromkeys(paths, 5.0)
    assert type(clipped) is type(container)
    new, again = flatten(clipped)
    assert again.paths == paths
    assert skeleton(clipped) == skeleton(container)
    for old, made in zip(leaves, new, strict=True):
        np.testing.assert_array_equal(old, [3.0, 4.0])
        np.testing.assert_allclose(made, [1.5, 2.0], rtol=1e-15)
    gc.clip_by_norm_(container, 2.5)
    for old, made in zip(leaves, new, strict=True):
        np.testing.assert_array_equal(old, made)


def skeleton(x: Any) -> Any:
    """Types and keys at every level, written without the code under test."""
    if isinstance(x, np.ndarray) or x is None:
        return type(x)
    if dataclasses.is_dataclass(x):
        return type(x), [(f.name, skeleton(getattr(x, f.name))) for f in dataclasses.fields(x)]
    if isinstance(x, Mapping):
        return type(x), [(key, skeleton(value)) for key, value in x.items()]
    return type(x), getattr(x, "maxlen", None), [skeleton(value) for value in x]


def test_what_rebuilding_keeps() -> None:
    made = halved(defaultdict(dict, {"x": a()}))
    assert made.default_factory is dict
    assert halved(deque([a()], maxlen=3)).maxlen == 3
    layer = Layer(a())
    layer.note = "kept"  # type: ignore[attr-defined]
    assert halved(layer).note == "kept"
    assert list(halved({"z": a(), "a": a()})) == ["z", "a"]


@pytest.mark.parametrize(
    "make",
    [
        lambda arrays: (x for x in arrays),
        lambda arrays: iter(arrays),
        lambda arrays: map(np.asarray, arrays),
        lambda arrays: filter(lambda x: x is not None, arrays),
        lambda arrays: reversed(arrays),
        lambda arrays: dict(enumerate(arrays)).values(),
        lambda arrays: OrderedDict(enumerate(arrays)).values(),
        lambda arrays: zip(arrays, arrays, strict=True),
    ],
    ids=["generator", "iterator", "map", "filter", "reversed", "values", "ordered-values", "zip"],
)
def test_iterators_are_read_once_and_give_a_list(make: Callable[[list[Array]], Any]) -> None:
    arrays = [a(), a(0.0, 5.0)]
    clipped, info = gc.clip_by_norm(make(arrays), 2.5)
    assert type(clipped) is list
    assert info.norm == np.sqrt(50.0)
    gc.clip_by_norm_(make(arrays), 2.5)
    np.testing.assert_allclose(arrays[0], [1.5, 2.0], rtol=1e-15)
    np.testing.assert_allclose(arrays[1], [0.0, 2.5], rtol=1e-15)


def test_a_bare_array_is_a_container_of_one() -> None:
    clipped, info = gc.clip_by_norm(a(), 2.5)
    assert type(clipped) is np.ndarray
    assert info.norms == {"0": 5.0}
    clipped, info = gc.clip_by_norm(np.float64(5), 2.5)
    assert type(clipped) is np.float64
    np.testing.assert_allclose(clipped, 2.5, rtol=1e-14)


def test_an_object_that_only_iterates_is_a_list_of_what_it_yields() -> None:
    class Bag:
        def __iter__(self) -> Iterator[Array]:
            return iter([a(), a()])

    clipped, info = gc.clip_by_norm(Bag(), 2.5)
    assert type(clipped) is list
    assert list(info.norms) == ["0", "1"]


# --------------------------------------------------------------------------------- order and names


def test_order_is_the_containers_own_and_never_sorted() -> None:
    """The order of the sum can decide its last bit; sorting would make that depend on names."""
    insertion = {name: np.array([v]) for name, v in zip("acbedf", [1e16, 1.0, 0.0, 1.0, 0.0, 0.0], strict=True)}
    by_name = dict(sorted(insertion.items()))
    assert flatten(insertion)[1].paths == list("acbedf")
    assert gc.global_norm(insertion, ord=1) == gc.global_norm(list(insertion.values()), ord=1) == 1e16 + 2
    assert gc.global_norm(by_name, ord=1) == 1e16
    clipped, info = gc.clip_by_norm(insertion, 1.0)
    assert list(clipped) == list(info.norms) == list(info.scales) == list(insertion)


@pytest.mark.parametrize(
    ("container", "paths"),
    [
        ({1: a(), "1": a()}, ["1", "1#2"]),
        ({"a.b": a(), "a": {"b": a()}}, ["a.b", "a.b#2"]),
        ({1: a(), "1": a(), 1.5: a(), "1.5": a()}, ["1", "1#2", "1.5", "1.5#2"]),
        ({1: a(), "1": a(), "1#2": a()}, 3),
        ({"1#2": a(), 1: a(), "1": a()}, 3),
    ],
)
def test_paths_that_would_be_equal_are_numbered(container: Any, paths: list[str] | int) -> None:
    info = gc.clip_by_norm(container, 2.5)[1]
    if isinstance(paths, int):
        assert len(info.norms) == len(set(info.norms)) == paths
        assert next(iter(info.norms)) == str(next(iter(container)))
    else:
        assert list(info.norms) == paths


def test_a_tied_leaf_has_a_path_for_each_place() -> None:
    tied = a()
    clipped, info = gc.clip_by_global_norm({"embed": tied, "blocks": [a(12.0)], "head": [tied]}, 6.5)
    assert info.norm == 13.0
    assert info.norms == {"embed": 5.0, "blocks.0": 12.0, "head.0": 5.0}
    assert clipped["embed"] is clipped["head"][0]


# ----------------------------------------------------------------------------------------- refusals


def refused(container: Any, *parts: str, error: type[gc.GradClipError] = gc.ContainerError) -> None:
    for name in ("clip_by_norm", "clip_by_norm_"):
        with pytest.raises(error) as caught:
            getattr(gc, name)(container, 1.0)
        assert type(caught.value) is error
        for part, told in zip(parts, (caught.value.asked, caught.value.seen, caught.value.cure), strict=True):
            assert part in told
        assert str(caught.value) == f"{caught.value.asked}: {caught.value.seen}. {caught.value.cure}"


def test_an_exhausted_generator_is_not_an_empty_one() -> None:
    read = (x for x in [a()])
    assert gc.global_norm(read) == 5.0
    refused(read, "container", "exhausted", "Make it anew, or pass a list")
    refused({"outer": [read]}, "container", "exhausted", "list")
    assert gc.clip_by_norm_((x for x in [None]), 1.0).norm == 0.0  # a new one may be empty


@pytest.mark.parametrize("make", [iter, lambda arrays: map(np.asarray, arrays), lambda arrays: filter(bool, arrays)])
def test_an_iterator_that_yields_nothing_may_have_been_read(make: Callable[[list[Array]], Any]) -> None:
    read = make([a(1.0)])
    assert len(list(read)) == 1
    refused(read, "container", "yields nothing: something may have read it before", "which may be empty")


def test_a_generator_around_an_exhausted_one_is_exhausted() -> None:
    inner = (x for x in [a()])
    list(inner)
    refused((x for x in (y for y in inner)), "container", "exhausted", "list")


@pytest.mark.parametrize("container", [{1, 2}, frozenset({1}), [set()], {"x": {3.5}}])
def test_sets_have_no_order(container: Any) -> None:
    refused(container, "container", "a set has no order to sum in", "Pass a dict, list")


def test_containers_that_contain_themselves() -> None:
    loop: list[Any] = [a()]
    loop.append(loop)
    refused(loop, "container", "contains itself", "nested as you like")
    table: dict[str, Any] = {}
    table["x"] = {"y": table}
    refused(table, "container", "contains itself", "nested as you like")
    np.testing.assert_array_equal(loop[0], [3.0, 4.0])


def test_nesting_has_a_limit_and_ordinary_nesting_does_not_reach_it() -> None:
    leaf = a()
    deep: Any = leaf
    for _ in range(100):
        deep = {"x": [deep]}
    clipped, info = gc.clip_by_norm(deep, 2.5)
    assert list(info.norms) == ["x.0." * 99 + "x.0"]
    assert skeleton(clipped) == skeleton(deep)
    for _ in range(100_000):
        deep = [deep]
    refused(deep, "container", "nested too deeply", "nested as you like")
    np.testing.assert_array_equal(leaf, [3.0, 4.0])
    while type(deep) is list:  # taken apart by hand: its own destructor would recurse
        deep = deep[0]


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        ("text", "builtins.str"),
        (b"bytes", "builtins.bytes"),
        (3.0, "builtins.float"),
        (True, "builtins.bool"),
        (object(), "builtins.object"),
        (Layer, "builtins.type"),
        (len, "builtins.builtin_function_or_method"),
    ],
)
def test_leaves_that_are_no_arrays(leaf: Any, kind: str) -> None:
    """Named by their path; a string is not a sequence of strings."""
    first = a(30.0, 40.0)
    seen = f"a {kind} is no array"
    cure = "{name: p.grad for name, p in" if isinstance(leaf, str) else "Pass arrays of NumPy"
    refused(leaf, "leaf '0'", seen, cure, error=gc.UnsupportedArrayError)
    refused({"w": first, "x": [leaf]}, "leaf 'x.0'", seen, "arrays", error=gc.UnsupportedArrayError)
    refused(Layer(first, leaf), "leaf 'bias'", seen, "arrays", error=gc.UnsupportedArrayError)
    np.testing.assert_array_equal(first, [30.0, 40.0])


def test_a_mapping_that_cannot_be_made_again() -> None:
    class Fixed(collections.UserDict[str, Any]):
        def __init__(self) -> None:
            super().__init__()
            self["w"] = a()

    fixed = Fixed()
    with pytest.raises(gc.ContainerError) as caught:
        gc.clip_by_norm(fixed, 1.0)
    assert "a Fixed cannot be made again from a dict" in caught.value.seen
    assert caught.value.cure == "Pass dict(...) of it"
    np.testing.assert_array_equal(fixed["w"], [3.0, 4.0])
    assert gc.clip_by_norm_(fixed, 1.0).norm == 5.0  # in place nothing is made


def test_an_error_of_the_users_own_iterator_comes_through() -> None:
    first = a(30.0, 40.0)

    def read() -> Iterator[Array]:
        yield first
        raise KeyError("the user's own")

    for name in ("clip_by_norm", "clip_by_norm_"):
        with pytest.raises(KeyError, match="the user's own"):
            getattr(gc, name)(read(), 1.0)
    np.testing.assert_array_equal(first, [30.0, 40.0])
