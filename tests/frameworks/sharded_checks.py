"""Sharded gradients against the whole ones: every process clips both, and compares."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gradclip_core as gc
from gradclip_core import sets
from tests.frameworks.sharded_tools import (
    APART,
    ELEMENTS_APART,
    check,
    facts,
    full,
    raises,
    same_everywhere,
    shard,
    whole,
)

RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(1e9),
    gc.GlobalNorm(0.0),
    gc.GlobalNorm(2.0, ord=1),
    gc.GlobalNorm(3.0, ord=math.inf),
    gc.ArrayNorm(5.0),
    gc.GroupNorm({0: 1.0, 1: None}, lambda path: int(path) % 2),
    gc.Value(2.0),
    gc.Value((-1.0, 3.0)),
    gc.Chain(gc.Value(6.0), gc.GlobalNorm(4.0)),
    gc.Chain(gc.ArrayNorm(20.0), gc.GlobalNorm(5.0, ord=1)),
    gc.Project(sets.L2Ball(1.0)),
    gc.Project(sets.LinfBall(1.0)),
    gc.Project(sets.Box(-1.0, 2.0)),
]


@check
def every_rule_gives_the_bits_of_the_whole_gradient(mesh: Any) -> None:
    """Sums of integers are exact in any order, so that nothing at all may differ; but what is measured of results."""
    for rule in RULES:
        for backend in ("numba_cpu", "numpy") if isinstance(rule, (gc.GlobalNorm, gc.Chain)) else ("numba_cpu",):
            expected, wanted = gc.clip(whole(), rule, backend=backend)
            grads = shard(whole(), mesh)
            clipped, info = gc.clip(grads, rule, backend=backend)
            same_everywhere(facts(info))
            exact = not isinstance(rule, gc.Chain)  # its second rule measures what is no integer any more
            assert facts(info)[2:11] == facts(wanted)[2:11] or not exact, (rule, info, wanted)
            assert info.norm == wanted.norm
            assert math.isclose(info.clipped_norm, wanted.clipped_norm, rel_tol=APART, abs_tol=0)
            assert info.backend == backend
            for made, old, e in zip(clipped, grads, expected, strict=True):
                assert (made.placements, made.shape, made.device_mesh) == (old.placements, old.shape, old.device_mesh)
                assert made.stride() == old.stride()
                assert torch.allclose(made.full_tensor(), e, rtol=0 if exact else ELEMENTS_APART, atol=0), rule
            assert all(torch.equal(g, w) for g, w in zip(full(grads), whole(), strict=True))
            assert facts(gc.clip_(grads, rule, backend=backend)) == facts(info)
            assert all(torch.equal(g, c) for g, c in zip(full(grads), full(clipped), strict=True))


@check
def every_dtype_and_order(mesh: Any) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        for ord in (1.0, 2.0, 3.0, math.inf) if not dtype.is_complex else (2.0,):
            grads = shard(whole(False, dtype), mesh)
            expected, wanted = gc.clip_by_global_norm(whole(False, dtype), 1.0, ord=ord)
            info = gc.clip_by_global_norm_(grads, 1.0, ord=ord)
            same_everywhere(facts(info))
            apart = APART if ord in (1.0, 2.0, math.inf) else 2e-12  # what is promised of a general order, twice
            assert math.isclose(info.norm, wanted.norm, rel_tol=apart, abs_tol=0), (dtype, ord)
            assert gc.global_norm(grads, ord) <= 1.0 + 2.0**-8 * (dtype.itemsize == 2), (dtype, ord)
            for g, e in zip(full(grads), expected, strict=True):
                # A float32 product that is another is rounded to another neighbour in 16 bits, 2^-7 away at most.
                near = 2.0**-7 if dtype.itemsize == 2 else ELEMENTS_APART
                assert torch.allclose(g, e, rtol=near, atol=0), (dtype, ord)


@check
def float64_beyond_the_range_of_squares(mesh: Any) -> None:
    """Where one process's shard makes everything be measured again, all of them do."""
    for size in (1e300, 1e-300):
        values = torch.arange(1.0, 8.0, dtype=torch.float64)
        values[-1] *= size
        grads = shard([values, values[:1] * 3], mesh)
        limit = min(size, 1.0)
        expected, wanted = gc.clip_by_global_norm([values, values[:1] * 3], limit)
        info = gc.clip_by_global_norm_(grads, limit)
        same_everywhere(facts(info))
        assert math.isclose(info.norm, wanted.norm, rel_tol=APART, abs_tol=0)
        assert math.isfinite(info.norm)
        for g, e in zip(full(grads), expected, strict=True):
            assert torch.allclose(g, e, rtol=APART, atol=5e-324)
        assert gc.global_norm(grads) <= limit


