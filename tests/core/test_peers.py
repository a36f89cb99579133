"""What other clippers get silently wrong, and what their users complain of. None of it here.

Each test names its source, a repository and an issue or pull request, or the file it was read in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc

Array = npt.NDArray[Any]
F32 = np.float32
BOTH = pytest.mark.parametrize("backend", [None, "numpy"])


def f32(*values: float) -> Array:
    return np.array(values, F32)


def true_norm(*arrays: Array) -> float:
    """In float64, by a routine that rounds once."""
    return math.sqrt(math.fsum(float(x) ** 2 for array in arrays for x in array.ravel()))


# ------------------------------------------------------------------ overflow, precision, dtype


@BOTH
def test_finite_gradients_never_have_an_infinite_norm(backend: str | None) -> None:
    """pytorch#46849, pytorch#193006: 1e20 squared overflows float32, and everything becomes 0 or NaN."""
    grads = [f32(1e20, 1e20), f32(-1e20)]
    info = gc.clip_by_global_norm_(grads, 1.0, backend=backend)
    assert info.norm == pytest.approx(math.sqrt(3) * 1e20, rel=1e-7)
    np.testing.assert_allclose(np.concatenate(grads), f32(1, 1, -1) / math.sqrt(3), rtol=1e-6)
    extreme = [np.full(3, 1.7e308)]
    info = gc.clip_by_global_norm_(extreme, 1.0, backend=backend)
    assert math.isfinite(info.norm)
    np.testing.assert_allclose(extreme[0], np.full(3, 1 / math.sqrt(3)), rtol=1e-14)


@BOTH
def test_small_gradients_never_have_a_zero_norm(backend: str | None) -> None:
    """jax#5816: the squares underflow."""
    assert gc.global_norm([f32(3e-30, 4e-30)], backend=backend) == pytest.approx(5e-30, rel=1e-7)
    assert gc.global_norm([np.array([3e-200, 4e-200])], backend=backend) == pytest.approx(5e-200, rel=1e-15)
    assert gc.global_norm([np.array([5e-324])], backend=backend) == 5e-324


@BOTH
def test_half_precision_norms_above_its_range(backend: str | None) -> None:
    """torch ForeachReduceOp.cu, fairscale#263, apex#92: the norm is cast to float16, and 65504 is its end."""
    grads = [np.full(100, 60000, np.float16)]
    info = gc.clip_by_global_norm_(grads, 1.0, backend=backend)
    assert type(info.norm) is float
    assert info.norm == 600000.0
    np.testing.assert_allclose(grads[0].astype(float), 0.1, rtol=2**-10)


@BOTH
def test_three_hundred_in_half_precision_is_not_clipped_to_zero(backend: str | None) -> None:
    """burn#5699: 300² is beyond float16. optax tree.norm squares in the leaf's dtype as well."""
    g = np.array([300.0], np.float16)
    assert gc.clip_by_global_norm_([g], 1.0, backend=backend).norm == 300.0
    assert abs(float(g[0]) - 1) <= 2**-11


@BOTH
def test_bfloat16_norms_are_not_rounded_to_bfloat16(backend: str | None) -> None:
    """fairscale#1092: logged norms of 704, 720, 724, 728. A true 1.4509 is reported as 1.4453."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    g = np.array([1.4453125, 0.12695312], ml_dtypes.bfloat16)
    norm = gc.global_norm([g], backend=backend)
    assert norm == true_norm(g.astype(float))
    assert round(norm, 4) == 1.4509
    assert float(ml_dtypes.bfloat16(norm)) == 1.453125 != norm


@pytest.mark.jit
@pytest.mark.parametrize(("size", "value"), [(10**8, 1.0), (2**24 + 4096, 1.0), (10**6, 0.1)])
def test_norms_of_many_elements_do_not_saturate(size: int, value: float) -> None:
    """pytorch#65815: 1e8 ones had norm 4096, for 2^24 + 1 is 2^24 in float32. Also pytorch#186881."""
    g = np.full(size, value, F32)
    assert gc.global_norm([g]) == pytest.approx(float(F32(value)) * math.sqrt(size), rel=2**-46)


@BOTH
def test_sums_of_unlike_magnitudes_do_not_saturate(backend: str | None) -> None:
    """The same of pytorch#65815 in little: one element of 4096 hides 8192 ones from a float32 sum."""
    g = np.ones(8193, F32)
    g[0] = 4096
    naive = F32(0)
    for x in g * g:
        naive += x
    assert float(naive) == 4096.0**2
    assert gc.global_norm([g], backend=backend) == math.sqrt(4096**2 + 8192)


def test_mixed_dtypes_in_one_call() -> None:
    """pytorch#12159."""
    grads = [np.array([3], np.float16), f32(4), np.array([12.0])]
    assert gc.clip_by_global_norm_(grads, 6.5).norm == 13.0
    assert [g.dtype.name for g in grads] == ["float16", "float32", "float64"]
    assert [float(g[0]) for g in grads] == pytest.approx([1.5, 2, 6], rel=2**-10)


