"""What ``torch.optim`` does, within the rounding of float32, over tens of steps, for every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradclip_core import optim

torch = pytest.importorskip("torch")
Pair = tuple[Callable[[Any], optim.Optimizer], Callable[[Any], Any]]

STEPS = 40


def sgd(**options: Any) -> Pair:
    return lambda p: optim.SGD(p, lr=0.05, **options), lambda p: torch.optim.SGD(p, lr=0.05, **options)


def adam(kind: str, **options: Any) -> Pair:
    ours, theirs = getattr(optim, kind), getattr(torch.optim, kind)
    return lambda p: ours(p, lr=0.01, **options), lambda p: theirs(p, lr=0.01, **options)


PAIRS: dict[str, Pair] = {
    "sgd": sgd(),
    "sgd, decay": sgd(weight_decay=0.1),
    "momentum": sgd(momentum=0.9),
    "momentum, dampening": sgd(momentum=0.9, dampening=0.4),
    "momentum, decay": sgd(momentum=0.7, weight_decay=0.1),
    "nesterov": sgd(momentum=0.9, nesterov=True),
    "nesterov, decay": sgd(momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": adam("Adam"),
    "adam, options": adam("Adam", betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    "adam, beta 0.3": adam("Adam", betas=(0.3, 0.6)),
    "adamw": adam("AdamW"),
    "adamw, options": adam("AdamW", betas=(0.95, 0.98), eps=1e-6, weight_decay=0.3),
}


def tensors(seed: int, dtype: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(13, 7), (7,), (), (300,)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def gradients(step: int, dtype: Any) -> list[Any]:
    """A parameter has none at every third step."""
    made = [p.detach() * 0.1 for p in tensors(1000 + step, dtype)]
    return [None if i == 1 and step % 3 == 0 else grad for i, grad in enumerate(made)]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_torch(name: str, dtype: str, backend: str) -> None:
    """Each step adds a few roundings of the parameter's or the update's size: half an ulp each, STEPS of them."""
    kind = getattr(torch, dtype)
    make_ours, make_theirs = PAIRS[name]
    ours, theirs = tensors(0, kind), tensors(0, kind)
    one, other = make_ours(ours), make_theirs(theirs)
    for step in range(STEPS):
        grads = gradients(step, kind)
        one.step(grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = None if grad is None else grad.clone()
        other.step()
    unit = 2.0**-24 if dtype == "float32" else 2.0**-53
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=STEPS * 4 * unit, atol=STEPS * 4 * unit)


@pytest.mark.parametrize("name", ["adamw", "adam, options", "momentum", "nesterov, decay"])
def test_as_torchs_state(name: str) -> None:
    make_ours, make_theirs = PAIRS[name]
    ours, theirs = tensors(0, torch.float32), tensors(0, torch.float32)
    one, other = make_ours(ours), make_theirs(theirs)
    for step in range(7):
        grads = gradients(step, torch.float32)
        one.step(grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad
        other.step()
    for path, p in zip(one.state, theirs, strict=True):
        mine, state = one.state[path], other.state[p]
        assert "step" not in state or mine["step"] == int(state["step"])
        for key in set(mine) - {"step"}:
            scale = float(state[key].abs().max())
            np.testing.assert_allclose(mine[key], state[key].numpy(), rtol=1e-5, atol=scale * 2.0**-20)


def test_a_schedule_and_groups_as_torchs_parameter_groups() -> None:
    ours, theirs = tensors(0, torch.float32), tensors(0, torch.float32)
    one = optim.AdamW(ours, lr=0.02, groups={"plain": {"paths": ["1", "2"], "weight_decay": 0.0, "lr": 0.01}})
    other = torch.optim.AdamW(
        [
            {"params": [theirs[0], theirs[3]], "weight_decay": 0.01},
            {"params": theirs[1:3], "weight_decay": 0.0, "lr": 0.01},
        ],
        lr=0.02,
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(other, 0.9)
    for step in range(20):
        grads = gradients(step, torch.float32)
        one.step(grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad
        other.step()
        schedule.step()
        one.lr = other.param_groups[0]["lr"]
        one.groups["plain"].lr = other.param_groups[1]["lr"]
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=80 * 2.0**-24, atol=80 * 2.0**-24)


def test_version_counters_tell_of_the_write() -> None:
    params = tensors(0, torch.float32)
    opt = optim.SGD(params, lr=0.1)
    before = [p._version for p in params]
    opt.step([torch.ones_like(p) if i else None for i, p in enumerate(params)])
    assert [p._version - b for p, b in zip(params, before, strict=True)] == [0, 1, 1, 1]
    loss = (params[1] * params[1]).sum()
    opt.step([torch.ones_like(p) for p in params])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_model_trains_as_with_torch() -> None:
    """Clipped AdamW on a regression: the losses of both, step for step."""
    import gradclip_core as gc

    def train(clipped: bool) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        x = torch.randn(64, 6)
        y = x @ torch.randn(6, 1)
        params = dict(model.named_parameters())
        ours = optim.AdamW(params, lr=0.02)
        theirs = torch.optim.AdamW(model.parameters(), lr=0.02)
        losses = []
        for _ in range(60):
            model.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            if clipped:
                grads = {name: p.grad for name, p in params.items()}
                ours.step(grads, gc.plan(grads, gc.GlobalNorm(1.0)))
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                theirs.step()
            losses.append(loss.item())
        return losses

    ours, theirs = train(True), train(False)
    assert ours[-1] < 0.1 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_memory_that_was_put_elsewhere_is_found_again() -> None:
    w = torch.nn.Parameter(torch.ones(5))
    opt = optim.SGD([w], lr=1.0)
    opt.step([torch.ones(5)])
    old = w.data
    w.data = torch.full((5,), 7.0)
    opt.step([torch.ones(5)])
    assert w.tolist() == [6.0] * 5
    assert old.tolist() == [0.0] * 5
    w.data = torch.full((5,), 9.0)
    with pytest.raises(ValueError, match="its shape is"):
        opt.step([torch.ones(6)])
    opt.step([torch.ones(5)])
    assert w.tolist() == [8.0] * 5


def test_memory_of_another_shape_is_refused() -> None:
    from tests.refusals import says

    w = torch.nn.Parameter(torch.ones(2, 3))
    opt = optim.SGD([w], lr=1.0)
    w.data = torch.ones(3, 2)
    import gradclip_core as gc

    with says(gc.InvalidArgumentError, "SGD.step, parameter '0'", "is not what it was", "Make a new optimizer"):
        opt.step([torch.ones(3, 2)])


def test_gradients_are_not_kept_alive() -> None:
    """What is known of the last step's gradients is where they were, not they."""
    import gc as collector
    import weakref

    w, grad = torch.ones(100), torch.ones(100)
    opt = optim.AdamW([w])
    opt.step([grad])
    opt.step([grad])
    known = weakref.ref(grad)
    del grad
    collector.collect()
    assert known() is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_parameters_are_rounded_once(dtype: str, backend: str) -> None:
    """As float32 parameters that are rounded to 16 bits after each step."""
    kind = getattr(torch, dtype)
    half = [torch.linspace(-1, 1, 50).to(kind)]
    wide = [half[0].float()]
    one, other = optim.AdamW(half, lr=0.05, backend=backend), optim.AdamW(wide, lr=0.05, backend=backend)
    for step in range(10):
        grad = torch.sin(torch.arange(50) + step).to(kind)
        one.step([grad])
        other.step([grad])
        wide[0].copy_(wide[0].to(kind))
        assert torch.equal(half[0].float(), wide[0])
    assert one.state["0"]["exp_avg"].dtype == np.float32