@check
def one_process_s_nan_is_everybody_s(mesh: Any) -> None:
    """On the last process, which has the last row: the same is raised everywhere, and nobody waits."""

    def poisoned() -> list[Any]:
        grads = whole()
        grads[0][6, 2], grads[0][0, 0], grads[3][32, 1] = math.nan, math.inf, -math.inf
        return grads

    for clip in (gc.clip_by_global_norm_, gc.clip_by_norm, gc.clip_by_value_, gc.clip_by_global_norm):
        grads = shard(poisoned(), mesh)
        with raises(gc.NonFiniteGradientError, "'0' (1 inf, 1 NaN), '3' (1 inf, 0 NaN)", "No gradient was touched"):
            clip(grads, 1.0)
        assert [g._version for g in grads] == [0] * 4
    for policy in ("skip", "zero", "sanitize", "propagate"):
        for rule in (gc.GlobalNorm(1.0), gc.ArrayNorm(1.0), gc.Value(1.0), gc.Chain(gc.Value(1.0), gc.GlobalNorm(1.0))):
            grads = shard(poisoned(), mesh)
            expected, wanted = gc.clip(poisoned(), rule, nonfinite=policy)
            info = gc.clip_(grads, rule, nonfinite=policy)
            same_everywhere(facts(info))
            assert (info.counts, info.skipped, info.clipped) == (wanted.counts, wanted.skipped, wanted.clipped)
            for g, e in zip(full(grads), expected, strict=True):
                assert torch.allclose(g, e, rtol=ELEMENTS_APART, atol=0, equal_nan=True), (policy, rule)


@check
def loss_scales_and_guards(mesh: Any) -> None:
    """Underflows and overflows are counted over all processes, in read passes that all of them make."""
    values = [torch.tensor([2.0**-24] * 6 + [1.0], dtype=torch.float16), torch.ones(3)]
    for policy in ("count", "raise"):
        if policy == "raise":
            with raises(gc.GradientUnderflowError, "6 elements"):
                gc.clip_(shard(values, mesh), gc.GlobalNorm(0.1), underflow=policy)
        else:
            assert gc.clip_(shard(values, mesh), gc.GlobalNorm(0.1), underflow=policy).underflow == 6
    huge = [torch.tensor([1.0, 2.0, 60000.0, 4.0, 5.0], dtype=torch.float16)]
    with raises(gc.NonFiniteGradientError, "1 finite elements of '0'"):
        gc.clip_by_value_(shard(huge, mesh), (-math.inf, 1e9), loss_scale=0.5)
    info = gc.clip_by_value_(shard(huge, mesh), (-math.inf, 1e9), loss_scale=0.5, nonfinite="sanitize")
    assert info.overflow == 1
    grads = shard(whole(), mesh)
    info = gc.clip_by_global_norm_(grads, 1e9, loss_scale=8.0)
    assert all(torch.equal(g, w / 8) for g, w in zip(full(grads), whole(), strict=True))
    halves, _ = gc.to_half(shard(whole(), mesh), "bfloat16", gc.GlobalNorm(1e9))
    assert [h.full_tensor().dtype for h in halves] == [torch.bfloat16] * 4
    assert all(torch.equal(h.full_tensor(), w.bfloat16()) for h, w in zip(halves, whole(), strict=True))


@check
def containers_that_mix(mesh: Any) -> None:
    """Shards, replicas, plain tensors that every process holds, None, and arrays that occur twice."""
    a, b, c, d = whole()
    grads = {
        "a": distribute_tensor(a, mesh, [Shard(1)]), "b": distribute_tensor(b, mesh, [Replicate()]),
        "c": c.clone(), "none": None, "d": distribute_tensor(d, mesh, [Shard(0)]),
    }  # fmt: skip
    grads["tied"] = grads["a"]
    expected, wanted = gc.clip_by_global_norm({"a": a, "b": b, "c": c, "d": d}, 1.0)
    clipped, info = gc.clip_by_global_norm(grads, 1.0)
    assert clipped["tied"] is clipped["a"]
    assert {k: v for k, v in info.norms.items() if k != "tied"} == wanted.norms
    assert info.norm == wanted.norm == gc.global_norm(grads)
    assert facts(gc.clip_by_global_norm_(grads, 1.0)) == facts(info)
    for path, e in expected.items():
        assert all(torch.equal(*full([made[path], e])) for made in (clipped, grads))
    scalar = distribute_tensor(torch.tensor(3.0), mesh, [Replicate()])
    assert gc.clip_by_global_norm_([scalar, distribute_tensor(torch.zeros(0, 2), mesh, [Shard(0)])], 1.0).norm == 3.0
    assert gc.clip_by_norm_([], 1.0).norm == 0.0
    tiny = distribute_tensor(torch.tensor([3.0]), mesh, [Shard(0)])  # all others have nothing
    assert gc.clip_by_norm_([tiny, tiny], 1.0).norms == {"0": 3.0, "1": 3.0}


