"""Inside ``tf.function``: TensorFlow's own operations, within a bound of the reference (docs/numerics.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

tf: Any = pytest.importorskip("tensorflow")

NORM = 2.0**-40
"""Of norms, relative; of float64 too."""
ELEMENT = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-40}
"""Of elements, relative: one unit in the last place, and what the factor's own rounding makes of it."""


def arrays(*shapes: tuple[int, ...], dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(0)
    return [tf.cast(tf.constant(rng.standard_normal(shape) * 3), dtype) for shape in shapes]


def agree(rule: Any, grads: Any, *, jit: bool = False, **how: Any) -> Any:
    """The traced call against the eager one; returns both infos."""
    call = tf.function(lambda g: gc.clip(g, rule, **how), jit_compile=jit)
    made, info = call(grads)
    same, reference = gc.clip(grads, rule, **how)
    for a, b in zip(tf.nest.flatten(made), tf.nest.flatten(same), strict=True):
        assert a.dtype == b.dtype
        tolerance = ELEMENT.get(a.dtype.name, 2.0**-22)
        np.testing.assert_allclose(
            tf.cast(a, tf.complex128 if a.dtype.is_complex else tf.float64),
            tf.cast(b, tf.complex128 if b.dtype.is_complex else tf.float64),
            rtol=tolerance,
            atol=1e-300,
        )
    for name in ("norm", "clipped_norm", "scale"):
        bound = NORM if name == "norm" else 2.0**-22
        assert float(getattr(info, name)) == pytest.approx(getattr(reference, name), rel=bound, nan_ok=True)
    for name in ("clipped", "skipped", "infs", "nans", "nonfinite"):
        assert getattr(info, name).numpy() == getattr(reference, name)
    for path, norm in reference.norms.items():
        assert float(info.norms[path]) == pytest.approx(norm, rel=NORM, nan_ok=True)
    return info, reference


RULES = {
    "global": gc.GlobalNorm(1.0),
    "global 1": gc.GlobalNorm(1.0, 1),
    "global inf": gc.GlobalNorm(1.0, math.inf),
    "global 3": gc.GlobalNorm(1.0, 3),
    "zero": gc.GlobalNorm(0.0),
    "unclipped": gc.GlobalNorm(1e6),
    "array": gc.ArrayNorm(2.0),
    "group": gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "1" else "b"),
    "value": gc.Value(0.5),
    "one-sided": gc.Value((-math.inf, 0.25)),
    "chain": gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
}


@pytest.mark.shows("tensorflow", "under its compiler", "approximate")
@pytest.mark.parametrize("rule", RULES)
def test_rules_do_what_they_do_eagerly(rule: str) -> None:
    agree(RULES[rule], arrays((6, 5), (7,), (), (0, 3)), nonfinite="skip")


@pytest.mark.shows("tensorflow", "under its compiler", "approximate")
@pytest.mark.parametrize("rule", ["global", "array", "value"])
def test_under_xla_too(rule: str) -> None:
    agree(RULES[rule], arrays((6, 5), (7,)), jit=True, nonfinite="skip")


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]
)
def test_all_dtypes(dtype: str) -> None:
    if dtype.startswith("float8"):  # halfway cases go one way or the other
        grads = arrays((6, 5), dtype=dtype)
        made, info = tf.function(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip"))(grads)
        same, reference = gc.clip_by_global_norm(grads, 1.0)
        ours, theirs = (tf.cast(x[0], tf.float32) for x in (made, same))
        np.testing.assert_allclose(ours, theirs, rtol=0.25, atol=0.02)
        assert float(info.norm) == pytest.approx(reference.norm, rel=NORM)
        return
    agree(RULES["global"], arrays((6, 5), (4,), dtype=dtype), nonfinite="skip")
    if not dtype.startswith("complex"):
        agree(RULES["value"], arrays((6, 5), dtype=dtype), nonfinite="skip")


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e-300, 1e300])
def test_no_square_overflows_or_vanishes(size: float) -> None:
    dtype = "float32" if 1e-40 < size < 1e38 else "float64"
    agree(gc.GlobalNorm(size), [tf.constant(np.full(5, size), dtype)], nonfinite="skip")


