"""What each policy makes of values that are not finite, over the same containers and arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from tests.core import exact
from tests.property.strategies import (
    FEW,
    POLICIES,
    RULES,
    Array,
    array,
    containers,
    contents,
    leaves,
    mapped,
    rules,
    writable,
)


@rules
@FEW
@given(grads=containers(array(nonfinite=True)), scale=st.sampled_from([1.0, 3.0]))
@pytest.mark.parametrize("policy", POLICIES)
def test_policies(rule: str, policy: str, grads: Any, scale: float) -> None:
    made = RULES[rule](grads)
    before = contents(grads)
    bad = sum(int(np.count_nonzero(~np.isfinite(x))) for x in leaves(grads))
    if not bad:
        expected, info = gc.clip(grads, made, loss_scale=scale)
        clipped, same = gc.clip(grads, made, loss_scale=scale, nonfinite=policy)
        assert contents(clipped) == contents(expected)
        assert (same.skipped, same.nonfinite, same.scale) == (False, 0, info.scale)
        return
    target = writable(grads)
    if policy == "raise":
        with pytest.raises(gc.NonFiniteGradientError, match="No gradient was touched"):
            gc.clip_(target, made, loss_scale=scale)
        assert contents(target) == before
        return
    clipped, info = gc.clip(grads, made, loss_scale=scale, nonfinite=policy)
    same = gc.clip_(target, made, loss_scale=scale, nonfinite=policy)
    assert contents(target) == contents(clipped)
    assert contents(grads) == before
    assert info.nonfinite == same.nonfinite == bad
    culprits = [path for path, leaf in zip(info.norms, leaves(grads), strict=True) if not np.isfinite(leaf).all()]
    assert info.culprits == culprits
    assert info.skipped == (policy in ("skip", "zero"))
    if policy == "skip":
        assert contents(clipped) == before
    if policy == "zero":
        assert all(x.tobytes() == bytes(x.nbytes) for x in leaves(clipped))
        assert info.clipped_norm == 0
    if policy == "sanitize":
        clean = mapped(grads, sanitized)
        expected, other = gc.clip(clean, made, loss_scale=scale)
        assert contents(clipped) == contents(expected)
        np.testing.assert_array_equal((info.norm, info.clipped_norm), (other.norm, other.clipped_norm))
    if policy == "propagate":
        check_propagated(rule, grads, clipped, info)


def sanitized(x: Array) -> Array:
    """NaN to 0, infinities to the largest finite values."""
    top = np.finfo(x.dtype).max
    with np.errstate(invalid="ignore"):
        clean: Array = np.clip(np.nan_to_num(x, nan=0.0, posinf=top, neginf=-top), -top, top).astype(x.dtype)
    return clean


def check_propagated(rule: str, grads: Any, clipped: Any, info: gc.ClipInfo) -> None:
    everything = np.concatenate([exact.float64(x) for x in leaves(grads)])
    if np.isnan(everything).any():
        assert math.isnan(info.norm)
    else:
        assert info.norm == math.inf
    for before, after in zip(leaves(grads), leaves(clipped), strict=True):
        assert np.isnan(after[np.isnan(before)]).all()
        if rule in ("value", "interval"):
            assert np.isfinite(after[~np.isnan(before)]).all()
        elif rule.startswith("global") and math.isnan(info.norm):
            assert np.isnan(after).all()
        elif rule.startswith("global"):  # factor 0: finite elements become 0, and 0·inf is NaN
            assert (after[np.isfinite(before)] == 0).all()
            assert np.isnan(after[~np.isfinite(before)]).all()
