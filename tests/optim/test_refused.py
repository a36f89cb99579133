"""What is refused: numbers, groups, parameters and gradients, each with its sentence, and nothing changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import optim, registry
from gradclip_core.reference import NumpyBackend
from tests.optim.common import bits, state_bits
from tests.refusals import says


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


NUMBERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "lr": (lambda: optim.SGD(ones(1), lr=-0.1), ("SGD, lr=-0.1", "Pass a finite number >= 0")),
    "lr nan": (lambda: optim.Lion(ones(1), lr=float("nan")), ("Lion, lr=nan", "Pass a finite number >= 0")),
    "lr text": (lambda: optim.Adam(ones(1), lr="1"), ("Adam, lr='1'", "a str is no number")),  # type: ignore[arg-type]
    "decay": (lambda: optim.AdamW(ones(1), weight_decay=-1), ("AdamW, weight_decay=-1", "Pass a finite number >= 0")),
    "eps": (lambda: optim.AdamW(ones(1), eps=float("inf")), ("AdamW, eps=inf", "Pass a finite number >= 0")),
    "beta": (lambda: optim.AdamW(ones(1), betas=(0.9, 1.0)), ("AdamW, betas[1]=1.0", "Pass a number >= 0 and < 1")),
    "betas": (lambda: optim.Lion(ones(1), betas=0.9), ("Lion, betas=0.9", "it is no pair")),  # type: ignore[arg-type]
    "momentum": (lambda: optim.SGD(ones(1), momentum=-0.5), ("SGD, momentum=-0.5", "Pass a finite number >= 0")),
    "dampening": (lambda: optim.SGD(ones(1), dampening=float("inf")), ("SGD, dampening=inf", "it is not finite")),
    "nesterov": (lambda: optim.SGD(ones(1), nesterov=1), ("SGD, nesterov=1", "it is no bool")),  # type: ignore[arg-type]
    "nesterov alone": (
        lambda: optim.SGD(ones(1), nesterov=True),
        ("without momentum there is nothing", "Pass a momentum > 0"),
    ),
    "nesterov dampened": (
        lambda: optim.SGD(ones(1), momentum=0.9, dampening=0.1, nesterov=True),
        ("Nesterov's momentum knows no dampening, and here it is 0.1", "Pass dampening=0"),
    ),
    "groups": (lambda: optim.SGD(ones(1), groups=[1]), ("SGD, groups=[1]", "it is no mapping")),
    "no group": (lambda: optim.SGD(ones(1), groups={"a": {}}), ("SGD, groups['a']={}", "it has no 'paths'")),
    "unknown": (
        lambda: optim.SGD(ones(1), groups={"a": {"paths": [], "eps": 1}}),
        ("'eps' is no key of a group", "Pass {name: {'paths'"),
    ),
    "a text": (lambda: optim.SGD(ones(1), groups={"a": {"paths": "0"}}), ("groups['a']['paths']='0'", "Pass a list")),
    "no path": (
        lambda: optim.SGD(ones(1), groups={"a": {"paths": ["w"]}}),
        ("SGD, groups['a']", "there is no parameter at 'w'; there are '0'"),
    ),
    "two groups": (
        lambda: optim.SGD(ones(1), groups={"a": {"paths": ["0"]}, "b": {"paths": ["0"]}}),
        ("SGD, groups['b']", "parameter '0' is in group 'a' too", "Put each parameter into one group"),
    ),
    "a group's lr": (
        lambda: optim.SGD(ones(1), groups={"a": {"paths": ["0"], "lr": -1}}),
        ("SGD, groups['a']['lr']=-1", "it is not a finite number >= 0"),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_refused(name: str) -> None:
    make, words = NUMBERS[name]
    with says(gc.InvalidArgumentError, *words):
        make()


def read_only() -> Any:
    w = ones(3)
    w.flags.writeable = False
    return w


base = ones(12)
PARAMS: dict[str, tuple[Any, type[gc.GradClipError], tuple[str, str]]] = {
    "read-only": (
        [read_only()],
        gc.ReadOnlyError,
        ("its writeable flag is off", "Pass parameters that may be written"),
    ),
    "a scalar": ([np.float32(1)], gc.ReadOnlyError, ("a NumPy scalar is immutable", "may be written")),
    "strided": ([base[::2]], gc.UnsafeMemoryError, ("do not fill one stretch of memory (strides (8,) bytes)", "copy")),
    "one element": (
        [np.broadcast_to(base[:1], (3,)).view()],
        gc.ReadOnlyError,
        ("its writeable flag is off", "Pass parameters that may be written"),
    ),
    "a window": (
        [np.lib.stride_tricks.as_strided(base, (3, 4), (4, 4))],
        gc.UnsafeMemoryError,
        ("do not fill one stretch", "a contiguous copy"),
    ),
    "overlapping": ([base[:8], base[4:]], gc.UnsafeMemoryError, ("arrays '0' and '1'", "they share memory")),
    "complex": ([np.ones(2, complex)], gc.UnsupportedArrayError, ("it is complex", "its real and imaginary parts")),
    "int": ([np.ones(2, int)], gc.UnsupportedArrayError, ("int64", "Convert")),
    "no array": ([1.0], gc.UnsupportedArrayError, ("leaf '0'", "is no array")),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_that_are_refused(name: str) -> None:
    params, error, words = PARAMS[name]
    with says(error, "AdamW, params", *words):
        optim.AdamW(params)


def test_float8_is_no_parameter_and_no_gradient() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    small = np.ones(2, ml_dtypes.float8_e4m3fn)
    words = ("optimizers do not serve float8_e4m3fn", "Convert to one of bfloat16, float16, float32, float64")
    with says(gc.UnsupportedArrayError, "SGD, params, array '0'", *words):
        optim.SGD([small])
    opt = optim.SGD([ones(2)])
    with says(gc.UnsupportedArrayError, "SGD.step, gradient '0'", *words):
        opt.step([small])


_CURE = "Pass grads in a container of the structure of params, with None where there is no gradient"
GRADS: dict[str, tuple[Any, type[gc.GradClipError], tuple[str, ...]]] = {
    "fewer": ([ones(3)], gc.InvalidArgumentError, ("there are 2 parameters and 1 gradients", _CURE)),
    "more": ([ones(3), ones(2, 2), ones(1)], gc.InvalidArgumentError, ("2 parameters and 3 gradients", _CURE)),
    "a shape": (
        [ones(4), None],
        gc.InvalidArgumentError,
        ("gradient '0'", "(4,), and that of its parameter (3,)", _CURE),
    ),
    "names": ({"w": ones(3)}, gc.InvalidArgumentError, ("gradient 'w'", "there is no parameter at that path", _CURE)),
    "alone": (ones(3), gc.InvalidArgumentError, ("the gradient is an array alone", _CURE)),
    "complex": ([np.ones(3, complex), None], gc.UnsupportedArrayError, ("gradient '0'", "it is complex")),
    "no array": ([3.0, None], gc.UnsupportedArrayError, ("leaf '0'", "is no array")),
}


@pytest.mark.parametrize("name", GRADS)
def test_gradients_that_are_refused(name: str, backend: str) -> None:
    grads, error, words = GRADS[name]
    params = [ones(3), ones(2, 2)]
    opt = optim.AdamW(params, backend=backend)
    opt.step([ones(3), ones(2, 2)])
    before = [bits(p) for p in params], state_bits(opt)
    with says(error, "AdamW.step", *words):
        opt.step(grads)
    assert ([bits(p) for p in params], state_bits(opt)) == before


def test_tied_gradients_of_other_parameters(backend: str) -> None:
    """What is wrong at a gradient's second path."""
    grad = ones(3)
    opt = optim.SGD({"a": ones(3), "b": ones(2)}, backend=backend)
    with says(gc.InvalidArgumentError, "SGD.step, grads, gradient 'c'", "there is no parameter at that path", _CURE):
        opt.step({"a": grad, "c": grad})
    with says(gc.InvalidArgumentError, "gradient 'b'", "its shape is (3,), and that of its parameter (2,)", _CURE):
        opt.step({"a": grad, "b": grad})


