"""The operators that stand for a clip in a graph of ``torch.compile``. Imported while one is traced, torch with it.

A compiler knows of them what they read and write, and of their results the shapes. When a graph runs, they hand
real tensors to the ordinary pipeline. Their text (``torch_rules.py``) says all the rest, so that a graph which was
kept on disk means the same in another process.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_core.arrays.torch_rules import Call, how_of, parsed, rebuilt, remade, value_of
from gradclip_core.functions import global_norm
from gradclip_core.pipeline import Outcome, Target, finish, run
from gradclip_core.protocol import DTYPES
from gradclip_core.report import per_array
from gradclip_core.tree import flatten
from gradclip_core.validate import How

torch: Any = sys.modules["torch"]

FACTS = ("norm", "clipped_norm", "scale", "clipped", "skipped", "infs", "nans", "overflow")
"""What a report begins with; then come, for each gradient, norm, scale, infinities and NaNs."""


def length_of_report(count: int) -> int:
    """How many numbers there are of ``count`` gradients."""
    return len(FACTS) + 4 * count


def _clip_(written: Sequence[Any], read: Sequence[Any], told: str) -> Any:
    call = parsed(told)
    outcome = _run(call, [*written, *read], "memory" if call.out is None else "new")
    return _report(outcome, call, 0 if call.out is None else len(written))


def _clip(grads: Sequence[Any], read: Sequence[Any], told: str) -> list[Any]:
    call = parsed(told)
    outcome = _run(call, [*grads, *read], "new")
    made: list[Any] = [None] * len(grads)
    leaves, _ = flatten(finish(outcome.cargo, outcome.arrays))
    for place, x in zip(call.places, leaves, strict=True):
        made[place] = x
    # Tensors that share their memory were one array, and are; but what an operator returns may not.
    distinct = {id(x): place for place, x in enumerate(made)}
    made = [x if distinct[id(x)] == place else x.clone() for place, x in enumerate(made)]
    return [*made, _report(outcome, call, 0)]


def _norm(grads: Sequence[Any], read: Sequence[Any], told: str) -> Any:
    where, ord, backend = ast.literal_eval(told)
    tensors = [*grads, *read]
    found = global_norm(rebuilt(where, tensors), value_of(ord, tensors), backend=backend)
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _run(call: Call, tensors: list[Any], target: Target) -> Outcome:
    dtype = None if call.dtype is None else DTYPES[call.dtype]
    out = None if call.out is None else rebuilt(call.out, tensors)
    how = How.of(how_of(call.how, tensors))
    return run(rebuilt(call.grads, tensors), remade(call.rule, tensors), how, call.asked, target, out, dtype)


def _report(outcome: Outcome, call: Call, start: int) -> Any:
    """The numbers of a call's info. ``start``: the place of the first gradient."""
    numbers = np.empty(length_of_report(call.count))
    numbers[: len(FACTS)] = [getattr(outcome.info, name) for name in FACTS]
    if call.count:
        arrays = np.empty(call.count, np.int64)
        arrays[call.places - start] = outcome.cargo.index
        found = per_array(outcome.cargo.names(), outcome.story().decided)
        numbers[len(FACTS) :] = np.concatenate([values[arrays] for values in found])
    return torch.from_numpy(numbers)


def _like_clip_(written: Sequence[Any], read: Sequence[Any], told: str) -> Any:
    """The shape of what ``_clip_`` returns."""
    return _numbers(length_of_report(parsed(told).count))


def _like_clip(grads: Sequence[Any], read: Sequence[Any], told: str) -> list[Any]:
    call = parsed(told)
    dtype = None if call.dtype is None else getattr(torch, call.dtype)
    return [*[torch.empty_like(x, dtype=dtype) for x in grads], _numbers(length_of_report(call.count))]


def _like_norm(grads: Sequence[Any], read: Sequence[Any], told: str) -> Any:
    return torch.empty((), dtype=torch.float64, device="cpu")


def _numbers(length: int) -> Any:
    return torch.empty(length, dtype=torch.float64, device="cpu")


_OPERATORS = (
    ("clip_", "(Tensor(a!)[] written, Tensor[] read, str told) -> Tensor", _clip_, _like_clip_),
    ("clip", "(Tensor[] grads, Tensor[] read, str told) -> Tensor[]", _clip, _like_clip),
    ("norm", "(Tensor[] grads, Tensor[] read, str told) -> Tensor", _norm, _like_norm),
)
_library = torch.library.Library("gradclip", "FRAGMENT")
for _name, _schema, _function, _like in _OPERATORS:
    # A captured graph of a device is replayed without Python, and a report is read on the host.
    _library.define(_name + _schema, tags=(torch.Tag.cudagraph_unsafe,))
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gradclip::{_name}", _like, lib=_library)