@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_policies(policy: str, bad: float) -> None:
    grads = [tf.constant([1.0, bad, 2.0]), tf.constant([3.0])]
    info, reference = agree(RULES["global"], grads, nonfinite=policy)
    assert {path: tuple(map(int, pair)) for path, pair in info.counts.items() if any(map(int, pair))} == dict(
        reference.counts
    )
    agree(RULES["value"], grads, nonfinite=policy)


def test_a_loss_scale_may_be_traced() -> None:
    grads = arrays((6, 5), (7,))

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(g: Any, scale: Any) -> Any:
        return gc.clip_by_global_norm(g, 1.0, loss_scale=scale, nonfinite="skip")

    for scale in (1024.0, 0.3):
        made, info = step(grads, tf.constant(scale))
        same, reference = gc.clip_by_global_norm(grads, 1.0, loss_scale=scale)
        assert float(info.norm) == pytest.approx(reference.norm, rel=1e-6)
        np.testing.assert_allclose(made[0], same[0], rtol=1e-6)
    assert bool(step(grads, tf.constant(0.0))[1].skipped)


def test_raise_is_refused_by_an_error_of_this_library_s() -> None:
    """AutoGraph puts errors of its own in the place of others'."""

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(g: Any) -> Any:
        return gc.clip_by_global_norm(g, 1.0)

    with pytest.raises(gc.InvalidArgumentError, match=r"where no value is there to raise on. Pass nonfinite='skip'"):
        step(arrays((3,)))


def test_in_place_and_plans_are_refused() -> None:
    with pytest.raises(gc.ReadOnlyError, match="Use clip_by_global_norm, which returns new arrays"):
        tf.function(lambda g: gc.clip_by_global_norm_(g, 1.0, nonfinite="skip").norm)(arrays((3,)))
    with pytest.raises(gc.InvalidArgumentError, match="a plan is for arrays in memory"):
        tf.function(lambda g: gc.plan(g, gc.GlobalNorm(1.0), nonfinite="skip").info)(arrays((3,)))


def test_a_shape_that_is_not_known_is_refused() -> None:
    step = tf.function(lambda g: gc.clip_by_norm([g], 1.0, nonfinite="skip")[0])
    for shape in ((None, 3), None):
        with pytest.raises(gc.UnsupportedArrayError, match=r"is not known yet\. Fix its shape first"):
            step.get_concrete_function(tf.TensorSpec(shape))


def test_autograph_leaves_the_library_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """It rewrites what a ``tf.function`` calls, and warns of what it cannot rewrite."""
    clipper = gc.Clipper(gc.GlobalNorm(1.0))
    assert all(hasattr(thing, "autograph_info__") for thing in (gc.clip, gc.GlobalNorm, clipper, clipper.step_))

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(g: Any) -> Any:
        total = tf.constant(0.0, tf.float64)
        for _ in tf.range(2):  # what AutoGraph is there for
            g, info = gc.clip(g, gc.GlobalNorm(1.0), nonfinite="skip")
            total += info.norm
        return total, gc.global_norm(g)

    total, norm = step(arrays((3,)))
    assert float(total) > float(norm) == pytest.approx(1.0, rel=1e-6)
    assert "AutoGraph" not in "".join(capfd.readouterr())


def test_the_report_can_be_returned_and_looked_at() -> None:
    grads = {"w": arrays((4, 2))[0], "b": None, "c": arrays((3,))[0]}
    clipped, info = tf.function(lambda g: gc.clip_by_norm(g, 1.0, nonfinite="skip"))(grads)
    _, reference = gc.clip_by_norm(grads, 1.0)
    assert list(clipped) == ["w", "b", "c"]
    assert list(info.norms) == list(reference.norms) == ["w", "c"]
    assert isinstance(info.norm, tf.Tensor)
    assert info.backend == "array_api"
    for path, scale in reference.scales.items():
        assert float(info.scales[path]) == pytest.approx(scale, rel=2**-22)


def test_constants_and_variables_beside_traced_ones() -> None:
    variable, constant = tf.Variable([3.0], trainable=False), tf.constant([4.0])

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(g: Any) -> Any:
        return gc.clip_by_global_norm([g, constant, variable, np.full(1, 12.0, np.float32)], 1.0, nonfinite="skip")

    assert float(step(tf.constant([84.0]))[1].norm) == 85.0
    variable.assign([-4.0])
    assert float(step(tf.constant([0.0]))[1].norm) == pytest.approx(176**0.5)


