"""``tf.IndexedSlices``: clipped as the gradient that they stand for, each index once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets

tf: Any = pytest.importorskip("tensorflow")

ROWS, WIDTH = 7, 3


def slices(indices: list[int] | None = None, dtype: str = "float32", seed: int = 0) -> Any:
    places = [4, 1, 4, 0, 4, 1] if indices is None else indices
    values = np.random.default_rng(seed).integers(-8, 9, (len(places), WIDTH))
    return tf.IndexedSlices(tf.cast(tf.cast(values, "float32"), dtype), tf.constant(places), tf.constant([ROWS, WIDTH]))


def dense(x: Any) -> Any:
    """Sums of whole numbers below 2^7: exact in every dtype, in any order."""
    made = np.zeros((ROWS, WIDTH), x.values.numpy().dtype)
    np.add.at(made, x.indices.numpy(), x.values.numpy())
    return made


RULES = {
    "global": gc.GlobalNorm(1.5),
    "global 1": gc.GlobalNorm(1.5, 1),
    "global inf": gc.GlobalNorm(1.5, math.inf),
    "array": gc.ArrayNorm(2.0),
    "value": gc.Value((-1.0, 3.0)),
    "value at zero": gc.Value((0.0, 3.0)),
    "chain": gc.Chain(gc.Value(2.0), gc.GlobalNorm(1.0)),
    "unclipped": gc.GlobalNorm(1e4),
}


@pytest.mark.shows("tensorflow", "sparse", "exact")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_stored_is_clipped_like_the_dense_gradient(rule: str, dtype: str) -> None:
    given, other = slices(dtype=dtype), tf.constant([3.0, -4.0])
    clipped, info = gc.clip({"e": given, "b": other}, RULES[rule])
    same, reference = gc.clip({"e": dense(given), "b": other.numpy()}, RULES[rule])
    made = clipped["e"]
    assert isinstance(made, tf.IndexedSlices)
    assert made.indices.numpy().tolist() == [4, 1, 0]
    assert made.dense_shape is given.dense_shape
    assert dense(made).tobytes() == same["e"].tobytes()
    assert clipped["b"].numpy().tobytes() == same["b"].tobytes()
    assert (info.norm, info.scale, info.clipped) == (reference.norm, reference.scale, reference.clipped)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("rows", [6, None])
@pytest.mark.parametrize("rule", ["global", "value", "unclipped"])
def test_the_same_inside_tf_function(rule: str, rows: int | None, jit: bool) -> None:
    """How many rows there are need not be known: so is the last batch of an epoch traced."""
    given = slices()

    def step(values: Any, indices: Any) -> Any:
        grads = [tf.IndexedSlices(values, indices, tf.constant([ROWS, WIDTH])), tf.constant([3.0, -4.0])]
        clipped, info = gc.clip(grads, RULES[rule], nonfinite="skip")
        return clipped[0].values, clipped[0].indices, clipped[1], info

    signature = [tf.TensorSpec((rows, WIDTH)), tf.TensorSpec((rows,), tf.int32)]
    values, indices, plain, info = tf.function(step, jit_compile=jit, input_signature=signature)(
        given.values, given.indices
    )
    same, reference = gc.clip([dense(given), np.array([3.0, -4.0], np.float32)], RULES[rule])
    assert indices.numpy().tolist() == [4, 1, 0]
    np.testing.assert_allclose(dense(tf.IndexedSlices(values, indices)), same[0], rtol=2**-22)
    np.testing.assert_allclose(plain, same[1], rtol=2**-22)
    assert float(info.norm) == pytest.approx(reference.norm, rel=2**-40)
    assert bool(info.clipped) == reference.clipped


def test_no_rows_at_all_inside_tf_function() -> None:
    signature = [tf.TensorSpec((None, WIDTH)), tf.TensorSpec((None,), tf.int32)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator, unused-ignore]
    def step(values: Any, indices: Any) -> Any:
        given = [tf.IndexedSlices(values, indices, None)]
        clipped, info = gc.clip(given, gc.GlobalNorm(1.0, math.inf), nonfinite="skip")
        return clipped[0].values, info.norm

    values, norm = step(tf.zeros((0, WIDTH)), tf.zeros(0, tf.int32))
    assert (values.shape, float(norm)) == ((0, WIDTH), 0.0)


def test_slices_with_each_index_once_are_read_where_they_are() -> None:
    given = slices([4, 1, 0])
    assert gc.clip_by_norm([given], 1e4)[0][0] is given
    assert gc.clip_by_norm([given], 1.0)[0][0].indices.numpy().tolist() == [4, 1, 0]
    assert gc.global_norm([given]) == gc.global_norm([dense(given)])


def test_tensorflow_s_own_takes_the_norm_of_the_values_as_they_stand() -> None:
    given = slices()
    assert float(tf.linalg.global_norm([given])) == pytest.approx(gc.global_norm([given.values]))
    assert gc.global_norm([given]) == gc.global_norm([dense(given)])
    assert gc.global_norm([given]) != pytest.approx(gc.global_norm([given.values]))


def test_two_embeddings_whose_gradients_share_their_values() -> None:
    """Words plus positions: TensorFlow gives both gradients the same memory."""
    words, places = tf.Variable(tf.ones((5, 2))), tf.Variable(tf.ones((4, 2)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((tf.gather(words, [0, 3, 1]) + tf.gather(places, [0, 1, 2])) ** 2)
    grads = tape.gradient(loss, [words, places])
    clipped, info = gc.clip_by_global_norm(grads, 1.0)
    assert info.norm == pytest.approx(192**0.5)
    assert all(isinstance(x, tf.IndexedSlices) for x in clipped)


def test_what_zeros_that_are_not_stored_would_become_is_refused() -> None:
    given = slices()
    with pytest.raises(gc.InvalidArgumentError, match=r"would become 1\. Pass limits with low <= 0.*convert_to_tensor"):
        gc.clip_by_value([given], (1.0, 2.0))
    with pytest.raises(gc.UnsupportedArrayError, match=r"unit's elements.*Pass it dense: tf\.convert_to_tensor\(x\)"):
        gc.adaptive_clip([given], [tf.ones((ROWS, WIDTH))], axis="all_but_first")
    with pytest.raises(gc.UnsupportedArrayError, match=r"Simplex.*needs the elements that are not stored"):
        gc.clip([given], gc.Project(sets.Simplex(1.0)))
    with pytest.raises(gc.InvalidArgumentError, match="would become -1"):
        tf.function(lambda: gc.clip_by_value([given], (-2.0, -1.0), nonfinite="skip")[0])()
    assert isinstance(gc.clip([given], gc.Project(sets.L1Ball(1.0)))[0][0], tf.IndexedSlices)


def test_in_place_into_others_and_where_plain_arrays_are_needed_it_is_refused() -> None:
    given = slices()
    with pytest.raises(gc.ReadOnlyError, match=r"a tf\.IndexedSlices is immutable\. Use clip_by_norm, which returns"):
        gc.clip_by_norm_([given], 1.0)
    with pytest.raises(gc.InvalidArgumentError, match="it is sparse, and what out= holds is plain memory"):
        gc.clip([given], gc.GlobalNorm(1.0), out=[np.zeros((ROWS, WIDTH))])
    with pytest.raises(gc.UnsupportedArrayError, match=r"it is a tf\.IndexedSlices\. Pass it dense"):
        gc.adaptive_clip([tf.ones((ROWS, WIDTH))], [given], axis="all_but_first")
    with pytest.raises(gc.UnsupportedArrayError, match="IndexedSlices of float8_e5m2, which TensorFlow cannot add up"):
        gc.clip_by_norm([slices(dtype="float8_e5m2")], 1.0)
    with pytest.raises(gc.UnsupportedArrayError, match="int32 is no gradient's dtype"):
        gc.clip_by_norm([slices(dtype="int32")], 1.0)


def test_a_plan_for_slices() -> None:
    given = slices()
    plan = gc.plan([given], gc.GlobalNorm(1.0))
    assert dense(plan.apply([given])[0]).tobytes() == dense(gc.clip_by_norm([given], 1.0)[0][0]).tobytes()


@pytest.mark.parametrize("compiled", [False, True])
def test_training_an_embedding(compiled: bool) -> None:
    """The same as with the dense gradient."""
    rng = np.random.default_rng(0)
    words, wanted = tf.constant(rng.integers(0, 5, 12)), tf.constant(rng.standard_normal((12, 2)) * 9)

    def train(make_dense: bool) -> Any:
        table = tf.Variable(tf.zeros((5, 2), tf.float64))

        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((tf.gather(table, words) - wanted) ** 2)
            (grad,) = tape.gradient(loss, [table])
            assert isinstance(grad, tf.IndexedSlices)
            grad = tf.convert_to_tensor(grad) if make_dense else grad
            ((clipped,), _) = gc.clip_by_global_norm([grad], 1.0, nonfinite="skip")
            table.assign_sub(0.3 * tf.convert_to_tensor(clipped))

        call = tf.function(step) if compiled else step
        for _ in range(10):
            call()
        return table.numpy()

    np.testing.assert_allclose(train(False), train(True), rtol=1e-12)


@pytest.mark.parametrize("index", [99, -1])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(
        gc.UnsupportedArrayError, match=rf"it has an index {index}, and its dense shape has {ROWS} rows"
    ):
        gc.clip_by_norm(slices([1, index]), 1.0)
