"""Sharded gradients as training makes them, meshes of two axes, and what is refused on every process alike."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import gradclip_core as gc
from gradclip_core import sets
from tests.frameworks.sharded_tools import APART, check, facts, full, raises, same_everywhere, whole


@check
def refusals(mesh: Any) -> None:
    ones = torch.ones(4, 2)
    x = distribute_tensor(ones, mesh, [Shard(0)])
    partial = DTensor.from_local(ones, mesh, [Partial()], run_check=False)
    with raises(gc.InvalidArgumentError, "has yet to be added up", "Redistribute it first"):
        gc.clip_by_norm_([x, partial], 1.0)
    with raises(gc.UnsupportedArrayError, "it is sharded, and a unit's elements", "full_tensor()"):
        gc.adaptive_clip_([x], [ones], axis=1)
    with raises(gc.UnsupportedArrayError, "projection on L1Ball(radius=1.0) is computed where", "full_tensor()"):
        gc.clip_(x, gc.Project(sets.L1Ball(1.0)))
    with raises(gc.InvalidArgumentError, "it is sharded, and what out= holds"):
        gc.clip([x], gc.GlobalNorm(1.0), out=[torch.empty(4, 2)])
    with raises(gc.UnsupportedArrayError, "it is a DTensor", "all of it is needed here", "full_tensor()"):
        gc.adaptive_clip_([ones], [x], axis=1)
    parameter = torch.nn.Parameter(distribute_tensor(ones, mesh, [Shard(0)]))
    with raises(gc.InvalidArgumentError, "it is a parameter that has no gradient yet"):
        gc.clip_by_norm_([parameter], 1.0)
    with raises(gc.GradClipError, "not every process of the mesh passes the same"):
        gc.clip_by_norm_([x], 1.0 + dist.get_rank())
    with raises(gc.GradClipError, "not every process of the mesh passes the same"):
        gc.clip_by_norm_([x, ones][: 1 + dist.get_rank()], 1.0)
    assert x._version == 0


def model() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 7), torch.nn.Linear(7, 1))


def train(mesh: Any) -> None:
    """FSDP2 beside a model of one process that is given the same gradients, whole: the same weights after each step.

    The norms differ by their last bits at most, so that the float32 factors made of them are the same but where one
    of 2^20 boundaries lies between; for these seeds none does.
    """
    ours, theirs = model(), model()
    for layer in ours:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(ours, mesh=mesh)
    steppers = [torch.optim.AdamW(m.parameters(), lr=0.05) for m in (ours, theirs)]
    for step in range(4):
        torch.manual_seed(100 * step + dist.get_rank())
        (ours(torch.randn(5, 6)) ** 2).mean().mul(40).backward()
        grads = [p.grad for p in ours.parameters()]
        assert all(isinstance(g, DTensor) for g in grads)
        for q, g in zip(theirs.parameters(), grads, strict=True):
            q.grad = g.full_tensor().clone()
        copies = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
        for p, g in zip(copies, grads, strict=True):
            p.grad = g.detach().clone()
        torchs = float(torch.nn.utils.clip_grad_norm_(copies, 1.0).full_tensor())
        info = gc.clip_by_global_norm_([p.grad for p in ours.parameters()], 1.0)
        wanted = gc.clip_by_global_norm_([q.grad for q in theirs.parameters()], 1.0)
        assert info.clipped
        same_everywhere(facts(info))
        assert math.isclose(info.norm, wanted.norm, rel_tol=APART, abs_tol=0)
        # torch adds up in float32: some 150 terms, each sum rounded by 2^-24; and 1e-6 is added to its norm.
        assert math.isclose(info.norm, torchs, rel_tol=150 * 2.0**-24, abs_tol=0)
        for p, q, c in zip(ours.parameters(), theirs.parameters(), copies, strict=True):
            assert torch.equal(p.grad.full_tensor(), q.grad)
            assert torch.allclose(p.grad.full_tensor(), c.grad.full_tensor(), rtol=150 * 2.0**-23 + 1e-6, atol=0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p.full_tensor(), q)


@check
def fsdp(mesh: Any) -> None:
    train(mesh)


@check
def a_loss_scale_falls_everywhere(mesh: Any) -> None:
    """An overflow in one process's shard skips everybody's step, and everybody scales the next loss less."""
    ours = fully_shard(model(), mesh=mesh)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler(2.0**10, growth_interval=1), params=ours)
    heard = []
    for step in range(3):
        clipper.loss_scaler.scale(ours(torch.ones(2, 6)).sum()).backward()
        if step == 1 and dist.get_rank() == 0:
            next(ours.parameters()).grad.to_local()[0, 0] = math.inf
        info = clipper.step_()
        same_everywhere(facts(info))
        heard.append((info.skipped, clipper.loss_scaler.get_scale()))
        ours.zero_grad()
    assert heard == [(False, 2.0**11), (True, 2.0**10), (False, 2.0**11)]


@check
def meshes_of_two_axes(mesh: Any) -> None:
    """HSDP; arrays sharded along both axes, along one, and on a submesh; one call for all of them."""
    if dist.get_world_size() < 4:
        return
    both = dist.init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("outer", "inner"))
    train(both)
    placed: list[tuple[Any, list[Any]]] = [
        (both["inner"], [Shard(0)]), (both, [Shard(0), Shard(1)]), (both, [Replicate(), Shard(0)]), (mesh, [Shard(0)]),
        (both, [Shard(0), Replicate()]), (both, [Shard(0), Shard(0)]), (both["outer"], [Shard(0)]),
    ]  # fmt: skip
    for start in range(len(placed)):
        where = placed[start:] + placed[:start]
        wholes = [*whole(), *whole()[:3]]
        # A vector has no second axis.
        places = [
            [Shard(min(p.dim, w.ndim - 1)) if p.is_shard() else p for p in ps]
            for w, (_, ps) in zip(wholes, where, strict=True)
        ]
        grads = [distribute_tensor(w, on, ps) for w, (on, _), ps in zip(wholes, where, places, strict=True)]
        grads, wholes = [*grads, torch.ones(5)], [*wholes, torch.ones(5)]
        for rule in (gc.GlobalNorm(1.0), gc.ArrayNorm(5.0)):
            expected, wanted = gc.clip(wholes, rule)
            clipped, info = gc.clip(grads, rule)
            same_everywhere(facts(info))
            assert (info.norm, info.norms, info.scales) == (wanted.norm, wanted.norms, wanted.scales)
            assert all(torch.equal(c, e) for c, e in zip(full(clipped), expected, strict=True))