def test_complex_gradients() -> None:
    """optax#144."""
    g = np.array([3 + 4j, 12j], np.complex64)
    clipped, info = gc.clip_by_global_norm([g], 6.5)
    assert info.norm == 13.0
    np.testing.assert_allclose(clipped[0], g / 2, rtol=1e-6)


# ------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("bad", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["clip_by_global_norm_", "clip_by_norm_", "clip_by_value_"])
def test_thresholds_that_mean_nothing_are_refused(bad: float, name: str) -> None:
    """pytorch#31367 (open since 2019), strands#2028: -1 flips every sign. tf#109327: inf. DeepSpeed#8614: -1."""
    g = f32(3, 4)
    with pytest.raises(gc.InvalidArgumentError):
        getattr(gc, name)([g], bad)
    assert g.tolist() == [3.0, 4.0]


@BOTH
@pytest.mark.parametrize("values", [(3.0, 4.0), (0.0, -0.0)])
def test_a_threshold_of_zero_gives_zeros(values: tuple[float, ...], backend: str | None) -> None:
    """optax#1752: 0/0 at max_norm=0. Paddle#30777: gradients that are zero."""
    g = f32(*values)
    info = gc.clip_by_global_norm_([g], 0.0, backend=backend)
    assert g.tolist() == [0.0, 0.0]
    assert info.clipped_norm == 0.0
    assert gc.clip_by_global_norm_([g], 1.0, backend=backend).scale == 1.0


@BOTH
def test_no_epsilon_at_a_small_threshold(backend: str | None) -> None:
    """goodfire-ai/spd#643: norm + 1e-6 is wrong by 1e-4 at a bound of 0.01."""
    g = np.array([0.02, 0.0])
    info = gc.clip_by_global_norm_([g], 0.01, backend=backend)
    assert 0.01 * (1 - 1e-14) < g[0] <= 0.01
    assert info.clipped_norm == pytest.approx(0.01, rel=1e-14)


@BOTH
def test_at_the_threshold_nothing_happens(backend: str | None) -> None:
    """torch multiplies by 5/(5 + 1e-6) here, and by 1.0 where it does not clip."""
    g = f32(3, 4)
    g.flags.writeable = False
    clipped, info = gc.clip_by_global_norm([g], 5.0, backend=backend)
    assert (info.clipped, info.scale, info.norm, info.clipped_norm) == (False, 1.0, 5.0, 5.0)
    assert clipped[0].tobytes() == g.tobytes()
    above = gc.clip_by_global_norm([g], float(np.nextafter(5.0, 0)), backend=backend)[1]
    assert above.clipped


@BOTH
@pytest.mark.parametrize("rule", [gc.GlobalNorm(10.0), gc.ArrayNorm(10.0), gc.Value(10.0)], ids=repr)
def test_small_gradients_are_never_amplified(rule: gc.GlobalNorm, backend: str | None) -> None:
    """pytorch_optimizer clip_grad_norm(sync=True), pytorch#151554: a coefficient that is not clamped to 1."""
    g = f32(0.3, -0.4, 1e-42)
    before = g.tobytes()
    assert gc.clip_([g], rule, backend=backend).scale == 1.0
    assert g.tobytes() == before


@BOTH
def test_a_tiny_coefficient_loses_no_bits(backend: str | None) -> None:
    """Megatron-LM#5394, #5395: a norm of 5e7 and more. Below 2^-126 a float32 factor would be subnormal."""
    g = f32(3e38, 1e38)
    gc.clip_by_global_norm_([g], 1e-3, backend=backend)
    np.testing.assert_allclose(g.astype(float), np.array([3, 1]) / math.sqrt(10) * 1e-3, rtol=2**-22)
    assert true_norm(g) <= 1e-3


# -------------------------------------------------------------------------------- orders of norms


@BOTH
def test_the_infinity_norm_is_not_one(backend: str | None) -> None:
    """tt-metal#55587, torchrec#3199: x^(1/inf) is 1."""
    grads = [f32(-7, 2), f32(3)]
    info = gc.clip_by_global_norm_(grads, 3.5, ord=math.inf, backend=backend)
    assert info.norm == 7.0
    np.testing.assert_allclose(np.concatenate(grads), [-3.5, 1, 1.5], rtol=1e-6)


@BOTH
def test_empty_tensors_have_an_infinity_norm_of_zero(backend: str | None) -> None:
    """torchrec#3891, Megatron-LM#5529: the maximum of nothing raises."""
    empty = np.empty((0, 4), F32)
    assert gc.global_norm([empty], ord=math.inf, backend=backend) == 0.0
    info = gc.clip_by_norm_([empty, f32(-8), empty[:, :0]], 4.0, ord=math.inf, backend=backend)
    assert info.norms == {"0": 0.0, "1": 8.0, "2": 0.0}


