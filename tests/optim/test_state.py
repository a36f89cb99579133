"""What is kept of an optimizer, and what resumes it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import optim
from tests.optim.common import OPTIMIZERS, bits, state_bits
from tests.refusals import says


def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32)),
        "b": rng.standard_normal(5),
        "scale": np.array(2.0, np.float16),
    }


def grads(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params().items()}


def with_groups(name: str, given: Any, backend: str) -> optim.Optimizer:
    return OPTIMIZERS[name](given, backend=backend, groups={"plain": {"paths": ["b"], "lr": 0.03}})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_is_uninterrupted(name: str, backend: str) -> None:
    """Through a pickle, rates and all, to the bit."""
    straight, stopped = params(), params()
    one, first = with_groups(name, straight, backend), with_groups(name, stopped, backend)
    for step in range(3):
        one.step(grads(step))
        first.step(grads(step))
    one.lr = first.lr = 0.007
    one.groups["plain"].weight_decay = first.groups["plain"].weight_decay = 0.2
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    resumed = {path: p.copy(order="C") for path, p in stopped.items()}  # in another layout, too
    second = with_groups(name, resumed, backend)
    second.load_state_dict(saved)
    assert (second.lr, second.groups["plain"].lr, second.groups["plain"].weight_decay) == (0.007, 0.03, 0.2)
    for step in range(3, 6):
        one.step(grads(step))
        second.step(grads(step))
    assert {p: bits(v.copy(order="C")) for p, v in straight.items()} == {p: bits(v) for p, v in resumed.items()}
    assert one.state["w"]["step"] == second.state["w"]["step"] == 6


def test_what_is_saved(backend: str) -> None:
    given = params()
    opt = optim.AdamW(given, lr=0.1, backend=backend)
    opt.step(grads(0))
    saved = opt.state_dict()
    assert saved["optimizer"] == "AdamW"
    assert saved["hyperparameters"] == {"lr": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}
    assert list(saved["state"]) == ["w", "b", "scale"]
    entry = saved["state"]["w"]
    assert list(entry) == ["step", "exp_avg", "exp_avg_sq"]
    assert (entry["step"], entry["exp_avg"].shape, entry["exp_avg"].dtype) == (1, (3, 4), np.float32)
    assert entry["exp_avg"].flags.c_contiguous
    assert saved["state"]["b"]["exp_avg"].dtype == np.float64
    assert saved["state"]["scale"]["exp_avg"].dtype == np.float32
    np.testing.assert_allclose(entry["exp_avg"], 0.1 * grads(0)["w"], rtol=1e-6)
    before = entry["exp_avg"].copy()
    opt.step(grads(1))
    assert (entry["exp_avg"] == before).all()


def test_arrays_survive_numpys_own_format(backend: str) -> None:
    given = params()
    opt = optim.AdamW(given, backend=backend)
    opt.step(grads(0))
    saved, file = opt.state_dict(), io.BytesIO()
    np.savez(file, **{f"{p}/{k}": v for p, entry in saved["state"].items() for k, v in entry.items()})
    file.seek(0)
    loaded: dict[str, dict[str, Any]] = {}
    for key, value in np.load(file).items():
        path, _, name = key.rpartition("/")
        loaded.setdefault(path, {})[name] = value
    other = optim.AdamW(params(), backend=backend)
    other.load_state_dict({**saved, "state": loaded})
    assert state_bits(other) == state_bits(opt)


def test_state_is_a_view_that_may_not_be_written(backend: str) -> None:
    given = params()
    opt = optim.SGD(given, momentum=0.9, backend=backend)
    buffer = opt.state["w"]["momentum_buffer"]
    assert (buffer == 0).all()
    with pytest.raises(ValueError, match="read-only"):
        buffer[:] = 1
    opt.step(grads(0))
    assert bits(buffer.copy(order="C")) == bits(grads(0)["w"] + 0.0)
    assert optim.SGD(given, backend=backend).state["w"] == {"step": 0}


def broken(saved: dict[str, Any], name: str) -> Any:
    state = copy.deepcopy(saved)
    if name == "no mapping":
        return [state]
    if name == "a key":
        del state["groups"]
    if name == "another kind":
        state["optimizer"] = "Adam"
    if name == "betas":
        state["hyperparameters"]["betas"] = [0.9, 0.99]
    if name == "groups":
        state["groups"] = {"plain": {"paths": ["b"], "lr": None, "weight_decay": None}}
    if name == "a rate":
        state["hyperparameters"]["lr"] = -1.0
    if name == "paths":
        state["state"]["v"] = state["state"].pop("w")
    if name == "a name":
        del state["state"]["w"]["exp_avg"]
    if name == "a shape":
        state["state"]["w"]["exp_avg"] = np.zeros(5, np.float32)
    if name == "a dtype":
        state["state"]["scale"]["exp_avg"] = np.zeros((), np.float16)
    if name == "a count":
        state["state"]["scale"]["step"] = -1
    if name == "an entry":
        state["state"]["scale"] = 3
    return state


BROKEN = {
    "no mapping": "it is no optimizer's state",
    "a key": "it is no optimizer's state",
    "another kind": "its optimizer is 'Adam', and here 'AdamW'",
    "betas": "its betas are [0.9, 0.99], and here [0.9, 0.999]",
    "groups": "its groups are ['plain'], and here []",
    "a rate": "it is not a finite number >= 0",
    "paths": "its parameters are others: missing ['w'], unknown ['v']",
    "a name": "its entries are others: missing ['exp_avg'], unknown []",
    "a shape": "it is float32 of shape (5,), and here float32 of (3, 4)",
    "a dtype": "it is float16 of shape (), and here float32 of ()",
    "a count": "it counts no steps",
    "an entry": "it is no mapping",
}


@pytest.mark.parametrize("name", BROKEN)
def test_another_ones_state_is_refused_whole(name: str, backend: str) -> None:
    given = params()
    opt = optim.AdamW(given, backend=backend)
    opt.step(grads(0))
    saved = opt.state_dict()
    opt.step(grads(1))
    before = state_bits(opt), opt.lr
    saved["hyperparameters"]["lr"] = 0.5
    with says(gc.InvalidArgumentError, "load_state_dict", BROKEN[name]):
        opt.load_state_dict(broken(saved, name))
    assert (state_bits(opt), opt.lr) == before


def test_an_optimizer_is_not_copied(backend: str) -> None:
    opt = optim.Lion(params(), backend=backend)
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with says(gc.InvalidArgumentError, "copying or pickling Lion(lr=0.0001", "it is bound to parameters", "Save"):
            copying(opt)


def test_it_says_what_it_is() -> None:
    assert repr(optim.SGD(np.ones(1), 0.5, 0.9, nesterov=True)) == (
        "SGD(lr=0.5, momentum=0.9, dampening=0.0, nesterov=True, weight_decay=0.0)"
    )
    assert optim.SGD(np.ones(1), backend="numpy").backend == "numpy"
