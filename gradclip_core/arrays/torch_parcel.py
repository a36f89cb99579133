"""Containers of tensors under ``torch.compile``: opened, numbered, and put together again, by symbols alone.

The compiler follows this code at every trace, so it does little, and nothing that looks at a value. Paths and order
are those of ``tree.py``: the operator rebuilds a container that has the same ones.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from gradclip_core.arrays.torch_hazards import REASONS
from gradclip_core.errors import ContainerError

torch: Any = sys.modules["torch"]
_forward_ad: Any = sys.modules["torch.autograd.forward_ad"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
Number = tuple[str, int] | bool | str | None


class Parcel:
    """What the operator is given: every tensor once, in order, and what does not fit into a graph."""

    def __init__(self, *, in_place: bool) -> None:
        self.in_place = in_place
        self.tensors: list[Any] = []
        self.numbers: dict[Any, int] = {}
        """Each tensor of a container, and its place among ``tensors``."""
        self.unfit = ""
        """Why the call cannot be part of a graph; empty where it can."""
        self._one: Any = None

    def refuse(self, why: str) -> None:
        """Note why this goes eagerly."""
        self.unfit = self.unfit or why

    def gradient(self, x: Any) -> Any:
        """Note a leaf that is clipped. What autograd knows, ``dock.py`` refuses, so that it is not for a graph."""
        if isinstance(x, torch.Tensor) and x.requires_grad:
            if torch.is_grad_enabled():
                self.refuse("autograd knows a gradient, and would not see that it is clipped (pass p.grad, not p)")
            elif x.is_leaf and x.grad is not None:
                self.refuse("a gradient is a parameter that has a gradient (pass p.grad)")
            elif self.in_place and isinstance(x, torch.nn.Parameter):
                self.refuse("a gradient is a parameter (pass p.grad)")
        return self.companion(x)

    def companion(self, x: Any) -> Any:
        """Note a leaf that is only read, or that is written to: weights, ``out``."""
        if type(x) in _PLAIN:
            if x.is_meta:  # the dispatcher would take the operator's fake for the operator
                self.refuse("a tensor is on the device meta, which holds no values")
            if x not in self.numbers:
                self.numbers[x] = len(self.tensors)
                # The graph's results are no part of autograd's graph, as those of an eager call are none.
                self.tensors.append(x.detach() if x.requires_grad else x)
        elif isinstance(x, torch.Tensor):
            self.refuse(f"a tensor is a {type(x).__name__}")
        else:
            self.refuse(f"a {type(x).__name__} is no tensor, nor a container of tensors that can be traced")
        return x

    def check(self, written: int) -> None:
        """Look at the memory of all tensors, of which so many are written to."""
        # Of one tensor for all, as asking is an operation to the compiler; the level inside a transform ends its graph.
        batched = any(map(torch._C._functorch.is_batchedtensor, self.tensors[:1]))
        if batched or _forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None:
            self.refuse("a tensor is inside a transform of torch.func (clip what the transform returns)")
        if not self.unfit and self.tensors:
            found = torch.ops.gradclip.look.default(self.tensors[:written], self.tensors[written:])
            self.refuse(REASONS[found.shape[1]])

    def number(self, x: Any) -> Number:
        """A number as a 0-d tensor of the operator's: another one next time needs no other graph."""
        if x is None or isinstance(x, (bool, str)):
            return x  # the operator says what is wrong with it
        if isinstance(x, torch.Tensor):
            self.companion(x)
            return ("number", self.numbers[x])
        if not isinstance(x, (int, float)):
            self.refuse(f"a {type(x).__name__} stands where a number is traced")
            return None
        if self._one is None:
            self._one = torch.ones((), dtype=torch.float64, device="cpu")
        self.tensors.append(torch.mul(self._one, x))
        return ("number", len(self.tensors) - 1)


def each(x: Any, leaf: Callable[[Any], Any]) -> Any:
    """The container again, around what ``leaf`` makes of its leaves; a list in place of an iterator."""
    if x is None:
        return None
    if isinstance(x, torch.Tensor):
        return leaf(x)
    if isinstance(x, Mapping):
        items = {key: each(value, leaf) for key, value in x.items()}
        if isinstance(x, defaultdict):
            return defaultdict(x.default_factory, items)
        return items if type(x) is dict else type(x)(items)  # type: ignore[call-arg]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*[each(value, leaf) for value in x])
    if isinstance(x, deque):
        return deque([each(value, leaf) for value in x], x.maxlen)
    if isinstance(x, (list, tuple)):
        # Thousands of leaves: each call that the compiler has to follow costs it a millisecond.
        return type(x)([leaf(value) if isinstance(value, torch.Tensor) else each(value, leaf) for value in x])
    if isinstance(x, (KeysView, ValuesView)):
        return [each(value, leaf) for value in x]
    if isinstance(x, Iterator):
        values = list(x)
        if not values:
            seen = f"the {type(x).__name__} yields nothing: something may have read it before"
            raise ContainerError("the gradients' container", seen, "Make it anew, or pass a list (which may be empty)")
        return each(values, leaf)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        made = object.__new__(type(x))  # not by its __init__, which may do more than keep
        for field in dataclasses.fields(x):
            object.__setattr__(made, field.name, each(getattr(x, field.name), leaf))
        return made
    return leaf(x)


def structure(x: Any, parcel: Parcel) -> Any:
    """The container in dicts and lists, which have the same paths, around its tensors' places in the parcel."""
    if x is None or parcel.unfit:
        return None
    if isinstance(x, torch.Tensor):
        return parcel.numbers[x]
    if isinstance(x, Mapping):
        for key in x:
            if not isinstance(key, (str, int)):
                parcel.refuse(f"a key is a {type(key).__name__}")
        return {key: structure(value, parcel) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return {name: structure(value, parcel) for name, value in zip(x._fields, x, strict=True)}
    if isinstance(x, (list, tuple, deque)):
        numbers = parcel.numbers
        return [numbers[value] if isinstance(value, torch.Tensor) else structure(value, parcel) for value in x]
    return {field.name: structure(getattr(x, field.name), parcel) for field in dataclasses.fields(x)}