@check
def shards_of_any_layout(mesh: Any) -> None:
    """Transposed, with gaps, a parameter's own data: in place and new, as a process's plain tensors."""
    size = dist.get_world_size()
    locals_ = [torch.arange(12.0).reshape(3, 4).t(), torch.arange(24.0).reshape(4, 6)[:, ::2], torch.ones(4, 2)]
    locals_[2].requires_grad_()
    grads = [DTensor.from_local(x, mesh, [Shard(0)], run_check=False) for x in locals_]
    wholes = [torch.cat([x.detach()] * size) for x in locals_]
    expected, wanted = gc.clip_by_global_norm(wholes, 1.0)
    with torch.no_grad():
        clipped, info = gc.clip_by_global_norm(grads, 1.0)
        assert (info.norm, info.norms) == (wanted.norm, wanted.norms)
        gc.clip_by_global_norm_(grads, 1.0)
    for c, g, x, e in zip(full(clipped), full(grads), locals_, expected, strict=True):
        assert torch.equal(c, e)
        assert torch.equal(g, e)
        assert torch.equal(torch.cat([x.detach()] * size), e)
    part = dist.DeviceMesh("cpu", [0])
    alone = DTensor.from_local(torch.tensor([3.0, 4.0]), part, [Shard(0)], run_check=False)
    if dist.get_rank() == 0:
        assert gc.clip_by_norm_([alone], 1.0).norm == 5.0
    else:
        with pytest.raises(gc.InvalidArgumentError, match="this process is none of its mesh's"):
            gc.clip_by_norm_([alone], 1.0)


@check
def plain_tensors_that_differ(mesh: Any) -> None:
    """They should not; the decision is made for the one of the largest norm, everywhere, and nobody waits."""
    plain = torch.full((4,), 1.0 + dist.get_rank())
    info = gc.clip_by_global_norm_([distribute_tensor(torch.ones(9), mesh, [Shard(0)]), plain], 1.0)
    same_everywhere(facts(info))
    assert info.norms["1"] == 2.0 * dist.get_world_size()
    plain = torch.tensor([math.nan if dist.get_rank() == 1 else 1.0])
    with raises(gc.NonFiniteGradientError, "'1' (0 inf, 1 NaN)"):
        gc.clip_by_global_norm_([distribute_tensor(torch.ones(9), mesh, [Shard(0)]), plain], 1.0)


@check
def plans(mesh: Any) -> None:
    grads = shard(whole(), mesh)
    plan = gc.plan(grads, gc.GlobalNorm(1.0))
    assert [g._version for g in grads] == [0] * 4
    assert plan.scale == gc.plan(whole(), gc.GlobalNorm(1.0)).scale
    made = plan.apply(grads)
    plan.apply_(grads)
    expected, _ = gc.clip_by_global_norm(whole(), 1.0)
    for m, g, e in zip(full(made), full(grads), expected, strict=True):
        assert torch.equal(m, e)
        assert torch.equal(g, e)


@check
def nothing_is_written_where_nothing_is_clipped(mesh: Any) -> None:
    grads = shard(whole(), mesh)
    places = [g.to_local().data_ptr() for g in grads]
    assert not gc.clip_by_global_norm_(grads, 1e9).clipped
    assert [g._version for g in grads] == [g.to_local()._version for g in grads] == [0] * 4
    gc.clip_by_global_norm_(grads, 1.0)
    assert all(g._version > 0 for g in grads)
    assert all(g.to_local()._version > 0 for g in grads)
    assert [g.to_local().data_ptr() for g in grads] == places


@check
def memory_on_its_way(mesh: Any) -> None:
    """A redistribution's result may be a tensor that still waits for its collective."""
    size = dist.get_world_size()
    x = distribute_tensor(torch.arange(4.0 * size).reshape(size, 4), mesh, [Shard(0)])
    for placement in (Replicate(), Shard(1)):
        moved = x.redistribute(placements=[placement], async_op=True)
        assert gc.clip_by_global_norm_([moved], 1.0).norm == gc.global_norm(x.full_tensor())
        assert gc.global_norm([moved.full_tensor()]) <= 1.0
