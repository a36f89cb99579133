"""Infinities and NaNs, and writes that need not be: what other clippers do with them.

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
BAD = [math.nan, math.inf, -math.inf]
BOTH = pytest.mark.parametrize("backend", [None, "numpy"])
RULES: list[Any] = [gc.GlobalNorm(1.0), gc.ArrayNorm(1.0), gc.Value(1.0), gc.GlobalNorm(1.0, ord=math.inf)]


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


@BOTH
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("bad", BAD)
def test_by_default_the_culprits_are_named_and_nothing_is_written(rule: Any, bad: float, backend: str | None) -> None:
    """pytorch#46849 (silent zeros and NaNs), pytorch#53843, miles#2198 ("which parameter?")."""
    arrays = [f32(30, 40), f32(0, bad, bad), f32(5), f32(bad)]
    before = [array.tobytes() for array in arrays]
    grads = {"good": arrays[0], "layers": arrays[1:3], "head": arrays[3]}
    with pytest.raises(gc.NonFiniteGradientError) as caught:
        gc.clip_(grads, rule, backend=backend)
    counts = ("0 inf, 2 NaN", "0 inf, 1 NaN") if math.isnan(bad) else ("2 inf, 0 NaN", "1 inf, 0 NaN")
    assert f"'layers.0' ({counts[0]}), 'head' ({counts[1]})" in caught.value.seen
    assert "good" not in caught.value.seen
    assert "No gradient was touched" in caught.value.cure
    assert [array.tobytes() for array in arrays] == before


@BOTH
@pytest.mark.parametrize("bad", BAD)
def test_zero_times_nan_is_not_zero(bad: float, backend: str | None) -> None:
    """OLMo-core SkipStepAdamW, optax zero_nans (NaN alone), Keras (all NaN): a skipped step must leave zeros."""
    grads = [f32(3, bad), f32(-4)]
    info = gc.clip_by_global_norm_(grads, 1.0, nonfinite="zero", backend=backend)
    assert info.skipped
    assert info.culprits == ["0"]
    assert [g.tobytes() for g in grads] == [f32(0, 0).tobytes(), f32(0).tobytes()]  # +0, not -0


@BOTH
@pytest.mark.parametrize("bad", BAD)
def test_a_skipped_step_says_so_without_a_sentinel(bad: float, backend: str | None) -> None:
    """DeepSpeed#8614: a norm of -1 stands for "not finite", and turns 2.0 into -2.000002."""
    grads = [f32(2, bad), f32(2)]
    before = [g.tobytes() for g in grads]
    info = gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip", backend=backend)
    assert info.skipped
    assert not math.isfinite(info.norm)
    assert info.norm != -1
    assert info.nonfinite == 1
    assert [g.tobytes() for g in grads] == before


@BOTH
def test_one_bad_step_does_not_poison_the_next(backend: str | None) -> None:
    """ZClip _update_ema, OLMo-core, MaxText: one NaN norm enters the state, and every later step suffers."""
    rule = gc.GlobalNorm(1.0)
    for policy in ("skip", "zero", "propagate", "sanitize"):
        gc.clip_([f32(3, math.nan)], rule, nonfinite=policy, backend=backend)
    with pytest.raises(gc.NonFiniteGradientError):
        gc.clip_([f32(math.inf)], rule, backend=backend)
    fresh, expected = f32(3, 4), gc.clip_by_global_norm([f32(3, 4)], 1.0)[0][0]
    assert gc.clip_([fresh], rule, backend=backend).norm == 5.0
    assert fresh.tobytes() == expected.tobytes()


@BOTH
def test_clipping_by_value_keeps_nan(backend: str | None) -> None:
    """tf#43433, tf#7014: NaN becomes the bound on one device and stays on the other. array-api#813: it stays."""
    g = f32(math.nan, 5, -math.inf, math.inf, 0.5, -0.0)
    gc.clip_by_value_([g], (-1.0, 2.0), nonfinite="propagate", backend=backend)
    assert math.isnan(g[0])
    assert g[1:].tobytes() == f32(2, -1, 2, 0.5, -0.0).tobytes()


