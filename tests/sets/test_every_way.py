"""Every set by every way to ask: in place, planned, scopes, backends, layouts, loss scales, policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import protocol

from .drawing import (
    DTYPES,
    SCOPES,
    SEEDS,
    bits,
    close,
    drawn,
    every_set,
    info_of,
    norm,
    project,
    same,
    times,
)
from .every import EVERY, Arrays, flat

# ---- every way to ask ------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", SCOPES)
def test_in_place_new_and_planned_are_one(name: str, dtype: str, scope: str, backend: str) -> None:
    groups = (lambda path: path == "layer0") if scope == "group" else None
    for size in (0.3, 4.0):
        for grads, onto in drawn(name, dtype, size, SEEDS[:1]):
            before = bits(grads)
            made, info = info_of(grads, onto, scope, backend=backend)
            plan = gc.plan(grads, gc.Project(onto, scope, groups), backend=backend)
            assert bits(grads) == before
            assert plan.info == info
            assert bits(plan.apply(grads)) == bits(made)
            here, there = ({path: g.copy() for path, g in grads.items()} for _ in range(2))
            assert gc.clip_by_projection_(here, onto, scope, groups=groups, backend=backend) == info
            plan.apply_(there)
            assert bits(here) == bits(made)
            assert bits(there) == bits(made)


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_scopes_are_each_on_their_own(name: str, dtype: str) -> None:
    for grads, onto in drawn(name, dtype):
        of_arrays, of_groups = project(grads, onto, "array"), project(grads, onto, "group")
        for path, g in grads.items():
            assert bits(project({path: g}, onto)) == bits({path: of_arrays[path]})
        first, rest = {"layer0": grads["layer0"]}, {path: g for path, g in grads.items() if path != "layer0"}
        for part in (first, rest):
            if part:
                assert bits(project(part, onto)) == bits({path: of_groups[path] for path in part})


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.jit
def test_backends_agree(name: str, dtype: str) -> None:
    pytest.importorskip("numba")
    example = EVERY[name]
    for size in (0.05, 0.6):
        for grads, onto in drawn(name, dtype, size):
            ours, info = info_of(grads, onto, backend="numba_cpu")
            theirs, other = info_of(grads, onto, backend="numpy")
            if example.exact:
                assert bits(ours) == bits(theirs)
                assert info.certificate == other.certificate
                assert (info.norm, info.clipped_norm) == (other.norm, other.clipped_norm)
            assert close(ours, theirs, example, dtype, norm(flat(grads)))


@every_set
def test_memory_of_any_layout(name: str) -> None:
    """Fortran order, strides, a read-only array: the same numbers."""
    example = EVERY[name]
    for grads, onto in drawn(name, "float32"):
        expected = project(grads, onto)
        for lay in (np.asfortranarray, strided, read_only):
            made = project({path: lay(g) for path, g in grads.items()}, onto)
            assert close(made, expected, example, "float32", norm(flat(grads)))


def strided(x: Any) -> Any:
    return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x.copy()


def read_only(x: Any) -> Any:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


# ---- loss scale and policies -----------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.3, 4.0])
def test_loss_scale(name: str, dtype: str, size: float) -> None:
    """A power of two is no other question; 3 is one more rounding of each element."""
    example = EVERY[name]
    for grads, onto in drawn(name, dtype, size):
        expected, info = info_of(grads, onto)
        for scale in (2.0**6, 0.5):
            made, seen = info_of(times(grads, scale), onto, loss_scale=scale)
            assert same(made, expected)
            assert (seen.norm, seen.clipped_norm) == (info.norm, info.clipped_norm)
            assert seen.certificate == info.certificate
        made = project(grads, onto, loss_scale=3.0)
        third = {path: np.asarray(g, np.float64) / 3 for path, g in grads.items()}
        assert close(made, project(third, onto), example, dtype, norm(flat(grads)))


def spoiled(grads: Arrays) -> Arrays:
    spoiled = {path: g.copy() for path, g in grads.items()}
    flattened = spoiled["layer0"].reshape(-1)
    flattened[0] = np.nan
    flattened[-1] = -np.inf
    return spoiled


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_raise_skip_and_zero(name: str, dtype: str, backend: str) -> None:
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        for policy in ("raise", "skip", "zero"):
            bad = spoiled(grads)
            if policy == "raise":
                with pytest.raises(gc.NonFiniteGradientError, match="'layer0'"):
                    gc.clip_by_projection_(bad, onto, backend=backend)
            else:
                info = gc.clip_by_projection_(bad, onto, nonfinite=policy, backend=backend)
                assert (info.skipped, info.nonfinite, info.certificate) == (True, 2, None)
            if policy == "zero":
                assert not any(np.asarray(g, np.float64).any() for g in bad.values())
            else:
                assert bits(bad) == bits(spoiled(grads))


@every_set
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sanitize(name: str, dtype: str) -> None:
    """As if NaNs had been 0, and infinities the largest finite value."""
    example = EVERY[name]
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        mended = spoiled(grads)
        flattened = mended["layer0"].reshape(-1)
        flattened[0] = 0.0
        flattened[-1] = -protocol.DTYPES[dtype].largest
        made, info = info_of(spoiled(grads), onto, nonfinite="sanitize")
        assert (info.nonfinite, info.skipped) == (2, False)
        expected = project(mended, onto)
        if example.exact:
            assert same(made, expected)
        assert close(made, expected, example, dtype, norm(flat(mended)))


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_propagate(name: str, dtype: str) -> None:
    """A scope with a NaN has NaNs, and no certificate; the others are as they would be without it."""
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        made, info = info_of(spoiled(grads), onto, "array", nonfinite="propagate")
        assert np.isnan(made["layer0"].reshape(-1)[0])
        assert info.certificate is None
        expected = project(grads, onto, "array")
        for path in grads:
            if path != "layer0":
                assert bits({path: made[path]}) == bits({path: expected[path]})