@BOTH
@pytest.mark.parametrize("ord", [1.0, 1.5, 2.0, 3.0, 7.0, math.inf])
def test_norms_of_arrays_combine_by_the_same_order(ord: float, backend: str | None) -> None:
    """DeepSpeed#8313: the norms of the arrays were squared for every p."""
    grads = [f32(1, -2, 3), f32(4), f32(0, 6)]
    joined = np.concatenate(grads).astype(float)
    expected = float(np.linalg.norm(joined, ord))
    info = gc.clip_by_global_norm(grads, 1.0, ord=ord, backend=backend)[1]
    assert info.norm == pytest.approx(expected, rel=1e-12)
    assert gc.global_norm([joined.astype(F32)], ord=ord) == pytest.approx(info.norm, rel=1e-12)


# -------------------------------------------------------------------------------------- scopes


@BOTH
def test_group_and_array_norms_are_applied_where_they_belong(backend: str | None) -> None:
    """autoclip 0.2.1 QuantileClip holds each tensor against the quantile of the *global* norm."""
    grads = {"a": f32(30, 40), "b": f32(0.3, 0.4), "c": f32(6, 8)}
    arrays, info = gc.clip_by_norm(grads, 5.0, backend=backend)
    assert info.scales["b"] == 1.0
    assert arrays["b"].tobytes() == grads["b"].tobytes()
    np.testing.assert_allclose(arrays["a"], [3, 4], rtol=1e-6)
    np.testing.assert_allclose(arrays["c"], [3, 4], rtol=1e-6)
    limits = {"big": 25.0, "small": 0.1}
    groups, info = gc.clip_by_group_norm(grads, limits, groups={"small": ["b"], "big": ["a", "c"]}, backend=backend)
    factor = 25 / math.hypot(50, 10)
    np.testing.assert_allclose(groups["a"], factor * grads["a"], rtol=1e-6)
    np.testing.assert_allclose(groups["c"], factor * grads["c"], rtol=1e-6)
    np.testing.assert_allclose(groups["b"], [0.06, 0.08], rtol=1e-6)


def test_tied_weights_count_once() -> None:
    """Megatron-LM#7228: √2 too large. pytorch#88955: counted twice under NO_SHARD."""
    tied = f32(3, 4)
    assert gc.global_norm({"embed": tied, "head": tied}) == 5.0
    gc.clip_by_global_norm_({"embed": tied, "head": tied}, 2.5)
    np.testing.assert_allclose(tied, [1.5, 2.0], rtol=1e-6)


# ------------------------------------------------------------------------------- reports and slips


def test_both_norms_are_reported() -> None:
    """verl#2282, DeepSpeed#7220, optax#326: "the logged norm is above max_norm, clipping does not work"."""
    g = f32(30, 40)
    info = gc.clip_by_global_norm_([g], 1.0)
    assert info.norm == 50.0
    assert info.clipped_norm == pytest.approx(true_norm(g), rel=2**-23)
    assert info.clipped_norm <= 1.0


def test_an_exhausted_generator_is_an_error() -> None:
    """pytorch#148259, torchtitan#1258: nothing is clipped, and nothing is said."""
    grads = (g for g in [f32(3, 4)])
    assert gc.clip_by_global_norm_(grads, 1.0).norm == 5.0
    with pytest.raises(gc.ContainerError, match="exhausted"):
        gc.clip_by_global_norm_(grads, 1.0)


def test_clipping_is_not_done_to_a_copy() -> None:
    """pytorch_optimizer SPAM.step: ``grad[mask].sign_().mul_()`` writes into what nobody keeps."""
    whole = f32(1, 50, -2, -60)
    gc.clip_by_value_([whole[1::2]], 5.0)
    assert whole.tolist() == [1.0, 5.0, -2.0, -5.0]


@BOTH
@pytest.mark.parametrize("scale", [2.0**16, 1000.0])
def test_the_loss_scale_is_divided_out_once(scale: float, backend: str | None) -> None:
    """transformers#23935, accelerate#641 (twice); DeepSpeed#7839 (by 65536); Pytorch-UNet#468 (clip first)."""
    true = [np.array([30.0, 40.0]), np.array([0.0, 120.0])]
    scaled = [g * scale for g in true]
    info = gc.clip_by_global_norm_(scaled, 13.0, loss_scale=scale, backend=backend)
    assert info.norm == pytest.approx(130.0, rel=1e-15)
    assert info.scale == pytest.approx(0.1 / scale, rel=1e-14)
    for g, t in zip(scaled, true, strict=True):
        np.testing.assert_allclose(g, t / 10, rtol=1e-14)
    small = [np.array([0.3, 0.4]) * scale]
    assert gc.clip_by_global_norm_(small, 13.0, loss_scale=scale, backend=backend).clipped is False
    np.testing.assert_allclose(small[0], [0.3, 0.4], rtol=1e-15)  # unscaled all the same
