"""What a backend does for optimizers besides: one pass that reads a gradient and writes its parameter and state.

``UPDATES`` is the specification, in the order in which each operation is rounded;
``optim/reference.py`` is the same in NumPy. A backend never decides anything: which gradients are
scaled by what, and which numbers hold at which step, is said by ``gradclip_core.optim``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from gradclip_core.protocol import FLOAT32, FLOAT64, Actions, Buffer, DType, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Update:
    """One kind of update: the names of its state and of its numbers, and the formula."""

    state: tuple[str, ...]
    numbers: tuple[str, ...]
    formula: str


UPDATES = {
    "sgd": Update((), ("l2", "lr"), "p ← p - lr·g"),
    "momentum": Update(
        ("momentum_buffer",),
        ("l2", "keep", "take", "ahead", "lr"),
        "b ← keep·b + take·g;  p ← p - lr·b",
    ),
    "nesterov": Update(
        ("momentum_buffer",),
        ("l2", "keep", "take", "ahead", "lr"),
        "b ← keep·b + take·g;  p ← p - lr·(g + ahead·b)",
    ),
    "adam": Update(
        ("exp_avg", "exp_avg_sq"),
        ("l2", "take1", "keep2", "take2", "root", "eps", "decay", "lr"),
        "m ← m + take1·(g - m);  v ← keep2·v + (take2·g)·g;  p ← decay·p - (lr·m)/(√v/root + eps)",
    ),
    "lion": Update(
        ("exp_avg",),
        ("keep1", "take1", "keep2", "take2", "decay", "lr"),
        "u = keep1·m + take1·g;  m ← keep2·m + take2·g;  p ← decay·p - (lr if u > 0, -lr if u < 0, else u)",
    ),
}
"""Name -> what it is. Each operation is rounded to ``compute_type(p)``, none are fused, and p is then rounded to its
own type. ``g`` is what ``Actions`` makes of the stored gradient; where ``l2`` is not 0, ``g + l2·p`` takes its place.
"""


def compute_type(parameter: DType) -> DType:
    """What an update is computed in, and its state stored as: float64 for float64, float32 for all others."""
    return FLOAT64 if parameter is FLOAT64 else FLOAT32


class Bound(Protocol):
    """An update of certain arrays, whose memory stays where it is."""

    def step(self, index: IntArray, grads: Sequence[Buffer], actions: Actions, numbers: FloatArray) -> None:
        """One step of the arrays of ``index``, each there once. ``grads``, ``actions`` and ``numbers`` go by it.

        ``g`` is the element as ``Backend.apply`` would write it, before it is rounded to 16 bits; then
        converted to the type of computation. ``LEAVE`` multiplies by nothing, ``ZERO`` makes it +0;
        ``low``, ``high`` and ``sanitize`` do not occur. ``numbers`` has a row for each name of the update's and
        a column for each array; it is rounded once, to the type of computation.
        """
        ...


class Updates(Protocol):
    """The updates of one backend. Host memory."""

    def bind(self, kind: str, params: Sequence[Buffer], state: Sequence[Sequence[Buffer]]) -> Bound:
        """Get ready for many steps. ``kind`` is a name of ``UPDATES``; ``state`` has for each of its names a buffer an
        array, of the type of computation. No two buffers share memory; their owners keep them alive.
        """
        ...


def updates_of(backend: Any) -> Updates:
    """The updates of a backend that has ``optimizers``: the object, or what its address names."""
    where = backend.optimizers
    if not isinstance(where, str):
        return cast(Updates, where)
    module, _, attribute = where.partition(":")
    return cast(Updates, getattr(importlib.import_module(module), attribute))
