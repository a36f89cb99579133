"""What parameters and gradients may be: containers, layouts, ties, Nones; groups, and rates that change."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import optim
from tests.optim.common import OPTIMIZERS, bits
from tests.refusals import says

Pair = namedtuple("Pair", "weight bias")


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


# ---- containers and layouts -------------------------------------------------------------------------


def test_any_container(backend: str) -> None:
    params = {"layers": [Pair(ones(2, 3), ones(3)), None, (ones(4),)], "scale": ones()}
    grads = {"layers": [Pair(ones(2, 3), None), None, (ones(4),)], "scale": ones()}
    opt = optim.SGD(params, lr=0.5, backend=backend)
    assert opt.step(grads)
    assert list(opt.state) == ["layers.0.weight", "layers.0.bias", "layers.2.0", "scale"]
    assert [opt.state[path]["step"] for path in opt.state] == [1, 0, 1, 1]
    assert params["layers"][0].weight.tolist() == [[0.5] * 3] * 2
    assert params["layers"][0].bias.tolist() == [1.0] * 3
    assert params["scale"] == 0.5


def test_a_bare_array_an_iterator_and_no_element(backend: str) -> None:
    w = ones(3)
    assert optim.SGD(w, lr=1.0, backend=backend).step(ones(3))
    assert optim.SGD(iter([w]), lr=1.0, backend=backend).step(iter([ones(3)]))
    assert w.tolist() == [-1.0] * 3
    nothing = optim.AdamW([np.zeros((0, 3), np.float32)], backend=backend)
    assert nothing.step([np.zeros((0, 3), np.float32)])
    assert nothing.state["0"]["step"] == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_element_s_step_is_its_own_in_every_layout(name: str, backend: str) -> None:
    """Fortran and transposed parameters, gradients of another layout, strided or reversed: the same numbers."""
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((4, 5, 3)), rng.standard_normal((3, 4, 5, 3)).astype(np.float32)
    plain = start.astype(np.float32)
    reference = OPTIMIZERS[name](plain, backend=backend)
    for g in gradients:
        reference.step(g)
    layouts: list[Any] = [
        lambda x: x.copy(),
        np.asfortranarray,
        lambda x: x.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    ]
    strided: list[Any] = [*layouts, lambda x: np.repeat(x, 2, axis=1)[:, ::2], lambda x: x[::-1].copy()[::-1]]
    for lay in layouts:
        for lie in strided:
            w = lay(start.astype(np.float32))
            opt = OPTIMIZERS[name](w, backend=backend)
            for g in gradients:
                opt.step(lie(g))
            assert bits(w.copy(order="C")) == bits(plain)
            for key, value in reference.state["0"].items():
                assert key == "step" or bits(opt.state["0"][key].copy(order="C")) == bits(value.copy(order="C"))


def test_gradients_that_are_elsewhere_each_time(backend: str) -> None:
    """And a gradient that shares memory with nothing, then one that is packed, then the first one's address again."""
    w, known = np.zeros(4, np.float32), ones(4)
    opt = optim.SGD(w, lr=1.0, backend=backend)
    for grad in (known, np.repeat(ones(4), 2)[::2], known, ones(4) * 2, np.repeat(ones(4) * 3, 2)[::2], known):
        opt.step(grad)
    assert w.tolist() == [-9.0] * 4


def test_a_tied_parameter_is_one(backend: str) -> None:
    shared, head = ones(3), ones(2)
    params = {"embed": shared, "head": head, "out": shared}
    opt = optim.SGD(params, lr=0.5, momentum=0.9, backend=backend)
    assert list(opt.state) == ["embed", "head"]
    grad = ones(3)
    assert opt.step({"embed": grad, "head": None, "out": grad})
    assert shared.tolist() == [0.5] * 3
    assert opt.step({"embed": None, "out": ones(3)})
    assert opt.state["embed"]["step"] == 2
    with says(
        gc.InvalidArgumentError, "SGD.step, grads, gradient 'out'", "is that of gradient 'embed'", "Pass their sum"
    ):
        opt.step({"embed": ones(3), "out": ones(3)})


def test_one_gradient_of_two_parameters(backend: str) -> None:
    a, b, grad = ones(3), ones(3) * 5, ones(3)
    assert optim.SGD({"a": a, "b": b}, lr=1.0, backend=backend).step({"a": grad, "b": grad})
    assert (a.tolist(), b.tolist()) == ([0.0] * 3, [4.0] * 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_left_alone(name: str, backend: str) -> None:
    """Its weights are not decayed, and its count of steps stays: its first step is a first step."""
    late, early = [ones(5), ones(5)], [ones(5)]
    one, other = OPTIMIZERS[name](late, backend=backend), OPTIMIZERS[name](early, backend=backend)
    one.step([ones(5), None])
    one.step([ones(5), None])
    assert (late[1] == 1).all()
    one.step([ones(5), ones(5) * 2])
    other.step([ones(5) * 2])
    assert bits(late[1]) == bits(early[0])
    assert [one.state[path]["step"] for path in one.state] == [3, 1]


@pytest.mark.parametrize("grad", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("param", [np.float16, np.float32, np.float64])
def test_every_pair_of_dtypes(param: Any, grad: Any, backend: str) -> None:
    """Computed in float32, and in float64 for float64 parameters."""
    w, g = np.linspace(-1, 1, 9).astype(param), np.linspace(3, 5, 9).astype(grad)
    wide: Any = np.float64 if param is np.float64 else np.float32
    expected = w.astype(wide) - wide(0.1) * g.astype(wide)
    opt = optim.SGD(w, lr=0.1, momentum=0.9, backend=backend)
    opt.step(g)
    assert bits(w) == bits(expected.astype(param))
    assert opt.state["0"]["momentum_buffer"].dtype == wide


# ---- groups and numbers -----------------------------------------------------------------------------


def test_groups_have_a_decay_and_a_rate_of_their_own(backend: str) -> None:
    params = {"w": ones(2), "bias": ones(2), "norm": ones(2)}
    groups = {
        "plain": {"paths": lambda path: path != "w", "weight_decay": 0.0},
    }
    opt = optim.AdamW(params, lr=0.1, weight_decay=0.5, groups=groups, backend=backend)
    assert opt.groups["plain"].paths == ("bias", "norm")
    zeros = {name: np.zeros(2, np.float32) for name in params}
    opt.step(zeros)
    assert params["bias"].tolist() == params["norm"].tolist() == [1.0, 1.0]
    assert params["w"].tolist() == [float(np.float32(0.95))] * 2
    opt.groups["plain"].weight_decay = None
    opt.groups["plain"].lr = 0.2
    opt.lr = 0.0
    before = params["w"].tolist()
    opt.step(zeros)
    assert params["w"].tolist() == before
    assert params["bias"].tolist() == [float(np.float32(0.9))] * 2
    assert "lr=0.2" in repr(opt.groups["plain"])


def test_a_rate_may_be_set_between_steps(backend: str) -> None:
    w = ones(1)
    opt = optim.SGD(w, lr=1.0, backend=backend)
    for rate in (0.5, np.float64(0.25), np.array(0.125)):
        opt.lr = rate
        opt.step(ones(1))
    assert w.tolist() == [0.125]
    with says(gc.InvalidArgumentError, "SGD, lr=-1", "it is not a finite number >= 0"):
        opt.lr = -1
    assert opt.lr == 0.125
