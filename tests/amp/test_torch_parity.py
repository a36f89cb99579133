"""fp16 training in PyTorch: ``GradScaler`` and ``clip_grad_norm_`` against ours, step by step, overflows included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gradclip_core as gc
from tests.refusals import says

torch = pytest.importorskip("torch")

STEPS, INTERVAL, MAX_NORM, START = 300, 17, 0.5, 2.0**14
OVERFLOWS = {5, 6, 60, 61, 62, 150, 222}
RULE = gc.GlobalNorm(MAX_NORM)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made() -> tuple[Any, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loss_of(model: Any, step: int, half: bool = True) -> Any:
    """float16 where autocast has the operators; some steps overflow."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        y = model(x)
    loss = ((y.float() - x.sum(1, keepdim=True)) ** 2).mean()
    return loss * (math.inf if step in OVERFLOWS else 1.0)


Seen = list[tuple[float, float, bool]]


def train(scaler: Any, half: bool, step_of: Callable[[Any, Any], Callable[[], bool]]) -> Seen:
    """For each step the loss, the scale afterwards, and whether it was skipped."""
    model, optimizer = made()
    take_step = step_of(model, optimizer)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step, half)
        scaler.scale(loss).backward()
        skipped = take_step()
        seen.append((float(loss.detach()), scaler.get_scale(), skipped))
    return seen


def theirs(half: bool) -> Seen:
    scaler = torch.amp.GradScaler("cpu", init_scale=START, growth_interval=INTERVAL)

    def step_of(model: Any, optimizer: Any) -> Callable[[], bool]:
        def step() -> bool:
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            scaler.step(optimizer)
            scaler.update()
            return not math.isfinite(norm)

        return step

    return train(scaler, half, step_of)


def ours(half: bool) -> Seen:
    scaler = gc.LossScaler(START, growth_interval=INTERVAL)

    def step_of(model: Any, optimizer: Any) -> Callable[[], bool]:
        clipper = gc.Clipper(RULE, scaler, params=optimizer)
        return lambda: clipper.step_(then=optimizer.step).skipped

    return train(scaler, half, step_of)


