"""``nn.Embedding(sparse=True)`` leaves some rows alone for a gradient: clipped as the dense gradient's are."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import check_sentence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no ccache
    paddle: Any = pytest.importorskip("paddle")

sparse = pytest.mark.shows("paddle", "sparse", "exact")
RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(2.0, ord=1),
    gc.ArrayNorm(0.5, ord=math.inf),
    gc.GlobalNorm(1e9),
    gc.Value(0.5),
    gc.Value((-math.inf, 0.25)),
    gc.Chain(gc.Value(2.0), gc.GlobalNorm(1.0)),
    gc.Project(sets.L1Ball(1.0)),
]


def gradient(rows: list[int]) -> Any:
    """What backward leaves for a table of ten rows; a row that is looked up twice is stored twice."""
    table = paddle.nn.Embedding(10, 4, sparse=True)
    factors = paddle.to_tensor(np.random.default_rng(0).standard_normal((len(rows), 4)).astype("float32"))
    (table(paddle.to_tensor(rows)) * factors).sum().backward()
    return table.weight.grad


def dense(x: Any) -> npt.NDArray[np.float32]:
    whole = np.zeros((10, 4), np.float32)
    for row, values in zip(x.rows(), x._get_tensor_from_selected_rows().numpy(), strict=True):
        whole[row] += values
    return whole


@sparse
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("rows", [[5, 3, 8], [5, 3, 5, 5, 0]], ids=["each once", "one three times"])
def test_the_same_as_the_dense_gradient(rows: list[int], rule: gc.Rule) -> None:
    given, beside = gradient(rows), paddle.to_tensor([0.25, -3.0])
    before = dense(given)
    expected, known = gc.clip([before, beside.numpy()], rule)
    clipped, info = gc.clip([given, beside], rule)
    assert clipped[0].is_selected_rows()
    assert clipped[0].get_selected_rows().height() == 10
    assert dense(given).tobytes() == before.tobytes()
    assert (info.norm, info.clipped_norm, info.norms) == (known.norm, known.clipped_norm, known.norms)
    np.testing.assert_array_equal(dense(clipped[0]), expected[0])
    assert gc.clip_([given, beside], rule).norms == known.norms
    np.testing.assert_array_equal(dense(given), expected[0])
    np.testing.assert_array_equal(beside.numpy(), expected[1])
    assert given.rows() == rows


@sparse
def test_a_step_that_writes_nothing_leaves_what_is_stored_twice_as_it_was() -> None:
    given = gradient([5, 3, 5])
    before = given._get_tensor_from_selected_rows().numpy()
    assert not gc.clip_by_global_norm_([given], 1e9).clipped
    assert given._get_tensor_from_selected_rows().numpy().tobytes() == before.tobytes()


@sparse
def test_the_parameter_s_gradient_is_what_is_written() -> None:
    table = paddle.nn.Embedding(10, 4, sparse=True)
    table(paddle.to_tensor([1, 2, 1])).sum().backward()
    info = gc.clip_by_global_norm_([p.grad for p in table.parameters()], 1.0)
    assert info.norm == math.sqrt(4 * (4 + 1))
    assert np.linalg.norm(dense(table.weight.grad).astype(np.float64)) <= 1
    before = table.weight.numpy()
    paddle.optimizer.SGD(1.0, parameters=table.parameters()).step()
    np.testing.assert_allclose(table.weight.numpy(), before - dense(table.weight.grad), rtol=1e-6)


@sparse
def test_tied_twice_in_a_call_it_counts_once_and_a_plan_fits_it() -> None:
    given = gradient([5, 3, 5])
    assert gc.global_norm([given, given]) == gc.global_norm([given])
    plan = gc.plan([given], gc.GlobalNorm(1.0))
    expected = dense(plan.apply([given])[0])
    plan.apply_([given])
    assert dense(given).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        (gc.Value((1.0, 2.0)), "its zeros, which are not stored, would become 1"),
        (gc.UnitNorm([np.ones((10, 4), np.float32)], 0.1, axis="all_but_first"), "a unit's elements"),
        (gc.Project(sets.Simplex(1.0)), "needs the elements that are not stored too"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_would_need_the_rows_that_are_not_stored(rule: gc.Rule, seen: str) -> None:
    given = gradient([5, 3, 5])
    before = dense(given)
    with pytest.raises(gc.GradClipError) as caught:
        gc.clip_([given], rule)
    check_sentence(caught.value, type(caught.value), "array '0'", seen, "nn.Embedding(sparse=False)")
    assert dense(given).tobytes() == before.tobytes()


@pytest.mark.parametrize(("kind", "make"), [("sparse_coo", "to_sparse_coo"), ("sparse_csr", "to_sparse_csr")])
def test_other_sparse_tensors_are_refused_with_the_way_to_their_values(kind: str, make: str) -> None:
    x = getattr(paddle.eye(3), make)(*((2,) if kind == "sparse_coo" else ()))
    with pytest.raises(gc.UnsupportedArrayError) as caught:
        gc.clip_by_norm_([x], 1.0)
    check_sentence(
        caught.value, gc.UnsupportedArrayError, "array '0'", f"its layout is {kind}", "x.coalesce().values()"
    )
    gc.clip_by_norm_([x.values()], 1.0)
    assert np.linalg.norm(x.to_dense().numpy().astype(np.float64)) <= 1
