"""Properties of the public functions, over whatever containers and arrays hypothesis comes up with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from tests.core import exact
from tests.property.strategies import (
    DTYPES,
    FEW,
    FIXED,
    ORDERS,
    POLICIES,
    RULES,
    Array,
    Layer,
    Pair,
    any_float32,
    any_grads,
    array,
    containers,
    contents,
    laid_out,
    leaves,
    mapped,
    norm_rules,
    numbers,
    rules,
    skeleton,
    writable,
)

# ---- every rule -----------------------------------------------------------------------------------


@pytest.mark.shows("numpy", "new arrays", "exact")
@pytest.mark.shows("numpy", "in place", "exact")
@rules
@FEW
@given(grads=any_grads, scale=st.sampled_from([1.0, 4.0, 3.0]))
def test_in_place_is_out_of_place(rule: str, grads: Any, scale: float) -> None:
    before = contents(grads)
    made = RULES[rule](grads)
    clipped, info = gc.clip(grads, made, loss_scale=scale)
    assert contents(grads) == before, "only read"
    assert skeleton(clipped) == skeleton(grads)
    assert not any(np.shares_memory(a, b) for a in leaves(grads) for b in leaves(clipped))
    target = writable(grads)
    same = gc.clip_(target, made, loss_scale=scale)
    assert contents(target) == contents(clipped)
    assert (same.norm, same.clipped_norm, same.scale) == (info.norm, info.clipped_norm, info.scale)
    assert (same.norms, same.scales) == (info.norms, info.scales)


@rules
@FEW
@given(grads=any_grads, scale=st.sampled_from([1.0, 0.5, 3.0]))
def test_a_plan_is_the_clip(rule: str, grads: Any, scale: float) -> None:
    made = RULES[rule](grads)
    clipped, info = gc.clip(grads, made, loss_scale=scale)
    before = contents(grads)
    plan = gc.plan(grads, made, loss_scale=scale)
    assert contents(grads) == before
    assert (plan.info.norm, plan.info.clipped_norm, plan.info.scale) == (info.norm, info.clipped_norm, info.scale)
    applied = plan.apply(grads)
    assert contents(applied) == contents(clipped)
    assert skeleton(applied) == skeleton(grads)
    target = writable(grads)
    plan.apply_(target)
    assert contents(target) == contents(clipped)


@rules
@FEW
@given(grads=any_float32)
def test_clipping_twice_is_clipping_once(rule: str, grads: Any) -> None:
    made = RULES[rule](grads)
    clipped, _ = gc.clip(grads, made)
    again, info = gc.clip(clipped, made)
    assert contents(again) == contents(clipped)
    assert not info.clipped
    assert info.scale == 1 or not leaves(grads)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "global 3"])  # pow differs by platform
@pytest.mark.jit
@FEW
@given(grads=containers(array(nonfinite=True)), policy=st.sampled_from(POLICIES[1:]), scale=st.sampled_from([1.0, 3.0]))
def test_backends_agree_to_the_bit(rule: str, grads: Any, policy: str, scale: float) -> None:
    pytest.importorskip("numba")
    made = RULES[rule](grads)
    one, here = gc.clip(grads, made, nonfinite=policy, loss_scale=scale, backend="numpy")
    two, there = gc.clip(grads, made, nonfinite=policy, loss_scale=scale, backend="numba_cpu")
    assert contents(one) == contents(two)
    np.testing.assert_array_equal(numbers(here), numbers(there))
    assert (here.clipped, here.skipped, here.culprits) == (there.clipped, there.skipped, there.culprits)


@norm_rules
@FIXED
@given(grads=any_grads)
def test_what_is_within_its_bound_keeps_its_bits(rule: str, grads: Any) -> None:
    norm = gc.global_norm(grads, 1)
    bound = 2 * norm + 1
    wide: dict[str, Any] = {
        "global": gc.GlobalNorm(bound),
        "global 1": gc.GlobalNorm(bound, 1),
        "global inf": gc.GlobalNorm(bound, math.inf),
        "global 3": gc.GlobalNorm(bound, 3),
        "group": gc.GroupNorm(bound, len),
        "array": gc.ArrayNorm(bound),
    }
    clipped, info = gc.clip(grads, wide[rule])
    assert contents(clipped) == contents(grads)
    assert (info.clipped, info.scale) == (False, 1.0)
    assert info.clipped_norm == info.norm
    # In place not even read-only memory is an obstacle to measuring; writable memory is not written.
    target = writable(grads)
    for leaf in leaves(target):
        leaf.setflags(write=True)
    gc.clip_(target, wide[rule])
    assert contents(target) == contents(grads)


@FIXED
@given(grads=any_grads, limit=st.sampled_from([0.3, (-0.2, 0.4), 1e-4, (0.0, 1.0)]))
def test_by_value_is_numpy_clip(grads: Any, limit: Any) -> None:
    clipped, info = gc.clip_by_value(grads, limit)
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    touched = False
    for before, after in zip(leaves(grads), leaves(clipped), strict=True):
        kind = before.dtype.type
        expected = np.where(before < kind(low), kind(low), np.where(before > kind(high), kind(high), before))
        np.testing.assert_array_equal(after, expected, strict=True)
        touched |= bool((after != before).any())
    assert info.clipped == touched
    assert info.clipped_norm == gc.global_norm(clipped)


# ---- the global norm ------------------------------------------------------------------------------


@FIXED
@given(grads=any_grads)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_the_norm_of_any_container(ord: float, grads: Any) -> None:
    # At most 255 + 9 elements on any path of additions, whatever the dtypes.
    assert exact.within(gc.global_norm(grads, ord), leaves(grads), 64 * 2.0**-53, ord)


@FIXED
@given(grads=any_float32, exponent=st.integers(-40, 40))
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_powers_of_two_change_nothing_but_the_exponent(ord: float, grads: Any, exponent: int) -> None:
    factor = 2.0**exponent
    scaled = mapped(grads, lambda x: x * np.float32(factor))
    assert gc.global_norm(scaled, ord) == gc.global_norm(grads, ord) * factor
    one, info = gc.clip_by_global_norm(grads, 0.5, ord=ord)
    two, same = gc.clip_by_global_norm(scaled, 0.5 * factor, ord=ord)
    # The subnormal term of the shave is the one thing that has a scale; it is far below these.
    assert contents(mapped(one, lambda x: x * np.float32(factor))) == contents(two)
    assert (same.scale, same.norm, same.clipped) == (info.scale, info.norm * factor, info.clipped)


@FIXED
@given(grads=any_float32, exponent=st.integers(-20, 20))
def test_a_loss_scale_of_a_power_of_two_changes_nothing(grads: Any, exponent: int) -> None:
    scale = 2.0**exponent
    scaled = mapped(grads, lambda x: x * np.float32(scale))
    one, info = gc.clip_by_global_norm(grads, 0.5)
    two, same = gc.clip_by_global_norm(scaled, 0.5, loss_scale=scale)
    assert contents(one) == contents(two)
    assert (same.norm, same.clipped_norm, same.norms) == (info.norm, info.clipped_norm, info.norms)
    assert same.scale == info.scale / scale


@FIXED
@given(n=st.integers(0, 9000), seed=st.integers(0, 2**20), dtype=st.sampled_from(DTYPES))
def test_a_permutation_changes_the_norm_within_the_bound(n: int, seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(dtype)
    permuted = rng.permutation(x)
    bound = 2.0**-46 if dtype is not np.float64 else 26 * 2.0**-53
    for arrays in ([permuted], np.array_split(permuted, 7)):
        computed = gc.global_norm(arrays)
        assert exact.within(computed, [x], bound)
    assert gc.global_norm([x], math.inf) == gc.global_norm([permuted], math.inf)


@FIXED
@given(grads=any_float32, bound=st.sampled_from([0.0, 1e-3, 0.5, 7.0]), scale=st.sampled_from([1.0, 1024.0, 3.0]))
def test_a_scale_consumed_by_hand_is_the_clip(grads: Any, bound: float, scale: float) -> None:
    plan = gc.plan(grads, gc.GlobalNorm(bound), loss_scale=scale)
    clipped, _ = gc.clip_by_global_norm(grads, bound, loss_scale=scale)
    by_hand = mapped(grads, lambda x: x * np.float32(plan.scale) if plan.scale else np.zeros_like(x))
    assert contents(by_hand) == contents(clipped)


@pytest.mark.parametrize("ord", ORDERS)
@FIXED
@given(grads=any_grads, bound=st.sampled_from([0.0, 1e-3, 0.5, 7.0]), scale=st.sampled_from([1.0, 1024.0, 3.0]))
def test_what_info_says_is_so(ord: float, grads: Any, bound: float, scale: float) -> None:
    clipped, info = gc.clip_by_global_norm(grads, bound, ord=ord, loss_scale=scale)
    assert info.norm == gc.global_norm(grads, ord) * (1 / scale) or ord not in (1, 2)
    assert math.isclose(info.norm, gc.global_norm(grads, ord) / scale, rel_tol=1e-12)
    assert info.clipped == (info.norm > bound)
    assert info.clipped_norm <= (bound if info.clipped else info.norm)
    assert info.clipped_norm == (0 if bound == 0 and info.clipped else info.clipped_norm)
    assert (info.skipped, info.nonfinite, info.culprits) == (False, 0, [])
    assert len(info.norms) == len(info.scales) == len(leaves(grads))
    for norm, leaf in zip(info.norms.values(), leaves(grads), strict=True):
        assert math.isclose(norm, gc.global_norm([leaf], ord) / scale, rel_tol=1e-12)
    assert set(info.scales.values()) <= {info.scale}
    if not any(x.dtype == np.float16 for x in leaves(grads)):
        found = gc.global_norm(clipped, ord)
        slack = math.sqrt(sum(x.size for x in leaves(grads))) * 1e-44
        assert math.isclose(found, info.clipped_norm, rel_tol=2.0**-23, abs_tol=slack)


@FIXED
@given(grads=st.lists(array(), max_size=4), bound=st.sampled_from([0.5, 7.0]))
def test_a_generator_is_read_once(grads: list[Array], bound: float) -> None:
    def generate() -> Iterator[Array]:
        yield from grads

    expected, info = gc.clip_by_global_norm(grads, bound)
    clipped, same = gc.clip_by_global_norm(generate(), bound)
    assert type(clipped) is list
    assert contents(clipped) == contents(expected)
    assert (info.norm, info.norms) == (same.norm, same.norms)
    target = writable(grads)
    gc.clip_by_global_norm_((x for x in target), bound)
    assert contents(target) == contents(expected)
    assert gc.global_norm(generate()) == info.norm


def test_paths_name_the_leaves() -> None:
    one = np.ones(1)
    grads = {"a": [one, None, Pair(2 * one, {"x": 3 * one})], "b": Layer(4 * one, None), "c": (5 * one,)}
    _, info = gc.clip_by_global_norm(grads, 1.0)
    assert dict(info.norms) == {"a.0": 1, "a.2.first": 2, "a.2.second.x": 3, "b.weight": 4, "c.0": 5}
    assert list(gc.clip_by_global_norm(one, 1.0)[1].norms) == ["0"]


def test_nothing_is_no_error() -> None:
    empty = np.zeros((3, 0), np.float32)
    nothings: list[Any] = [[], {}, (), None, [None, {"a": None}], np.zeros(0), [empty], np.zeros((2, 2))]
    for nothing in nothings:
        for rule in RULES.values():
            clipped, info = gc.clip(nothing, rule(nothing))
            assert skeleton(clipped) == skeleton(nothing)
            assert contents(clipped) == contents(nothing)
            assert (info.norm, info.clipped_norm, info.clipped, info.scale) == (0, 0, False, 1)


# ---- memory ---------------------------------------------------------------------------------------


@FIXED
@given(grads=any_grads)
def test_the_layout_does_not_change_an_element(grads: Any) -> None:
    """One factor from one norm: the layouts may sum in another order, never scale another way."""
    clipped, info = gc.clip_by_global_norm(grads, 0.5)
    packed = mapped(grads, lambda x: np.array(x, order="C"))
    straight, same = gc.clip_by_global_norm(packed, 0.5)
    assert math.isclose(info.norm, same.norm, rel_tol=2.0**-46)
    if info.scale == same.scale:
        assert contents(clipped) == contents(straight)
    for before, after in zip(leaves(grads), leaves(clipped), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert after.flags.writeable


@rules
def test_in_place_refuses_read_only_memory_and_writes_nothing(rule: str) -> None:
    first, second = np.full(3, 9.0), np.full(3, 9.0)
    second.setflags(write=False)
    grads = {"a": first, "b": second}
    with pytest.raises(gc.ReadOnlyError, match="'b'"):
        gc.clip_(grads, RULES[rule](grads))
    assert (first == 9).all()
    clipped, _ = gc.clip(grads, RULES[rule](grads))
    assert (clipped["b"] < 9).all()


@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed", "transposed", "offset"])
@rules
def test_in_place_writes_its_own_elements_alone(rule: str, layout: str, backend: str) -> None:
    x = laid_out(np.random.default_rng(0).standard_normal((5, 17)).astype(np.float32) * 9, layout)
    memory = x.base if x.base is not None else x
    memory = memory if memory.base is None else memory.base
    memory[memory == 0] = 77  # what lies between and before the elements
    untouched = np.count_nonzero(memory == 77)
    expected, _ = gc.clip(x, RULES[rule](x), backend="numpy")
    gc.clip_(x, RULES[rule](x), backend=backend)
    np.testing.assert_array_equal(x, expected)
    assert np.count_nonzero(memory == 77) == untouched
    assert untouched == {"strided": 85, "offset": 17}.get(layout, 0)
