"""Containers <-> a flat list of named leaves.

Order is the container's own: a dict's insertion order, never sorted. ``None`` holds no leaf.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np

from gradclip_core.errors import ContainerError
from gradclip_core.tracing import in_graph

_CURE = "Pass a dict, list, tuple, namedtuple, dataclass, iterator or array of gradients, nested as you like"


class Node:
    """One container: its children, their names, and how to make it again from new children."""

    __slots__ = ("_names", "children", "flat", "make")

    def __init__(
        self,
        names: Sequence[str] | range,
        children: Sequence[Node | None],
        make: Callable[[list[Any]], Any],
        *,
        flat: bool = False,
    ) -> None:
        self._names = names
        self.children = children
        self.make = make
        self.flat = flat
        """Known to have no children but leaves and None."""

    @property
    def names(self) -> Sequence[str]:
        """The children's names; those of a list are made when they are asked for."""
        if isinstance(self._names, range):
            self._names = [str(i) for i in self._names]
        return self._names

    @property
    def numbered(self) -> bool:
        """Whether the children's names are those of a list's."""
        return all(map(operator.eq, self.names, map(str, range(len(self.children)))))


_LEAF = Node((), (), lambda values: values)  # stands for "a leaf is here"; None stands for None


class Tree:
    """A container's structure, without its leaves."""

    __slots__ = ("_lengths", "_paths", "root")

    def __init__(self, root: Node | None) -> None:
        self.root = root
        self._paths: list[str] | None = None
        self._lengths: dict[str, int] | None = None

    @property
    def paths(self) -> list[str]:
        """Each leaf's path, such as ``"encoder.layers.0.weight"``; a bare array's is ``"0"``."""
        if self._paths is None:
            found = ["0"] if self.root is _LEAF else [path for path, node in _nodes(self.root, "") if node is _LEAF]
            if len(set(found)) < len(found):
                found = _numbered(found)
            self._paths = found
        return self._paths

    @property
    def empty_paths(self) -> list[str]:
        """The paths at which there is None."""
        return [path for path, node in _nodes(self.root, "") if node is None]

    @property
    def lengths(self) -> dict[str, int]:
        """The path of each list-like container -> how many children it has, None among them."""
        if self._lengths is None:
            nodes = (("", self.root), *_nodes(self.root, ""))
            self._lengths = {
                path: len(node.children) for path, node in nodes if node is _LEAF or (node and node.numbered)
            }
        return self._lengths

    def names_only(self) -> Tree:
        """The same names, without what puts containers back: that may hold on to the leaves."""
        return Tree(_without_makers(self.root))

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The container again, of the same types, around other leaves."""
        return _rebuild(self.root, iter(leaves))


def flatten(container: Any) -> tuple[list[Any], Tree]:
    """The leaves in order, and the structure that puts them back."""
    leaves: list[Any] = []
    try:
        root = _walk(container, leaves)
    except RecursionError:
        raise ContainerError("the gradients' container", "it is nested too deeply, or contains itself", _CURE) from None
    return leaves, Tree(root)


def is_array(x: Any) -> bool:
    """Whether ``x`` is a leaf in its own right. The dock decides whether it can be served."""
    kind = type(x)
    if hasattr(kind, "__dlpack__") or hasattr(kind, "__array_interface__") or isinstance(x, np.generic):
        return True
    return hasattr(kind, "shape") and hasattr(kind, "dtype")  # a tf.Variable says that it can be iterated over


def _walk(x: Any, leaves: list[Any]) -> Node | None:
    if x is None:
        return None
    kind = type(x)
    if kind is dict:
        keys = list(x)
        return _node(keys, x.values(), leaves, lambda values: dict(zip(keys, values, strict=True)))
    if kind is list:
        return _node(range(len(x)), x, leaves, list)
    if kind is tuple:
        return _node(range(len(x)), x, leaves, tuple)
    if is_array(x):
        leaves.append(x)
        return _LEAF
    return _walk_rare(x, leaves)


def _walk_rare(x: Any, leaves: list[Any]) -> Node | None:
    kind = type(x)
    if isinstance(x, Mapping):
        items = list(x.items())
        keys = [key for key, _ in items]
        return _node(keys, [value for _, value in items], leaves, _remake_mapping(x, keys))
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return _node(x._fields, x, leaves, lambda values: kind._make(values))
    if registered := _registered_node(x):
        children, make = registered
        return _node(range(len(children)), children, leaves, make)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = [field.name for field in dataclasses.fields(x)]
        return _node(fields, [getattr(x, name) for name in fields], leaves, _remake_dataclass(x, fields))
    if isinstance(x, (list, tuple, deque)):
        return _node(range(len(x)), x, leaves, lambda values: _remake_sequence(x, values))
    if isinstance(x, Iterator):
        values = _drain(x)
        return _node(range(len(values)), values, leaves, list)
    if isinstance(x, (KeysView, ValuesView)):
        return _node(range(len(x)), list(x), leaves, list)
    if isinstance(x, Iterable) and not isinstance(x, (str, bytes, bytearray, set, frozenset)):
        try:
            iterator = iter(x)
        except TypeError:  # a 0-d array says that it is iterable, and is not
            leaves.append(x)
            return _LEAF
        values = list(iterator)
        return _node(range(len(values)), values, leaves, list)
    if isinstance(x, (set, frozenset)):
        raise ContainerError("the gradients' container", "a set has no order to sum in", _CURE)
    leaves.append(x)  # no container: the dock says what is wrong with it, and where it is
    return _LEAF


def _node(names: Sequence[Any], children: Collection[Any], leaves: list[Any], make: Callable[[list[Any]], Any]) -> Node:
    if not isinstance(names, range):
        names = list(map(str, names))
    kinds = set(map(type, children))
    if all(_of_arrays(kind) for kind in kinds):  # as good as always, and thousands of them
        if type(None) not in kinds:
            leaves.extend(children)
            return Node(names, [_LEAF] * len(children), make, flat=True)
        leaves.extend(child for child in children if child is not None)
        return Node(names, [None if child is None else _LEAF for child in children], make, flat=True)
    return Node(names, [_walk(child, leaves) for child in children], make)


def _of_arrays(kind: type) -> bool:
    """Whether all that is of this type is an array, or None."""
    return kind is type(None) or hasattr(kind, "__dlpack__") or issubclass(kind, np.generic)


def _drain(iterator: Iterator[Any]) -> list[Any]:
    if _is_exhausted(iterator):
        seen = "the generator is exhausted: something has read it before"
        raise ContainerError("the gradients' container", seen, "Make it anew, or pass a list")
    values = list(iterator)
    if not values and not inspect.isgenerator(iterator):
        seen = f"the {type(iterator).__name__} yields nothing: something may have read it before"
        raise ContainerError("the gradients' container", seen, "Make it anew, or pass a list (which may be empty)")
    return values


def _is_exhausted(iterator: Any) -> bool:
    """Whether this is a generator that has ended, or a generator expression over one that has."""
    while inspect.isgenerator(iterator):
        if inspect.getgeneratorstate(iterator) == inspect.GEN_CLOSED:
            return True
        # ".0" is what CPython calls the iterator that a generator expression runs over.
        iterator = inspect.getgeneratorlocals(iterator).get(".0")
    return False


def _remake_mapping(x: Mapping[Any, Any], keys: list[Any]) -> Callable[[list[Any]], Any]:
    def make(values: list[Any]) -> Any:
        items = dict(zip(keys, values, strict=True))
        if isinstance(x, defaultdict):
            return type(x)(x.default_factory, items)
        try:
            return type(x)(items)  # type: ignore[call-arg]
        except TypeError as error:
            seen = f"a {type(x).__name__} cannot be made again from a dict ({error})"
            raise ContainerError("the gradients' container", seen, "Pass dict(...) of it") from error

    return make


def _remake_dataclass(x: Any, fields: list[str]) -> Callable[[list[Any]], Any]:
    def make(values: list[Any]) -> Any:
        # Not dataclasses.replace: __post_init__ has run on x already, and may not be idempotent.
        new = object.__new__(type(x))
        for name, value in getattr(x, "__dict__", {}).items():
            object.__setattr__(new, name, value)
        for name, value in zip(fields, values, strict=True):
            object.__setattr__(new, name, value)
        return new

    return make


def _remake_sequence(x: Any, values: list[Any]) -> Any:
    return deque(values, x.maxlen) if isinstance(x, deque) else type(x)(values)


def _registered_node(x: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """A node that JAX or torch was told about, through their own tree utilities, if imported."""
    if jax := sys.modules.get("jax"):
        one_level = jax.tree_util.default_registry.flatten_one_level(x)
        if one_level is not None:
            children, _ = one_level
            structure = jax.tree_util.tree_structure(x, is_leaf=lambda y: y is not x)
            return list(children), lambda values: jax.tree_util.tree_unflatten(structure, values)
    if pytree := sys.modules.get("torch.utils._pytree"):
        definition = pytree.SUPPORTED_NODES.get(type(x))
        if definition is not None:
            children, context = definition.flatten_fn(x)
            return list(children), lambda values: definition.unflatten_fn(values, context)
    return None


def _without_makers(node: Node | None) -> Node | None:
    if node is None or node is _LEAF:
        return node
    children = node.children if node.flat else [_without_makers(child) for child in node.children]
    return Node(node._names, children, _LEAF.make, flat=node.flat)


def _nodes(node: Node | None, prefix: str) -> Iterator[tuple[str, Node | None]]:
    """Every child below a node with its path, leaves and Nones included, in order."""
    if node is None:
        return
    for name, child in zip(node.names, node.children, strict=True):
        yield prefix + name, child
        if child is not None and child is not _LEAF:
            yield from _nodes(child, f"{prefix}{name}.")


def _numbered(paths: list[str]) -> list[str]:
    """Distinct paths where keys collide as strings (``{1: a, "1": b}``)."""
    taken = set(paths)
    distinct: list[str] = []
    known: set[str] = set()
    for path in paths:
        name, number = path, 1
        while name in known or (number > 1 and name in taken):
            number += 1
            name = f"{path}#{number}"
        known.add(name)
        distinct.append(name)
    return distinct


def _rebuild(node: Node | None, leaves: Iterator[Any]) -> Any:
    if node is None:
        return None
    if node is _LEAF:
        return next(leaves)
    return node.make([_rebuild(child, leaves) for child in node.children])


def kept(container: Any) -> Any:
    """The container, or a list in place of an iterator, for who reads it again and again."""
    if not isinstance(container, Iterator):
        return container
    if in_graph():
        return list(container)
    leaves, tree = flatten(container)
    return tree.rebuild(leaves)
