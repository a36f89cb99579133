"""What the tests of the sets that are made of groups share: small problems, and what every result owes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets

Array = npt.NDArray[Any]
Gauge = Callable[[Sequence[Array]], Any]
"""Of arrays in extended precision: how far they reach beside the set's radius; inside at 1 or less."""

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def wide(arrays: Sequence[Array]) -> list[Array]:
    """In extended precision."""
    return [np.asarray(x, np.float64).astype(np.longdouble) for x in arrays]


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def both(grads: Any, onto: sets.Set, scope: str = "global", **how: Any) -> tuple[Any, gc.ClipInfo]:
    """The projection, with the same bits and the same certificate from both backends, and in place."""
    pytest.importorskip("numba")
    before = [x.tobytes() for x in grads]
    made, info = gc.clip_by_projection(grads, onto, scope, backend="numba_cpu", **how)
    other, seen = gc.clip_by_projection(grads, onto, scope, backend="numpy", **how)
    assert [x.tobytes() for x in grads] == before
    assert [x.tobytes() for x in made] == [x.tobytes() for x in other]
    assert info.certificate == seen.certificate
    assert np.array_equal(info.clipped_norm, seen.clipped_norm, equal_nan=True)
    inplace = [x.copy(order="K") for x in grads]
    assert gc.clip_by_projection_(inplace, onto, scope, **how).certificate == info.certificate
    assert [x.tobytes() for x in inplace] == [x.tobytes() for x in made]
    return made, info


def check(grads: Sequence[Array], onto: sets.Set, gauge: Gauge, optimality: float | None = None) -> list[Array]:
    """A global scope: inside stays, outside comes inside, twice is once, and the certificate says so."""
    made: list[Array]
    made, info = both(list(grads), onto)
    assert [(y.shape, y.dtype) for y in made] == [(x.shape, x.dtype) for x in grads]
    certificate = info.certificate
    assert certificate is not None
    if gauge(wide(grads)) <= 1:
        assert not info.clipped
        assert [y.tobytes() for y in made] == [x.tobytes() for x in grads]
        return made
    assert info.clipped
    roundoff = max(ROUNDOFF[x.dtype.name] for x in grads if x.size)
    fine = roundoff <= 2.0**-24
    assert gauge(wide(made)) <= 1 + (0 if fine else roundoff)
    assert gauge(wide(made)) >= 1 - 4 * roundoff - 2.0**-44
    assert certificate.feasibility <= (2.0**-44 if fine else roundoff)
    assert certificate.optimality <= (optimality or 64 * roundoff + 2.0**-40)
    if fine:
        again, seen = both(made, onto)
        assert not seen.clipped
        assert [z.tobytes() for z in again] == [y.tobytes() for y in made]
    return made


def drawn(seed: int, dtypes: Sequence[str] = ("float64",)) -> list[Array]:
    """Some small arrays: of different sizes, some empty, some with ties, some zero."""
    rng = np.random.default_rng(seed)
    arrays = []
    for _ in range(rng.integers(1, 6)):
        x = rng.standard_normal(tuple(rng.integers(0, 5, rng.integers(0, 3)))) * 10.0 ** rng.integers(-2, 3)
        kind = rng.random()
        x = np.round(x, 1) if kind < 0.3 else np.zeros_like(x) if kind > 0.9 else x
        arrays.append(np.asarray(x, dtypes[int(rng.integers(len(dtypes)))]))
    return arrays if any(np.any(x) for x in arrays) else [np.array([3.0, -1.0, 0.5]), np.array([2.0])]


def adversaries() -> dict[str, list[Array]]:
    """Groups that are hard, for sets that are as good as scale-free: radii are chosen beside them."""
    rng = np.random.default_rng(1)
    ties = np.repeat([3.0, 2.0, 1.0, 0.5], 25) * rng.choice([-1.0, 1.0], 100)
    huge = normal(99)
    huge[50] = 1e12
    return {
        "one element": [np.array([-3.0])],
        "no axes": [np.array(-3.0, np.float32), np.array(2.0)],
        "all equal": [np.full(40, -0.1), np.full(40, 0.1)],
        "all equal, float32": [np.full(41, 0.1, np.float32), np.full(7, 0.1, np.float32)],
        "ties": [ties, 2 * ties, ties[:30].copy()],
        "equal groups": [normal(20), normal(20)[::-1].copy(), -normal(20)],
        "one ulp apart": [np.full(10, 0.25), np.full(10, np.nextafter(0.25, 1))],
        "one huge": [huge, normal(50, seed=2)],
        "zeros beside": [np.zeros(30), normal(9), np.zeros(1)],
        "empty beside": [np.zeros((0, 3)), normal(9), np.zeros(0, np.float16)],
        "over 20 decades": [10.0 ** rng.uniform(-10, 10, 80) * rng.choice([-1, 1], 80) for _ in range(5)],
        "geometric": [2.0 ** np.arange(-300, 300), 2.0 ** np.arange(-300, 290)],
        "float32 of every exponent": [(2.0 ** np.arange(-149, 127)).astype(np.float32), normal(3)],
        "near overflow": [np.array([1.7e308, -1.7e308, 1e308]), np.array([3.0, 1e308])],
        "tiny": [normal(9) * 1e-290, normal(5, seed=3) * 1e-291],
        "many arrays": [normal(k % 5, seed=k, dtype=["f4", "f8"][k % 2]) for k in range(60)],
        "mixed": [normal(7, 11), normal(90, seed=2, dtype="f4"), normal(5, seed=3)],
        "more than a block": [normal(9000), normal(5000, seed=1, dtype="f4")],
    }
