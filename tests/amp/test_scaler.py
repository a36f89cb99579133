"""The loss scale: its schedule, its powers of two, its state, and what it multiplies."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradclip_core as gc
from tests.refusals import says


def drive(scaler: gc.LossScaler, overflows: list[bool]) -> list[float]:
    """The scale after each step, some of which overflow."""
    clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler)
    scales = []
    for overflow in overflows:
        scaler.scale(1.0)
        info = clipper.step_([np.array([np.inf if overflow else 1.0])])
        assert info.skipped == overflow
        scales.append(scaler.get_scale())
    return scales


def test_it_falls_at_an_overflow_and_grows_after_as_many_steps_without() -> None:
    scaler = gc.LossScaler(1024.0, growth_interval=3)
    seen = drive(scaler, [False, False, True, False, False, False, False, False, False, True, True])
    assert seen == [1024, 1024, 512, 512, 512, 1024, 1024, 1024, 2048, 1024, 512]


def test_other_powers() -> None:
    scaler = gc.LossScaler(64.0, growth_factor=8.0, backoff_factor=0.125, growth_interval=1)
    assert drive(scaler, [False, True, True]) == [512, 64, 8]


@pytest.mark.filterwarnings("ignore::gradclip_core.LossScaleWarning")
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(-3, 3))
def test_never_beyond_floor_or_ceiling_and_always_a_power_of_two(
    overflows: list[bool], interval: int, start: int
) -> None:
    scaler = gc.LossScaler(2.0**start, growth_interval=interval, min_scale=2.0**-3, max_scale=2.0**3)
    for scale in drive(scaler, overflows):
        assert 2.0**-3 <= scale <= 2.0**3
        assert np.frexp(scale)[0] == 0.5


def test_at_the_floor_it_says_so() -> None:
    scaler = gc.LossScaler(2.0, min_scale=1.0)
    assert drive(scaler, [True]) == [1.0]
    with pytest.warns(gc.LossScaleWarning, match="at its floor, 1"):
        assert drive_again(scaler, True) == 1.0


def drive_again(scaler: gc.LossScaler, overflow: bool) -> float:
    scaler.record(scaler, overflow)
    scaler.update()
    return scaler.get_scale()


def test_static_never_moves_and_still_skips() -> None:
    scaler = gc.LossScaler.static(128.0)
    assert drive(scaler, [False, True, True, False]) == [128.0] * 4
    assert not scaler.dynamic
    assert "static(128" in repr(scaler)


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0, np.nan, np.inf, "big", None, True, 2.0**127])
def test_scales_are_powers_of_two(value: Any) -> None:
    with says(gc.InvalidArgumentError, "init_scale", "Pass a"):
        gc.LossScaler(value)
    with says(gc.InvalidArgumentError, "scale", "Pass a"):
        gc.LossScaler.static(value)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"growth_factor": 1.5}, ("growth_factor=1.5", "power of two")),
        ({"growth_factor": 0.5}, ("grow and fall", "growth_factor > 1 > backoff_factor")),
        ({"backoff_factor": 2.0}, ("grow and fall", "growth_factor > 1 > backoff_factor")),
        ({"growth_interval": 0}, ("growth_interval=0", "integer >= 1")),
        ({"growth_interval": 2.5}, ("growth_interval=2.5", "integer >= 1")),
        ({"min_scale": 2.0**20}, ("not between", "another min_scale or max_scale")),
        ({"max_scale": 1.0}, ("not between", "another min_scale or max_scale")),
    ],
)
def test_schedules_that_mean_nothing(keywords: dict[str, Any], words: tuple[str, ...]) -> None:
    with says(gc.InvalidArgumentError, *words):
        gc.LossScaler(**keywords)


def test_update_without_a_step() -> None:
    with says(gc.GradClipError, "no Clipper has measured", "call step_ for each first"):
        gc.LossScaler().update()


# ---- state ------------------------------------------------------------------------------------------


def test_state_resumes_the_schedule_in_the_middle() -> None:
    history = [False, True, False, False]
    first, again = gc.LossScaler(8.0, growth_interval=3), gc.LossScaler()
    drive(first, history)
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    assert drive(again, [False, False, False]) == drive(first, [False, False, False]) == [8.0, 8.0, 8.0]


def test_state_goes_to_torch_and_comes_from_there() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=7)
    theirs.scale(torch.ones(()))
    ours = gc.LossScaler()
    ours.load_state_dict(theirs.state_dict())
    assert (ours.get_scale(), ours.growth_interval) == (256.0, 7)
    ours.load_state_dict({**ours.state_dict(), "scale": 512.0})
    theirs.load_state_dict(ours.state_dict())
    assert theirs.get_scale() == 512.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scale": 3.0}, "power of two"),
        ({"_growth_tracker": -1}, "_growth_tracker"),
        ({"_growth_tracker": 10**6}, "_growth_tracker"),
        ({"scale": 2.0**60}, "not between"),
    ],
)
def test_a_bad_state_changes_nothing(change: dict[str, float], word: str) -> None:
    scaler = gc.LossScaler(64.0)
    before = scaler.state_dict()
    with says(gc.InvalidArgumentError, word, "P" if "not between" not in word else "Move the scale"):
        scaler.load_state_dict({**before, **change})
    with says(gc.InvalidArgumentError, "there is no 'scale'", "state_dict()"):
        scaler.load_state_dict({})
    assert scaler.state_dict() == before


def test_copies_are_independent() -> None:
    scaler = gc.LossScaler(64.0)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler)
    for twin in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        drive(twin, [True])
        assert (twin.get_scale(), scaler.get_scale()) == (32.0, 64.0)
    del clipper


# ---- losses -----------------------------------------------------------------------------------------


class Losses(NamedTuple):
    first: Any
    second: Any


def test_numbers_arrays_and_tuples_of_them() -> None:
    scaler = gc.LossScaler(8.0)
    assert scaler.scale(2) == 16.0
    assert scaler.scale(np.float32(0.5)).dtype == np.float32
    assert scaler.scale([1.0, np.float64(2.0)]) == [8.0, 16.0]
    assert scaler.scale(Losses(1.0, 2.0)) == Losses(8.0, 16.0)
    assert (scaler.scale(np.arange(3.0)) == [0.0, 8.0, 16.0]).all()


def test_a_half_precision_loss_does_not_overflow() -> None:
    found = gc.LossScaler(2.0**16).scale(np.float16(3.0))
    assert (found, found.dtype) == (3.0 * 2**16, np.float32)


def test_torch_losses_stay_differentiable() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        w = torch.ones((), dtype=dtype, requires_grad=True)
        loss = gc.LossScaler(2.0**16).scale(w * 3)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.item() == 3 * 2.0**16
        gc.LossScaler(1024.0).scale(w * 3).backward()
        assert w.grad.item() == 3072.0


def test_jax_losses_and_tracers() -> None:
    jax = pytest.importorskip("jax")
    scaler = gc.LossScaler(2.0**16)
    assert scaler.scale(jax.numpy.float16(3.0)) == 3.0 * 2**16
    with says(gc.UnsupportedArrayError, "JAX tracer", "take_scale()"):
        jax.jit(scaler.scale)(1.0)
    value, grad = jax.value_and_grad(lambda w, scale: (w**2) * scale)(3.0, scaler.take_scale())
    assert (value, grad) == (9.0 * 2**16, 6.0 * 2**16)


@pytest.mark.parametrize("loss", [None, "loss", True, {}, object()])
def test_what_is_no_loss(loss: Any) -> None:
    scaler = gc.LossScaler()
    with says(gc.UnsupportedArrayError, "LossScaler.scale", "Pass the loss"):
        scaler.scale(loss)
    assert scaler.taken == 0
