"""An optimizer that is bound to a Clipper: what it refuses, and what it does not. Mistakes that strangers made."""

from __future__ import annotations

import copy
import gc as garbage
import math
import pickle
from typing import Any

import pytest

import gradclip_core as gc
from tests.refusals import says

torch = pytest.importorskip("torch")

RULE = gc.GlobalNorm(1.0)


def bound(scaler: Any, **more: Any) -> tuple[Any, Any, gc.Clipper]:
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    return w, optimizer, gc.Clipper(RULE, scaler, params=optimizer, **more)


def scaler_of(kind: str) -> Any:
    return gc.LossScaler(256.0) if kind == "ours" else torch.amp.GradScaler("cpu", init_scale=256.0)


BOTH = pytest.mark.parametrize("kind", ["ours", "torch"])


@BOTH
def test_a_validation_loss_that_is_scaled_too_changes_nothing(kind: str) -> None:
    scaler = scaler_of(kind)
    w, optimizer, clipper = bound(scaler)
    scaler.scale((w * 0.5).sum()).backward()
    clipper.step_()
    scaler.scale(w.detach().sum())  # logged, never differentiated
    with says(gc.GradClipError, "unscaled already, and nothing was added to them", "to clip once more, call clip_"):
        clipper.step_()
    optimizer.step()
    assert w.tolist() == [0.5, 0.5]


@BOTH
def test_scaled_gradients_are_not_stepped_on(kind: str) -> None:
    scaler = scaler_of(kind)
    w, optimizer, clipper = bound(scaler)
    scaler.scale(w.sum()).backward()
    with says(gc.GradClipError, "still multiplied with the loss scale 256", "clipper.step_()"):
        optimizer.step()
    clipper.step_([w.grad.clone()], optimizer=optimizer if kind == "torch" else None)
    if kind == "ours":  # a copy was unscaled, and the gradient is what it was
        with says(gc.GradClipError, "still multiplied with the loss scale", "clipper.step_()"):
            optimizer.step()
    assert w.tolist() == [1.0, 1.0]


def test_new_arrays_leave_the_old_ones_scaled() -> None:
    w, optimizer, clipper = bound(gc.LossScaler(256.0))
    clipper.loss_scaler.scale(w.sum()).backward()
    clipper()
    with says(gc.GradClipError, "still multiplied", "clipper.step_()"):
        optimizer.step()


@BOTH
def test_a_step_that_is_to_be_skipped(kind: str) -> None:
    scaler = scaler_of(kind)
    w, optimizer, clipper = bound(scaler)
    scaler.scale(w.sum() * math.inf).backward()
    clipper.step_()
    with says(gc.GradClipError, "is to be skipped: 2 gradient elements", "if not info.skipped"):
        optimizer.step()
    if kind == "torch":
        scaler.step(optimizer)  # skips by itself
        scaler.update()
    assert w.tolist() == [1.0, 1.0]


def test_without_a_scaler_too() -> None:
    w, optimizer, clipper = bound(None, nonfinite="skip")
    (w * math.inf).sum().backward()
    assert clipper.step_().skipped
    with says(gc.GradClipError, "is to be skipped", "if not info.skipped"):
        optimizer.step()
    assert w.tolist() == [1.0, 1.0]