def test_agc_with_variables() -> None:
    weights, (grads,) = tf.Variable(arrays((6, 5))[0]), arrays((6, 5))

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]
    def step(g: Any) -> Any:
        return gc.adaptive_clip([g], [weights], 0.1, axis="all_but_last", nonfinite="skip")

    made, info = step(grads)
    same, reference = gc.adaptive_clip([grads], [weights], 0.1, axis="all_but_last")
    np.testing.assert_allclose(made[0], same[0], rtol=2**-21)
    assert float(info.scale) == pytest.approx(reference.scale, rel=2**-22)


@pytest.mark.parametrize("function", [True, False])
def test_derivatives_go_through_as_through_tensorflow_s_own(function: bool) -> None:
    grads, weights = arrays((4, 3), (5,)), arrays((4, 3), (5,))

    def ours(g: Any) -> Any:
        return gc.clip_by_global_norm(g, 1.0, nonfinite="skip")[0]

    def slopes(clip: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(grads)
            made = tf.function(clip)(grads)
            total = tf.add_n([tf.reduce_sum(tf.sin(w) * x) for w, x in zip(weights, made, strict=True)])
        return tape.gradient(total, grads)

    for a, b in zip(slopes(ours), slopes(lambda g: tf.clip_by_global_norm(g, 1.0)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    if function:
        zeros = [tf.zeros(3)]
        with tf.GradientTape() as tape:
            tape.watch(zeros)
            total = tf.reduce_sum(tf.function(ours)(zeros)[0])
        assert tape.gradient(total, zeros)[0].numpy().tolist() == [1.0, 1.0, 1.0]


def test_training_goes_the_same_way_as_with_tensorflow_s_own() -> None:
    rng = np.random.default_rng(1)
    x, y = tf.constant(rng.standard_normal((64, 8))), tf.constant(rng.standard_normal((64, 1)) * 30)

    def train(clip: Any) -> Any:
        w = tf.Variable(tf.zeros((8, 1), tf.float64))

        @tf.function  # type: ignore[untyped-decorator, unused-ignore]
        def step() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((x @ w - y) ** 2)
            w.assign_sub(0.1 * clip(tape.gradient(loss, [w]))[0])

        for _ in range(20):
            step()
        return w.numpy()

    ours = train(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip")[0])
    np.testing.assert_allclose(ours, train(lambda g: tf.clip_by_global_norm(g, 1.0)[0]), rtol=1e-9)


@pytest.mark.parametrize("jit", [False, True])
def test_bounds_and_whole_numbers_that_are_traced(jit: bool) -> None:
    (x,) = arrays((50,))
    bound = tf.Variable(2.0)
    clip = tf.function(lambda x: gc.clip_by_global_norm(x, bound, nonfinite="skip")[0], jit_compile=jit)
    for value in (2.0, 4.0, 0.0):
        bound.assign(value)
        np.testing.assert_allclose(clip(x), gc.clip_by_global_norm(x, value)[0], rtol=2.0**-22)
    norm = tf.function(lambda x, s: gc.clip_by_norm(x, 1.0, loss_scale=s, nonfinite="skip")[1].norm, jit_compile=jit)
    assert float(norm(x, tf.constant(2))) == pytest.approx(gc.global_norm(x) / 2, rel=NORM)
    with pytest.raises(gc.InvalidArgumentError, match="it is traced: what stands in its place is known when"):
        tf.function(lambda x: gc.clip_by_value(x, bound, nonfinite="skip")[0], jit_compile=jit)(x)


def test_the_slope_of_the_largest() -> None:
    def slope(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            made, _ = gc.clip_by_global_norm(x, 1.0, ord=math.inf, nonfinite="skip")
            y = tf.reduce_sum(made * tf.range(3.0))
        return tape.gradient(y, x)

    np.testing.assert_allclose(tf.function(slope)(tf.constant([3.0, 4.0, 12.0])), [0, 1 / 12, -4 / 144], rtol=1e-6)


def test_a_bound_of_zero_makes_zeros_of_what_is_flushed() -> None:
    clip = tf.function(lambda x: gc.clip_by_global_norm(x, 0.0, nonfinite="skip")[0])
    assert clip(tf.constant([1e-40, -2.0])).numpy().tolist() == [0.0, 0.0]
    assert clip(tf.constant([1e-310, 3e-310], tf.float64)).numpy().tolist() == [0.0, 0.0]
