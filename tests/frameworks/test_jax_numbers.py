"""Numbers that are traced with the gradients: bounds, loss scales, derivatives, reports; and those at the ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

jax: Any = pytest.importorskip("jax")
jnp: Any = jax.numpy
NORM, ELEMENT = 2.0**-22, 2.0**-19  # testing.approximate: what float32 can promise
traced = pytest.mark.shows("jax", "under its compiler", "approximate")


def close(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-126).all())


@traced
def test_loss_scales_known_and_traced() -> None:
    given = [jnp.asarray(np.random.default_rng(0).standard_normal(100) * 1024, "float32")]
    expected, known = gc.clip_by_global_norm(given, 1.0, loss_scale=1024.0)
    for clip in (
        lambda g, s: gc.clip_by_global_norm(g, 1.0, loss_scale=1024.0, nonfinite="skip"),
        lambda g, s: gc.clip_by_global_norm(g, 1.0, loss_scale=s, nonfinite="skip"),
    ):
        made, info = jax.jit(clip)(given, jnp.float32(1024))
        assert close(made[0], expected[0])
        assert close(info.norm, known.norm, NORM)
    for bad in (0.0, -1.0, math.nan, math.inf):
        made, info = jax.jit(clip)(given, jnp.float32(bad))
        assert info.skipped
        assert (made[0] == given[0]).all()
    made, _ = jax.jit(lambda s: gc.clip_by_global_norm([np.full(3, 2.0)], 9.0, loss_scale=s, nonfinite="skip"))(2)
    assert made[0].tolist() == [1.0] * 3
    with pytest.raises(gc.InvalidArgumentError, match="loss_scale is traced, and the gradients are not"):
        jax.jit(lambda s: gc.clip_by_global_norm_([np.ones(3)], 1.0, loss_scale=s))(jnp.float32(2))
    with pytest.raises(gc.InvalidArgumentError, match=r"loss_scale.*it is an array of shape \(2,\)"):
        jax.jit(lambda s: gc.clip_by_global_norm([np.ones(3)], 1.0, loss_scale=s)[0])(jnp.ones(2))


@traced
def test_bounds_from_a_schedule() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(500), "float32")
    for clip in (gc.clip_by_global_norm, gc.clip_by_norm):
        once = jax.jit(lambda x, m, clip=clip: clip([x, x[:7]], m, nonfinite="skip"))
        for bound in (0.0, 0.3, 1e9):
            made, info = once(x, bound)
            expected, known = clip([x, x[:7]], bound)
            assert all(close(a, b) for a, b in zip(made, expected, strict=True))
            assert bool(info.clipped) == known.clipped
        for bound in (-1.0, math.nan, math.inf):
            made, info = once(x, bound)
            assert (made[0] == x).all()
            assert (bool(info.skipped), bool(info.clipped), float(info.scale)) == (True, False, 1.0)
            assert info.clipped_norm == info.norm
            assert gc.explain(info).endswith("was no number of its kind, so the step was skipped")
    # The slope by the bound of a clipped array is its direction.
    slope = jax.grad(lambda m: gc.clip_by_norm(x, m, nonfinite="skip")[0] @ x)(1.0)
    assert float(slope) == pytest.approx(float(jnp.linalg.norm(x)), rel=1e-5)
    for call in (
        lambda m: gc.clip_by_value(x, m),
        lambda m: gc.clip_by_group_norm([x], {"a": m}, groups=lambda p: "a"),
    ):
        with pytest.raises(gc.InvalidArgumentError, match="it is traced: what stands in its place is known when"):
            jax.jit(call)(1.0)


@traced
@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
@pytest.mark.parametrize("last", [4.0, math.inf])
def test_where_no_bound_is_given_nothing_is_done_whatever_the_policy(policy: str, last: float) -> None:
    g = jnp.asarray([3.0, last])
    for numbers in ({"max_norm": math.nan}, {"max_norm": 1.0, "loss_scale": 0.0}):
        made, info = jax.jit(lambda numbers: gc.clip_by_global_norm([g], **numbers, nonfinite=policy))(numbers)
        assert (made[0] == g).all()
        assert (bool(info.skipped), float(info.scale), float(info.scales["0"])) == (True, 1.0, 1.0)
        assert info.clipped_norm == info.norm


@traced
def test_reports_of_many_calls_are_taken_one_by_one() -> None:
    _, info = jax.vmap(lambda x: gc.clip_by_global_norm(x, 1.0, nonfinite="skip"))(jnp.asarray([[3.0, 4.0]] * 3))
    with pytest.raises(gc.InvalidArgumentError, match=r"a report for each of 3 calls.*jax\.tree\.map"):
        gc.explain(info)
    assert gc.explain(jax.tree.map(lambda x: x[1], info)) == "norm 5 over 1 array; clipped to 1"


@traced
def test_derivatives_of_integers_hold_no_numbers() -> None:
    def slopes(params: Any) -> Any:
        return jax.grad(lambda p: (p["w"] ** 2).sum(), allow_int=True)(params)

    params = {"w": jnp.ones(3), "step": jnp.arange(2)}
    for clip in (gc.clip_by_global_norm, jax.jit(lambda g, m: gc.clip_by_global_norm(slopes(g), m, nonfinite="skip"))):
        with pytest.raises(gc.UnsupportedArrayError, match=r"'step': it holds no numbers.*put None in its place"):
            clip(slopes(params) if clip is gc.clip_by_global_norm else params, 1.0)
    made, _ = gc.clip_by_global_norm({**slopes(params), "step": None}, 1.0)
    assert made["step"] is None


@traced
def test_norms_beyond_float32_and_bounds_beyond_it() -> None:
    huge = jnp.full(3, 3e38, "float32")
    made, info = jax.jit(lambda g: gc.clip_by_global_norm(g, 1e39, nonfinite="skip"))(huge)
    assert (made == huge).all()
    assert not info.clipped
    assert float(info.norm) == float(np.finfo(np.float32).max)
    made, info = jax.jit(lambda g: gc.clip_by_global_norm(g, 4e38, nonfinite="skip"))(huge)
    assert close(made, np.full(3, 4e38 / math.sqrt(3)))


@traced
def test_a_bound_of_zero_makes_zeros_of_what_is_flushed() -> None:
    made, _ = jax.jit(lambda g: gc.clip_by_global_norm(g, 0.0, nonfinite="skip"))(jnp.float32([1e-40, -3.0]))
    assert made.tolist() == [0.0, 0.0]
    made, _ = jax.jit(lambda g: gc.clip_by_norm(g, 0.0, nonfinite="skip"))(jnp.float32([1e-40]))
    assert made.tolist() == [0.0]


@traced
def test_derivatives() -> None:
    """Of ``max_norm · x / ‖x‖``, and of the identity inside, and at 0, where a norm has none."""

    def clipped(x: Any) -> Any:
        return gc.clip_by_global_norm([x], 1.0, nonfinite="propagate")[0][0]

    def plain(x: Any) -> Any:
        return x * jnp.minimum(1.0, 1.0 / jnp.sqrt(jnp.sum(x * x)))

    x = jnp.asarray(np.random.default_rng(0).standard_normal(2000), "float32")
    v = jnp.asarray(np.random.default_rng(1).standard_normal(2000), "float32")
    for f in (lambda f: jax.grad(lambda x: f(x) @ v), lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]):
        np.testing.assert_allclose(f(clipped)(x), f(plain)(x), rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(f(clipped)(x * 1e-6), f(lambda x: x)(x * 1e-6))
        assert jnp.isfinite(f(clipped)(jnp.zeros(2000))).all()
    jac = jax.jacobian(clipped)(x[:5] * 9)
    np.testing.assert_allclose(jac, jax.jacobian(plain)(x[:5] * 9), rtol=1e-4, atol=1e-6)


@traced
def test_derivatives_of_the_largest_and_of_what_is_given_up() -> None:
    a, x = jnp.arange(3.0), jnp.array([3.0, 4.0, 12.0])

    def clipped(g: Any) -> Any:
        return gc.clip_by_global_norm(g, 1.0, ord=math.inf, nonfinite="skip")[0] @ a

    np.testing.assert_allclose(jax.grad(clipped)(x), jax.grad(lambda g: g @ a / jnp.max(g))(x), rtol=1e-4)
    assert jax.grad(lambda g: gc.global_norm(g, math.inf))(x).tolist() == [0.0, 0.0, 1.0]
    bad = jnp.array([1.0, math.nan, 2.0])
    for policy, slopes in (("zero", [0.0] * 3), ("skip", [1.0] * 3)):
        f = jax.grad(lambda g, policy=policy: gc.clip_by_global_norm(g, 1.0, nonfinite=policy)[0].sum())
        assert f(bad).tolist() == slopes
    with jax.debug_nans(True):
        jax.grad(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip")[0].sum())(x)


@traced
def test_reports_of_what_is_there_and_of_nothing() -> None:
    x = jnp.array([3.0, 4.0])
    nothing, info = jax.jit(lambda: gc.clip_by_global_norm({"a": None}, 1.0, nonfinite="skip"))()
    assert (nothing, info.norm) == ({"a": None}, 0.0)
    info = jax.jit(lambda: gc.clip_by_global_norm(x, 1.0))()[1]
    assert info.norm == 5.0
    _, info = jax.jit(lambda x: gc.clip_by_global_norm(x, 1.0, nonfinite="skip"))(x)
    assert gc.explain(info) == "norm 5 over 1 array; clipped to 1"
    assert info.to_host().norms == {"0": 5.0}
    _, info = jax.jit(lambda x: gc.clip_by_global_norm([x], 1.0, nonfinite="skip"))(x * math.nan)
    assert info.culprits == ["0"]