def ours_with_their_scaler(half: bool) -> Seen:
    """An existing loop in which one line has changed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=START, growth_interval=INTERVAL)

    def step_of(model: Any, optimizer: Any) -> Callable[[], bool]:
        clipper = gc.Clipper(RULE, scaler, params=optimizer)

        def step() -> bool:
            info = clipper.step_()
            scaler.step(optimizer)
            scaler.update()
            return info.skipped

        return step

    return train(scaler, half, step_of)


@pytest.mark.parametrize("half", [True, False])
def test_scales_skips_and_losses_are_those_of_torch(half: bool) -> None:
    """In float16 the last bit of a factor grows to some per cent of a small loss, over hundreds of steps."""
    reference = theirs(half)
    scales = {scale for _, scale, _ in reference}
    assert {step for step, (_, _, skipped) in enumerate(reference) if skipped} >= OVERFLOWS
    assert len(scales) > 5  # it fell and it grew
    for found in (ours(half), ours_with_their_scaler(half)):
        assert [entry[1:] for entry in found] == [entry[1:] for entry in reference]
        losses = [(a[0], b[0]) for a, b in zip(found, reference, strict=True)]
        assert all(a == pytest.approx(b, rel=1e-4) for a, b in losses[: 60 if half else STEPS])
        assert all(a == pytest.approx(b, rel=0.2) for a, b in losses)
    assert reference[-1][0] < reference[0][0] / 4  # and it trains


def test_clipping_takes_part_in_it() -> None:
    """Otherwise the test above says nothing about clipping."""
    model, optimizer = made()
    clipper = gc.Clipper(RULE, gc.LossScaler(START), params=optimizer)
    for step in range(10, 30):
        optimizer.zero_grad()
        clipper.loss_scaler.scale(loss_of(model, step)).backward()
        clipper.step_(then=optimizer.step)
    assert clipper.statistics.clipped >= 10


# ---- float16 gradients, which GradScaler refuses -----------------------------------------------------


def test_float16_gradients_themselves() -> None:
    """A float16 parameter's gradients are unscaled and clipped where they are; torch's scaler refuses them."""
    w = torch.ones(3, dtype=torch.float16, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler(256.0), params=optimizer)
    clipper.loss_scaler.scale((w * torch.tensor([3.0, 4.0, 0.0])).sum()).backward()
    info = clipper.step_(then=optimizer.step)
    assert info.norm == 5.0
    assert w.grad.tolist() == pytest.approx([0.6, 0.8, 0.0], rel=1e-3)


# ---- the watched optimizer ----------------------------------------------------------------------------


def one_parameter(scaler: Any, **more: Any) -> tuple[Any, Any, gc.Clipper]:
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    return w, optimizer, gc.Clipper(gc.GlobalNorm(1.0), scaler, params=optimizer, **more)


def test_an_optimizer_does_not_step_on_scaled_gradients() -> None:
    w, optimizer, clipper = one_parameter(gc.LossScaler(256.0))
    clipper.loss_scaler.scale(w.sum()).backward()
    with says(gc.GradClipError, "still multiplied with the loss scale 256", "Call clipper.step_()"):
        optimizer.step()
    assert w.tolist() == [1.0, 1.0]
    clipper.step_()
    optimizer.step()
    assert w.tolist() != [1.0, 1.0]


def test_an_optimizer_does_not_take_a_step_that_is_to_be_skipped() -> None:
    w, optimizer, clipper = one_parameter(gc.LossScaler(256.0))
    clipper.loss_scaler.scale(w.sum() * math.inf).backward()
    info = clipper.step_()
    for _ in range(2):  # asking does not make it right
        with says(gc.GradClipError, "this step is to be skipped: 2 gradient elements", "if not info.skipped"):
            optimizer.step()
        assert info.skipped
    assert w.tolist() == [1.0, 1.0]


def test_other_optimizers_are_not_watched() -> None:
    w, _, clipper = one_parameter(gc.LossScaler(256.0))
    other = torch.optim.SGD([w], lr=1.0)
    clipper.loss_scaler.scale(w.sum()).backward()
    other.step()
    assert w.tolist() == [-255.0, -255.0]


# ---- what params may be ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["module", "parameters", "named_parameters", "optimizer", "dict", "named optimizer"])
def test_params(kind: str) -> None:
    model = torch.nn.Linear(2, 1)
    params = {
        "module": model,
        "parameters": model.parameters(),
        "named_parameters": model.named_parameters(),
        "optimizer": torch.optim.SGD(model.parameters()),
        "named optimizer": torch.optim.SGD(model.named_parameters()),
        "dict": dict(model.named_parameters()),
    }[kind]
    clipper = gc.Clipper(gc.GlobalNorm(1.0), params=params)
    for _ in range(2):  # a generator is read once
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
        names = set(clipper.step_().norms)
    named = {"weight", "bias"} if kind not in ("parameters", "optimizer") else None
    assert names == (named or ({"0", "1"} if kind == "parameters" else {"0.0", "0.1"}))
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) <= 1


def test_parameters_without_gradients_and_groups_added_later() -> None:
    model, late = torch.nn.Linear(2, 1), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD(model.parameters())
    clipper = gc.Clipper(gc.GlobalNorm(1.0), params=optimizer)
    with says(gc.GradClipError, "no parameter has a gradient", "Call backward"):
        clipper.step_()
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.full((1,), 7.0)
    assert clipper.step_().norms == {"1.0": 7.0}


# ---- a GradScaler in place of ours --------------------------------------------------------------------------


def grad_scaler(**more: Any) -> Any:
    return torch.amp.GradScaler("cpu", init_scale=256.0, **more)


def test_their_scaler_knows_that_it_was_unscaled() -> None:
    scaler = grad_scaler()
    w, optimizer, clipper = one_parameter(scaler)
    scaler.scale((w * 3).sum()).backward()
    assert clipper.step_().norm == pytest.approx(math.sqrt(18))
    before = w.grad.clone()
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    with says(gc.GradClipError, "unscaled already, and nothing was added", "after backward"):
        clipper.step_()
    with says(gc.GradClipError, "unscaled already since the last scaler.update()", "in place of scaler.unscale_"):
        clipper.step_([w.grad])
    scaler.step(optimizer)
    w.grad += 0  # somebody has written to it: it is not known any more
    with says(gc.GradClipError, "scaler.step(optimizer) has been called", "between backward()"):
        clipper.step_()
    assert torch.equal(w.grad, before)
    scaler.update()
    assert w.tolist() == pytest.approx([1 - math.sqrt(0.5)] * 2)


def test_after_their_unscale() -> None:
    scaler = grad_scaler()
    w, optimizer, clipper = one_parameter(scaler)
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optimizer)
    with says(gc.GradClipError, "unscaled already", "not after it"):
        clipper.step_()
    assert w.grad.tolist() == [1.0, 1.0]


def test_their_scaler_skips_and_falls() -> None:
    scaler = grad_scaler()
    w, optimizer, clipper = one_parameter(scaler)
    scaler.scale(w.sum() * math.inf).backward()
    clipper.step_()
    scaler.step(optimizer)
    scaler.update()
    assert (w.tolist(), scaler.get_scale()) == ([1.0, 1.0], 128.0)


def test_before_any_loss_was_scaled_and_without_an_optimizer() -> None:
    scaler = grad_scaler()
    w, _, clipper = one_parameter(scaler)
    w.grad = torch.ones(2)
    with says(gc.GradClipError, "no loss has been scaled yet", "scaler.scale(loss).backward()"):
        clipper.step_()
    with says(gc.InvalidArgumentError, "keeps its record by optimizer", "params=optimizer"):
        gc.Clipper(RULE, scaler).step_([w.grad])
    with says(gc.InvalidArgumentError, "sanitize", "LossScaler"):
        gc.Clipper(RULE, scaler, nonfinite="sanitize")
    assert w.grad.tolist() == [1.0, 1.0]


def test_a_disabled_scaler_scales_nothing() -> None:
    scaler = grad_scaler(enabled=False)
    w, optimizer, clipper = one_parameter(scaler)
    scaler.scale((w * 0.5).sum()).backward()
    assert clipper.step_().norm == pytest.approx(math.sqrt(0.5))
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [0.5, 0.5]


def test_two_optimizers_under_their_scaler() -> None:
    scaler = grad_scaler()
    (a, first, one), (b, second, two) = one_parameter(scaler), one_parameter(scaler)
    scaler.scale(a.sum() * 0.1 + (b * math.inf).sum()).backward()
    assert [one.step_().skipped, two.step_().skipped] == [False, True]
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (a.tolist(), b.tolist(), scaler.get_scale()) == (pytest.approx([0.9, 0.9]), [1.0, 1.0], 128.0)


def test_a_scaler_of_another_make() -> None:
    class Other:
        def is_enabled(self) -> bool:
            return True

        scale = unscale_ = step = update = is_enabled

    w, _, clipper = one_parameter(Other())
    w.grad = torch.full((2,), 8.0)
    with says(gc.BackendError, "keeps no record that could be continued", "gradclip_core.LossScaler"):
        clipper.step_()
    assert w.grad.tolist() == [8.0, 8.0]


def test_a_scaler_that_agrees_with_other_ranks() -> None:
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    with says(gc.BackendError, "ShardedGradScaler", "agrees with the other ranks", "Let it unscale"):
        gc.Clipper(RULE, ShardedGradScaler("cpu"))
