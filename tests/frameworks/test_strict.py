"""array-api-strict, which has what the standard asks for and no more: by DLPack, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import check_sentence

xp: Any = pytest.importorskip("array_api_strict")

RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(1e9),
    gc.ArrayNorm(0.5),
    gc.Value((-0.1, 0.25)),
    gc.Project(sets.L1Ball(1.0)),
]


def values(dtype: str) -> list[Any]:
    rng = np.random.default_rng(0)
    found = [rng.standard_normal(shape) for shape in ((3, 50), (7,), (), (0, 4))]
    return [np.asarray(x + 1j * x if dtype.startswith("complex") else x, dtype) for x in found]


def put(x: Any) -> Any:
    return xp.asarray(x, copy=True)


def bits(x: Any) -> bytes:
    return bytes(np.from_dlpack(x).tobytes())


@pytest.mark.shows("array-api-strict", "new arrays", "exact")
@pytest.mark.shows("array-api-strict", "in place", "exact")
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        *((rule, dtype) for rule in RULES for dtype in ("float32", "float64")),
        *((rule, dtype) for rule in RULES[:3] for dtype in ("complex64", "complex128")),  # the others need an order
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_the_reference_s_bits_as_new_arrays_and_in_place(rule: gc.Rule, dtype: str) -> None:
    given = [put(x) for x in values(dtype)]
    expected, known = gc.clip(values(dtype), rule, backend="numpy")
    clipped, info = gc.clip(given, rule)
    assert [(type(y), str(y.dtype), y.shape) for y in clipped] == [(type(x), str(x.dtype), x.shape) for x in given]
    assert [bits(y) for y in clipped] == [y.tobytes() for y in expected]
    assert [bits(x) for x in given] == [x.tobytes() for x in values(dtype)]
    assert gc.clip_(given, rule).norms == info.norms == known.norms
    assert [bits(x) for x in given] == [y.tobytes() for y in expected]


def test_turned_and_broadcast() -> None:
    x = put(values("float64")[0])
    (y,), _ = gc.clip_by_norm([x.T], 1.0)
    assert bits(y) == np.ascontiguousarray(gc.clip_by_norm([values("float64")[0].T], 1.0)[0][0]).tobytes()
    gc.clip_by_norm_([x.T], 1.0)
    assert bits(x.T) == bits(y)
    many = xp.broadcast_to(put(np.ones(1)), (4,))
    assert gc.clip_by_norm([many], 1.0)[1].norm == 2.0
    with pytest.raises(gc.ReadOnlyError, match="flagged read-only"):
        gc.clip_by_norm_([many], 1.0)


def test_a_read_only_one_says_so() -> None:
    memory = np.array([3.0, 4.0])
    memory.flags.writeable = False
    x = xp.asarray(memory, copy=False)
    with pytest.raises(gc.ReadOnlyError) as caught:
        gc.clip_by_norm_([x], 1.0)
    seen = "its DLPack capsule is flagged read-only"
    check_sentence(caught.value, gc.ReadOnlyError, "array '0'", seen, "Use clip_by_norm, which returns")
    assert bits(gc.clip_by_norm([x], 1.0)[0][0]) == bits(gc.clip_by_norm([put(memory)], 1.0)[0][0])
    assert memory.tolist() == [3.0, 4.0]


def test_results_are_on_the_device_of_their_like() -> None:
    """Its devices are names: all of them are host memory."""
    device = xp.Device("device1")
    (y,), _ = gc.clip_by_norm([xp.asarray(np.array([3.0, 4.0]), device=device)], 1.0)
    assert y.device == device


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_what_is_no_gradient(dtype: str) -> None:
    with pytest.raises(gc.UnsupportedArrayError, match="no gradient's dtype"):
        gc.global_norm([xp.ones(3, dtype=getattr(xp, dtype))])
