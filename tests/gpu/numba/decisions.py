"""Gradients and rules whose decisions are easy to get nearly right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.device import Case, Weights
from gradclip_core.plan import stored_values
from gradclip_core.protocol import BFLOAT16, DTYPES, FLOAT16, FLOAT32, FLOAT64, Buffer, DType, Scopes
from gradclip_core.testing import cases
from tests.gpu.numba.fake import FakeMemory

Array = Any


@dataclass(frozen=True)
class Question:
    """A decision to be made."""

    name: str
    buffers: list[Buffer]
    case: Case


def questions(memory: FakeMemory) -> Iterator[Question]:
    """All of them."""
    for name, arrays in _gradients():
        buffers = [memory.put(cases.stored(x, dtype).reshape(len(x), -1), dtype) for x, dtype in arrays]
        rows = [buffer.rows for buffer in buffers]
        for title, case in [*_norm_rules(sum(rows)), *_value_rules()]:
            yield Question(f"{name}, {title}", buffers, case)
    yield from _close_calls(memory)
    yield from _weights(memory)


def _gradients() -> Iterator[tuple[str, list[tuple[Array, DType]]]]:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal
    mixed: list[tuple[Array, DType]] = [
        (normal((1, 300)), FLOAT32),
        (np.zeros((2, 0)), FLOAT16),
        (normal((3, 40)), FLOAT64),
        (normal((1, 17)), BFLOAT16),
        (normal((2, 9)), FLOAT16),
    ]
    poisoned = [(x.copy(), dtype) for x, dtype in mixed]
    poisoned[0][0][0, 7], poisoned[2][0][1, 3], poisoned[4][0][0, 0] = math.nan, -math.inf, math.inf
    yield "mixed", mixed
    yield "poisoned", poisoned
    yield "zeros", [(np.zeros((2, 5)), FLOAT64), (np.zeros((1, 3)), FLOAT32)]
    yield "float64", [(normal((4, 60)) * 3.0, FLOAT64)]
    yield "far", [(normal((1, 50)) * 1e200, FLOAT64), (normal((2, 20)) * 1e-290, FLOAT64), (normal((1, 4)), FLOAT64)]
    yield "huge", [(np.full((1, 9), 1.7e308), FLOAT64), (normal((1, 4)), FLOAT32)]


def _norm_rules(count: int) -> Iterator[tuple[str, Case]]:
    ids = np.arange(count)
    one = np.zeros(count, np.int64)
    shapes: dict[str, Callable[[float], Scopes]] = {
        "one": lambda limit: Scopes(one, np.array([limit])),
        "each": lambda limit: Scopes(ids, np.full(count, limit)),
        "own": lambda limit: Scopes(ids, limit * (1.0 + ids / 7)),
        "groups": lambda limit: Scopes((ids * 5) % 3 % count, limit * np.array([1.0, 0.01, 30.0][: min(count, 3)])),
    }
    for shape, scopes in shapes.items():
        orders = (2.0, 1.0, math.inf) if shape in ("one", "groups") else (2.0,)
        for order in orders:
            for limit in (1.0, 1e-6, 1e6) if shape == "one" else (1.0,):
                yield f"{shape}, ord {order}, limit {limit}", Case(order, "propagate", 1.0, scopes=scopes(limit))
    for limit in (1e-310, 5e-324, 1e307):
        yield f"limit {limit}", Case(2.0, "propagate", 1.0, scopes=shapes["one"](limit))
    for shape in ("one", "own"):
        yield f"{shape}, ord 3", Case(3.0, "propagate", 1.0, scopes=shapes[shape](1.0))
    for policy in ("skip", "zero", "sanitize", "raise"):
        yield policy, Case(2.0, policy, 2.0**-10, scopes=shapes["groups"](1.0))
    for inverse in (1 / 3, 2.0**-16, 1.1):
        yield f"inverse {inverse}", Case(2.0, "propagate", inverse, scopes=shapes["one"](1.0))


def _value_rules() -> Iterator[tuple[str, Case]]:
    for low, high in ((-0.5, 0.5), (-0.25, 2.0), (-math.inf, 0.1), (-1e9, 1e9)):
        with np.errstate(over="ignore"):  # beyond float16 there is infinity
            bounds = {name: stored_values((low, high), dtype) for name, dtype in DTYPES.items()}
        pairs = {name: (pair[0], pair[1]) for name, pair in bounds.items()}
        for policy, inverse in (("propagate", 1.0), ("sanitize", 2.0**-3), ("zero", 1 / 3)):
            case = Case(2.0, policy, inverse, bounds=pairs, symmetric=low == -high)
            yield f"value {low}..{high} {policy}", case


def _close_calls(memory: FakeMemory) -> Iterator[Question]:
    """Limits at the norm, one ulp away, and where only the carries tell."""
    rng = np.random.default_rng(6)
    for dtype in (FLOAT32, FLOAT64):
        for seed in range(4):
            x = cases.stored(rng.standard_normal((1, 500 + seed)), dtype)
            buffer = memory.put(x, dtype)
            norm = float(np.sqrt(np.sum(x.astype(np.float64) ** 2)))
            for ulps in (-2, -1, 0, 1, 2):
                limit = norm * (1 + ulps * 2.0**-52)
                scopes = Scopes(np.zeros(1, np.int64), np.array([limit]))
                yield Question(f"{dtype} {seed} {ulps} ulps", [buffer], Case(2.0, "propagate", 1.0, scopes=scopes))


def _weights(memory: FakeMemory) -> Iterator[Question]:
    rng = np.random.default_rng(7)
    shapes: list[tuple[tuple[int, int], DType]] = [((5, 30), FLOAT32), ((3, 11), FLOAT64)]
    gradients = [memory.put(cases.stored(rng.standard_normal(shape), dtype), dtype) for shape, dtype in shapes]
    weights = [memory.put(cases.stored(rng.standard_normal(shape) * 9, dtype), dtype) for shape, dtype in shapes]
    limits = Weights(weights, 0.01, 1e-3)
    yield Question("weights", gradients, Case(2.0, "propagate", 1.0, weights=limits))
    yield Question("weights, skip", gradients, Case(2.0, "skip", 0.5, weights=limits))
