"""What a call costs beyond the passes: waits, uploaded tables, packed arrays. Counted as in ``count.py``."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import gradclip_core as gc
from tests.gpu.costs.count import waits
from tests.gpu.cupy.lanes import on
from tests.gpu.standin import Machine

LANE = "ptx-90"
MANY = 148
"""As many arrays as a GPT-2 124M has: more than go with a launch by value."""
LIMIT = gc.GlobalNorm(1e-3)


def _arrays(count: int) -> list[Any]:
    cupy = importlib.import_module("cupy")
    return [cupy.asarray(np.full(24, 0.5, np.float32)) for _ in range(count)]


def _views(count: int) -> list[Any]:
    cupy = importlib.import_module("cupy")
    return [cupy.asarray(np.full((6, 8), 0.5, np.float32))[:, ::2] for _ in range(count)]


def _skip(grads: Any) -> gc.ClipInfo:
    return gc.clip_(grads, LIMIT, nonfinite="skip")


Call = Callable[[], object]


def _calls() -> dict[str, Call]:
    """Each is called twice, and the second call is what counts."""
    few, many, views = _arrays(3), _arrays(MANY), _views(3)
    places = itertools.cycle([_arrays(MANY), _arrays(MANY)])

    return {
        'a global norm of 3 arrays, in place, `nonfinite="skip"`': lambda: _skip(few),
        'the same with `nonfinite="raise"`': lambda: gc.clip_(few, LIMIT),
        "the same with `skip`, and `info.norm` read": lambda: _skip(few).norm,
        "into new arrays": lambda: gc.clip(few, LIMIT, nonfinite="skip"),
        "3 strided arrays, in place": lambda: _skip(views),
        f"{MANY} arrays, in place, where they were at the last call": lambda: _skip(many),
        f"{MANY} arrays that have moved since": lambda: _skip(next(places)),
        f"{MANY} arrays, into new arrays": lambda: gc.clip(many, LIMIT, nonfinite="skip"),
        "`plan` of 3 arrays": lambda: gc.plan(few, LIMIT, nonfinite="skip"),
    }


def _counted(standin: Machine, call: Call) -> dict[str, int]:
    call()
    standin.log.clear()
    info = call()  # held while it is counted: an info gives its record back when it is dropped
    counts = standin.log.counts() | {"sync": waits(standin.log)}
    del info
    return counts


def extras() -> dict[str, dict[str, int]]:
    """Situation -> how many launches, memsets, waits, copies and allocations."""
    with on(LANE) as standin:
        return {name: _counted(standin, call) for name, call in _calls().items()}
