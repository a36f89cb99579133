"""An optimizer's parameters: checked once, found again at each step, and paired with their gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.layout import (
    Flat,
    flatten_in,
    flatten_memory,
    is_dense,
    lying,
    overlapping_pair,
    overlaps_itself,
)
from gradclip_core.errors import (
    BackendError,
    GradClipError,
    InvalidArgumentError,
    ReadOnlyError,
    UnsafeMemoryError,
    UnsupportedArrayError,
)
from gradclip_core.members import match
from gradclip_core.protocol import BASE_DTYPES, Buffer, IntArray
from gradclip_core.rules import Site
from gradclip_core.tree import flatten, is_array, kept

_ALIKE = "Pass grads in a container of the structure of params, with None where there is no gradient"


@dataclass(frozen=True, slots=True)
class Gradients:
    """An entry for each parameter that has a gradient: which parameter, which array of the gradients, its memory."""

    index: IntArray
    sources: IntArray
    buffers: list[Buffer]


class Parameters:
    """The arrays that an optimizer writes, each once, and where their memory was when it was last looked for."""

    def __init__(self, container: Any, asked: str) -> None:
        cargo = _unloaded_parameters(container, asked)
        if not cargo.arrays:
            raise InvalidArgumentError(asked, "there is no parameter in it", "Pass arrays that are to be updated")
        self.cargo = cargo
        self.arrays = list(cargo.arrays)
        """One for each parameter, where it was when it was last looked for."""
        self.site = Site(cargo)
        self.paths = self.site.paths
        self.at = dict(zip(cargo.tree.paths, cargo.index, strict=True))
        for path, docked in zip(self.paths, self.arrays, strict=True):
            _refuse_unfit(docked, f"{asked}, array '{path}'")
        self.orders = [lying(docked, None) for docked in self.arrays]
        self._whereabouts = [_whereabouts(docked) for docked in self.arrays]
        self._known: tuple[Any, Gradients] | None = None
        # Where arrays can be replaced without a word: those at the top of the caller's own dict.
        self._container = container if type(container) is dict else {}
        self._entries = [(name, x) for name, x in self._container.items() if is_array(x)]

    def buffers(self) -> list[Buffer]:
        """Their memory as a backend writes it."""
        return [flatten_memory(docked).buffer for docked in self.arrays]

    def look_again(self, asked: str) -> bool:
        """Whether one's memory is elsewhere than it was: ``tensor.data = ...``, or a model moved and brought back."""
        self._refuse_replaced(asked)
        now = [_whereabouts(docked) for docked in self.arrays]
        if now == self._whereabouts:
            return False
        fresh = [self._docked_again(i, asked) for i in range(len(now))]
        pair = overlapping_pair(fresh)
        if pair is not None:
            a, b = (self.paths[i] for i in pair)
            raise UnsafeMemoryError(
                f"{asked}, parameters '{a}' and '{b}'", "they share memory now", "Give each its own"
            )
        self.arrays[:] = fresh
        self._whereabouts = now
        self._known = None
        return True

    def _refuse_replaced(self, asked: str) -> None:
        """Raise where the caller's dict holds another array than the one that is updated."""
        for name, array in self._entries:
            new = self._container.get(name, array)
            if new is not array and is_array(new) and (_address(new) is None or _address(new) != _address(array)):
                seen = "it has been replaced by another array, which the optimizer would not write"
                cure = "Write into it, params[name][...] = new, or make an optimizer anew"
                raise InvalidArgumentError(f"{asked}, parameter '{name}'", seen, cure)

    def _docked_again(self, i: int, asked: str) -> Docked:
        old, where = self.arrays[i], f"{asked}, parameter '{self.paths[i]}'"
        try:
            new = old.door.dock(old.array)
        except Refused as refused:
            raise refused.kind(where, refused.seen, refused.cure) from refused
        _refuse_unfit(new, where)
        if (new.shape, new.dtype) != (old.shape, old.dtype) or lying(new, None) != lying(old, None):
            seen = "its shape, dtype or memory layout is not what it was when the optimizer was made"
            raise InvalidArgumentError(where, seen, "Make a new optimizer for it")
        return new

    def gradients(self, grads: Cargo, asked: str) -> Gradients:
        """Which parameters have a gradient, and which one. All that is wrong with the gradients is said here."""
        # Training loops bring gradients of one structure, mostly at the addresses of the last time.
        like = grads.tree.paths, list(grads.index), _addresses(grads)
        if self._known is not None and self._known[0] == like:
            return self._known[1]
        for i, docked in enumerate(grads.arrays):
            if unfit := _unfit_memory(docked):
                raise unfit(f"{asked}, gradient '{grads.first_path(i)}'")
        pairs = self._match(grads, f"{asked}, grads")
        shared = overlapping_pair([*self.arrays, *grads.arrays])
        if shared is not None:
            names = [f"parameter '{path}'" for path in self.paths] + [f"gradient '{p}'" for p in grads.first_paths()]
            raise UnsafeMemoryError(
                f"{asked}, {names[shared[0]]} and {names[shared[1]]}",
                "they share memory, so that writing the one would change the other",
                "Pass copies",
            )
        flats = [self._beside(parameter, grads.arrays[gradient]) for parameter, gradient in pairs]
        index, sources = (np.array([pair[k] for pair in pairs], np.int64) for k in range(2))
        found = Gradients(index, sources, [flat.buffer for flat in flats])
        # Without owners, or gradients that were dropped would stay in memory.
        bare = Gradients(index, sources, [replace(buffer, owner=None) for buffer in found.buffers])
        self._known = (like, bare) if all(flat.packed is None for flat in flats) else None
        return found

    def _beside(self, parameter: int, gradient: Docked) -> Flat:
        """A gradient with its elements in its parameter's order: its own memory where that is so, or a copy."""
        if self.arrays[parameter].contiguous and gradient.contiguous:
            return flatten_memory(gradient)
        return flatten_in(gradient, None, self.orders[parameter])

    def _match(self, grads: Cargo, asked: str) -> list[tuple[int, int]]:
        try:
            match(self.cargo, Site(grads), asked.replace(", grads", ", params"), "parameter")
        except InvalidArgumentError as error:
            raise InvalidArgumentError(error.asked.replace(", params", ", grads"), error.seen, _ALIKE) from error
        found: dict[int, tuple[int, str]] = {}
        for path, gradient in zip(grads.tree.paths, grads.index, strict=True):
            where = f"{asked}, gradient '{path}'"
            if path not in self.at:  # where it occurs the second time: the first was looked for above
                raise InvalidArgumentError(where, "there is no parameter at that path", _ALIKE)
            parameter = self.at[path]
            shape, needed = grads.arrays[gradient].shape, self.arrays[parameter].shape
            if shape != needed:
                raise InvalidArgumentError(where, f"its shape is {shape}, and that of its parameter {needed}", _ALIKE)
            other, first = found.setdefault(parameter, (gradient, path))
            if other != gradient:
                seen = f"its parameter is that of gradient '{first}', which is another array, and one of them counts"
                raise InvalidArgumentError(where, seen, "Pass their sum at one of the paths, and None at the other")
        return [(parameter, gradient) for parameter, (gradient, _) in sorted(found.items())]