def test_gradients_that_share_memory_with_parameters(backend: str) -> None:
    memory = ones(10)
    opt = optim.SGD({"w": memory[:5]}, lr=1.0, backend=backend)
    for grad in (memory[:5], memory[2:7]):
        with says(gc.UnsafeMemoryError, "parameter 'w' and gradient 'w'", "they share memory", "Pass copies"):
            opt.step({"w": grad})
    assert opt.step({"w": memory[5:]})
    assert memory.tolist() == [0.0] * 5 + [1.0] * 5


def test_a_backend_without_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", dict(registry.BACKENDS))
    monkeypatch.delattr(NumpyBackend, "optimizers")
    with says(gc.BackendError, "SGD, backend='numpy'", "numpy has no updates for optimizers", "Leave backend=None"):
        optim.SGD(ones(1), backend="numpy")
    with says(gc.BackendError, "there is no such backend"):
        optim.SGD(ones(1), backend="nobody")


def test_updates_may_be_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradclip_core.optim.reference import UPDATES_IN_NUMPY

    monkeypatch.setattr(NumpyBackend, "optimizers", UPDATES_IN_NUMPY)
    w = ones(1)
    assert optim.SGD(w, lr=1.0, backend="numpy").step(ones(1))
    assert w.tolist() == [0.0]


def test_graphs_and_parameters_as_gradients() -> None:
    torch = pytest.importorskip("torch")
    leaf = torch.ones(3, requires_grad=True)
    with says(gc.InvalidArgumentError, "SGD, params, array '0'", "part of an autograd graph", "Pass the leaves"):
        optim.SGD([leaf * 2])
    leaf.sum().backward()
    opt = optim.SGD([leaf], lr=1.0)
    with says(gc.InvalidArgumentError, "SGD.step, array '0'", "it is a parameter that has a gradient"):
        opt.step([leaf])
    assert opt.step([leaf.grad])
    assert leaf.tolist() == [0.0] * 3


def test_the_module_is_imported_when_asked_for() -> None:
    assert gc.optim is optim
    with pytest.raises(AttributeError, match="has no attribute 'optimizer'"):
        gc.optimizer  # noqa: B018