@BOTH
def test_sanitizing_looks_at_what_is_left(backend: str | None) -> None:
    """optax zero_nans leaves infinities; deepmd-kit#5519 asks for a guard on the device."""
    g = f32(math.nan, 3, 4)
    info = gc.clip_by_global_norm_([g], 1.0, nonfinite="sanitize", backend=backend)
    assert (info.norm, info.nonfinite, info.skipped) == (5.0, 1, False)
    np.testing.assert_allclose(g, [0, 0.6, 0.8], rtol=1e-6)
    g = f32(-math.inf, 1, math.nan)
    gc.clip_by_global_norm_([g], 1.0, nonfinite="sanitize", backend=backend)
    np.testing.assert_allclose(g, [-1, 0, 0], rtol=1e-6, atol=1e-30)


@BOTH
def test_propagating_is_what_torch_does(backend: str | None) -> None:
    """torch.nn.utils.clip_grad_norm_: an infinite norm gives zeros and a NaN; a NaN norm gives NaNs."""
    g = f32(math.inf, 3, -4)
    gc.clip_by_global_norm_([g], 1.0, nonfinite="propagate", backend=backend)
    assert math.isnan(g[0])
    assert g[1:].tolist() == [0.0, 0.0]
    g = f32(math.nan, 3, -4)
    gc.clip_by_global_norm_([g], 1.0, nonfinite="propagate", backend=backend)
    assert np.isnan(g).all()


@pytest.mark.parametrize("policy", ["raise", "skip", "zero", "sanitize", "propagate"])
def test_out_of_place_the_gradients_stay(policy: str) -> None:
    grads = [f32(30, 40), f32(math.nan, 1)]
    before = [g.tobytes() for g in grads]
    if policy == "raise":
        with pytest.raises(gc.NonFiniteGradientError):
            gc.clip_by_global_norm(grads, 1.0)
    else:
        clipped, info = gc.clip_by_global_norm(grads, 1.0, nonfinite=policy)
        assert info.culprits == ["1"]
        assert not any(np.shares_memory(new, old) for new, old in zip(clipped, grads, strict=True))
    assert [g.tobytes() for g in grads] == before


# --------------------------------------------------------------------- writes that need not be


class Watched:
    """A writable array that says when a backend writes to it."""

    name = "watched"

    def __init__(self) -> None:
        from gradclip_core.reference import BACKEND

        self.backend = BACKEND
        self.writes = 0

    def not_supported_reasons(self, request: Any) -> list[str]:
        return self.backend.not_supported_reasons(request)

    def measure(self, buffers: Any, what: Any) -> Any:
        return self.backend.measure(buffers, what)

    def apply(self, buffers: Any, out: Any, actions: Any) -> None:
        self.writes += 1
        self.backend.apply(buffers, out, actions)


@pytest.mark.parametrize("rule", [gc.GlobalNorm(50.0), gc.ArrayNorm(50.0), gc.Value(40.0)], ids=repr)
def test_unclipped_memory_is_not_rewritten(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's clip_grad.py and optax always multiply, by 1.0 too: three times the traffic (nnabla-ext-cuda#163)."""
    from gradclip_core import registry

    watched = Watched()
    monkeypatch.setitem(registry.BACKENDS, "watched", ("nowhere:AT_ALL", "none"))
    monkeypatch.setitem(registry._loaded, "watched", watched)
    grads = [f32(30, 40), np.zeros(0), f32(0.0)]
    before = [g.tobytes() for g in grads]
    assert gc.clip_(grads, rule, backend="watched").clipped is False
    assert watched.writes == 0
    assert [g.tobytes() for g in grads] == before
    gc.clip_(grads, rule, loss_scale=2.0, backend="watched")  # and the watch can see a write
    assert watched.writes == 1
    assert grads[0].tolist() == [15.0, 20.0]