def test_a_disabled_grad_scaler_is_none() -> None:
    """The idiom enabled=use_amp: nothing would skip."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    w, _, clipper = bound(scaler)
    scaler.scale((w * math.inf).sum()).backward()
    with says(gc.NonFiniteGradientError, "2 inf", "nonfinite"):
        clipper.step_()


def test_update_twice_in_an_iteration_of_torchs() -> None:
    scaler = scaler_of("torch")
    w, optimizer, clipper = bound(scaler)
    scaler.scale((w * 0.5).sum()).backward()
    clipper.step_()
    scaler.step(optimizer)
    scaler.update()
    with says(gc.GradClipError, "unscaled already, and nothing was added", "after backward"):
        clipper.step_()


def test_then_is_not_for_their_scaler() -> None:
    scaler = scaler_of("torch")
    w, optimizer, clipper = bound(scaler)
    scaler.scale(w.sum()).backward()
    with says(gc.InvalidArgumentError, "steps through it", "scaler.step(optimizer)"):
        clipper.step_(then=optimizer.step)
    with says(gc.InvalidArgumentError, "cannot be called", "optimizer.step"):
        clipper.step_(then=3)  # type: ignore[arg-type]
    assert w.grad.tolist() == [256.0, 256.0]


@BOTH
def test_closures(kind: str) -> None:
    w, optimizer, _ = bound(scaler_of(kind))
    for args, kwargs in (((w.sum,), {}), ((), {"closure": w.sum})):
        with says(gc.GradClipError, "closure runs backward inside", "no loss scale"):
            optimizer.step(*args, **kwargs)
    w, optimizer, clipper = bound(None)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        clipper.step_()
        return loss

    optimizer.step(closure)
    assert w.tolist() == pytest.approx([1 - math.sqrt(0.5)] * 2)


def test_a_state_that_is_loaded_disarms_nothing() -> None:
    w, optimizer, clipper = bound(gc.LossScaler(256.0))
    state = clipper.state_dict()
    clipper.loss_scaler.scale(w.sum() * math.inf).backward()
    clipper.step_()
    clipper.load_state_dict(state)
    with says(gc.GradClipError, "is to be skipped", "if not info.skipped"):
        optimizer.step()
    optimizer.zero_grad()
    clipper.loss_scaler.scale((w * 0.5).sum()).backward()
    clipper.load_state_dict(state)
    with says(gc.GradClipError, "still multiplied", "clipper.step_()"):
        optimizer.step()
    clipper.step_(then=optimizer.step)
    assert w.tolist() == [0.5, 0.5]


def test_a_loaded_scale_is_not_the_one_that_a_loss_was_scaled_by() -> None:
    w, _, clipper = bound(gc.LossScaler(64.0))
    clipper.loss_scaler.scale(w.sum()).backward()
    clipper.loss_scaler.load_state_dict({**clipper.loss_scaler.state_dict(), "scale": 8.0})
    with says(gc.GradClipError, "scaled by 64, and the scale has become 8", "Update the scale last"):
        clipper.step_()


@pytest.mark.parametrize("statistics", [None, {}, {"steps": "x"}, 3])
def test_a_state_that_is_none_changes_nothing(statistics: Any) -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(64.0))
    state = {**gc.Clipper(RULE, gc.LossScaler(8.0)).state_dict(), "statistics": statistics}
    with says(gc.InvalidArgumentError, "statistics", "state_dict()"):
        clipper.load_state_dict(state)
    for bad in (None, 3):
        with says(gc.InvalidArgumentError, "not the state of a Clipper", "state_dict()"):
            clipper.load_state_dict(bad)  # type: ignore[arg-type]
        with says(gc.InvalidArgumentError, "no mapping", "state_dict()"):
            clipper.loss_scaler.load_state_dict(bad)
    assert clipper.loss_scaler.get_scale() == 64.0


def test_two_optimizers_in_any_legal_order() -> None:
    scaler = gc.LossScaler(4.0)
    (a, first, one), (b, second, two) = (bound(scaler, update=False) for _ in range(2))
    scaler.scale((a * 0.5).sum()).backward()
    one.step_()
    scaler.scale((b * 0.5).sum()).backward()
    two.step_()
    first.step()
    second.step()
    scaler.update()
    assert (a.tolist(), b.tolist()) == ([0.5, 0.5], [0.5, 0.5])


def test_an_iteration_that_is_given_up() -> None:
    w, optimizer, clipper = bound(gc.LossScaler(4.0))
    clipper.loss_scaler.scale(w.sum()).backward()
    optimizer.zero_grad()
    w.sum().backward()  # not scaled this time
    with says(gc.GradClipError, "still multiplied", "clipper.reset() if they were cleared"):
        optimizer.step()
    clipper.reset()
    optimizer.step()
    assert w.tolist() == [0.0, 0.0]


def test_the_last_clipper_watches_and_a_lost_one_does_not() -> None:
    w, optimizer, old = bound(gc.LossScaler(8.0))
    old.loss_scaler.scale(w.sum()).backward()
    optimizer.zero_grad()
    for lost in (False, True):
        if lost:
            del old
            garbage.collect()
        clipper = gc.Clipper(RULE, gc.LossScaler(64.0), params=optimizer)
        clipper.loss_scaler.scale((w * 0.25).sum()).backward()
        clipper.step_(then=optimizer.step)
        optimizer.zero_grad()
    assert w.tolist() == [0.5, 0.5]


def test_a_bound_clipper_is_not_copied() -> None:
    _, _, clipper = bound(gc.LossScaler(8.0))
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with says(gc.InvalidArgumentError, "bound to parameters", "state_dict()"):
            make(clipper)
    free = gc.Clipper(RULE, gc.LossScaler(8.0))
    with says(gc.InvalidArgumentError, "another Clipper unscales by this scaler", "update=False"):
        copy.copy(free)


def test_a_wrapper_without_hooks_is_not_watched() -> None:
    class Lookahead(torch.optim.Optimizer):  # type: ignore[misc, name-defined]
        def __init__(self, inner: Any) -> None:
            self.inner, self.param_groups = inner, inner.param_groups

    w = torch.ones(2, requires_grad=True)
    clipper = gc.Clipper(RULE, gc.LossScaler(8.0), params=Lookahead(torch.optim.SGD([w])))
    clipper.loss_scaler.scale(w.sum()).backward()
    assert clipper.step_().norm == pytest.approx(math.sqrt(2))


def test_layers_that_were_replaced_are_found() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    clipper = gc.Clipper(RULE, gc.LossScaler(8.0), params=model)
    model[1] = torch.nn.Linear(2, 3)
    clipper.loss_scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    assert set(clipper.step_().norms) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gc.Clipper(RULE, update="no"), ("update='no'", "True or False")),  # type: ignore[arg-type]
        (lambda: bound(gc.LossScaler())[2].step_([torch.ones(2)], optimizer=3), ("only a GradScaler", "params=")),
        (lambda: gc.clip([torch.ones(2)], RULE, out=[torch.ones(2, requires_grad=True)]), ("parameter", "empty_like")),
    ],
)
def test_arguments_that_would_have_no_effect_or_a_bad_one(make: Any, words: tuple[str, ...]) -> None:
    with says(gc.InvalidArgumentError, *words):
        make()


def test_read_only_gradients_are_sent_to_the_right_call() -> None:
    jax = pytest.importorskip("jax")
    clipper = gc.Clipper(RULE)
    with says(gc.ReadOnlyError, "clipped, info = clipper(grads)"):
        clipper.step_([jax.numpy.ones(2)])


def test_an_info_out_of_a_pickle_knows_its_numbers() -> None:
    _, info = gc.clip([torch.ones(2)], RULE)
    for twin in (pickle.loads(pickle.dumps(info)), copy.deepcopy(info)):
        assert twin.known
        assert repr(twin) == repr(info)