def unloaded(container: Any, asked: str, *, clips: bool = True) -> Cargo:
    """``unload``, whose advice on dtypes would be a clip's."""
    try:
        return unload(container, asked, clips=clips)
    except UnsupportedArrayError as error:
        if "complex" not in error.cure:
            raise
        cure = f"Convert to one of {', '.join(sorted(BASE_DTYPES))}"
        seen = error.seen if clips else error.seen.replace("no gradient's", "no parameter's")
        raise UnsupportedArrayError(error.asked, seen, cure) from error


def _unloaded_parameters(container: Any, asked: str) -> Cargo:
    container = kept(container)  # to look at it a second time
    if isinstance(container, (list, tuple)) and container and all(map(_is_torch_group, container)):
        cure = "Pass the parameters in one container, and groups={name: {'paths': [path, ...], 'lr': ...}}"
        raise InvalidArgumentError(asked, "it is a list of torch's parameter groups", cure)
    try:
        return unloaded(container, asked, clips=False)
    except UnsupportedArrayError as error:
        torch = sys.modules.get("torch")
        modules = str if torch is None else (str, torch.nn.Module)
        if not any(isinstance(leaf, modules) for leaf in flatten(container)[0]):
            raise
        cure = "Pass dict(model.named_parameters()), or a dict of arrays by name"
        raise UnsupportedArrayError(error.asked, error.seen, cure) from error


def _is_torch_group(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "params" in entry and not isinstance(entry["params"], Mapping)


def _addresses(grads: Cargo) -> object:
    """Equal for gradients that lie where others did, laid out alike."""
    if grads.manifest is None:
        return [docked.key for docked in grads.arrays]
    leaves = grads.manifest.owners
    strides = [leaf.strides if isinstance(leaf, np.ndarray) else leaf.stride() for leaf in leaves]  # type: ignore[attr-defined]
    return grads.manifest.pointers.tobytes(), grads.looks, strides


def _whereabouts(docked: Docked) -> tuple[object, ...]:
    """What changes where an array's memory is put elsewhere. Cheap. DLPack's stays where it is while it is held."""
    array = docked.array
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0], array.shape, array.strides, array.flags.writeable
    if hasattr(array, "data_ptr"):
        return array.data_ptr(), array.shape, array.stride(), array.dtype
    return ()


def _address(array: Any) -> int | None:
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data_ptr()) if hasattr(array, "data_ptr") else None


def _refuse_unfit(docked: Docked, where: str) -> None:
    if unfit := _unfit_memory(docked):
        raise unfit(where)
    array = docked.array
    if docked.read_only:
        raise ReadOnlyError(where, docked.read_only, "Pass parameters that may be written")
    if overlaps_itself(docked) or not (is_dense(docked) or 0 in docked.shape):
        seen = f"its elements do not fill one stretch of memory (strides {docked.strides} bytes)"
        raise UnsafeMemoryError(where, seen, "Pass the array that it is a part of, or a contiguous copy")
    if getattr(array, "requires_grad", False) and not array.is_leaf:
        seen = "it is computed from others: part of an autograd graph, and no parameter"
        raise InvalidArgumentError(where, seen, "Pass the leaves that it was computed from, or x.detach()")


def _unfit_memory(docked: Docked) -> Callable[[str], GradClipError] | None:
    """The error of an array that can be neither parameter nor gradient, once it is known where it is."""
    if docked.device != "cpu":
        seen = f"it is on {docked.device}, and optimizers update host memory"
        cure = "Pass arrays in host memory, or use plan.scale in an optimizer of the device's"
        return lambda where: BackendError(where, seen, cure)
    if docked.is_complex:
        cure = "Pass its real and imaginary parts, as one real array"
        return lambda where: UnsupportedArrayError(where, "it is complex", cure)
    if docked.dtype.name not in BASE_DTYPES:
        seen, cure = f"optimizers do not serve {docked.dtype}", f"Convert to one of {', '.join(sorted(BASE_DTYPES))}"
        return lambda where: UnsupportedArrayError(where, seen, cure)
    return None
