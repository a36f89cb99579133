"""What strangers did, and optimizers were silent: each is refused, with a sentence, and nothing has changed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import optim
from tests.optim.common import bits
from tests.refusals import says


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def two() -> dict[str, Any]:
    return {"w": ones(3), "bias": ones(2)}


# ---- checkpoints ------------------------------------------------------------------------------------


def grouped(*paths: str, **options: Any) -> optim.Optimizer:
    return optim.AdamW(two(), groups={"g": {"paths": list(paths), **options}})


def test_a_group_of_other_parameters_is_another_group() -> None:
    saved = grouped("bias", lr=0.5, weight_decay=0.0).state_dict()
    assert saved["groups"] == {"g": {"paths": ["bias"], "lr": 0.5, "weight_decay": 0.0}}
    other = grouped("w", lr=0.25)
    with says(gc.InvalidArgumentError, "load_state_dict, groups['g']", "its paths are ['bias'], and here ['w']"):
        other.load_state_dict(saved)
    assert other.groups["g"].lr == 0.25
    alike = grouped("bias")
    alike.load_state_dict(saved)
    assert (alike.groups["g"].lr, alike.groups["g"].weight_decay) == (0.5, 0.0)
    both = grouped("w", "bias")
    both.load_state_dict(grouped("bias", "w").state_dict())


@pytest.mark.parametrize(
    ("groups", "seen"),
    [
        ({"g": {"lr": None, "weight_decay": None}}, "missing ['paths']"),
        ({"g": {"paths": ["bias"], "lr": None, "weight_decay": None, "eps": 1}}, "unknown ['eps']"),
        ({"g": 3}, "it is no mapping"),
        (3, "it is no mapping"),
    ],
)
def test_groups_that_are_none(groups: Any, seen: str) -> None:
    opt = grouped("bias")
    with says(gc.InvalidArgumentError, "AdamW.load_state_dict", seen, "Pass what state_dict()"):
        opt.load_state_dict({**opt.state_dict(), "groups": groups})


def test_state_is_widened_and_not_narrowed() -> None:
    """A model that was made double goes on with its state."""
    narrow = optim.SGD({"w": ones(3)}, momentum=0.9)
    narrow.step({"w": ones(3) / 3})
    wide = optim.SGD({"w": np.ones(3)}, momentum=0.9)
    wide.load_state_dict(narrow.state_dict())
    assert wide.state["w"]["momentum_buffer"].tolist() == (ones(3) / 3).tolist()
    with says(gc.InvalidArgumentError, "it is float64 of shape (3,), and here float32", "x.astype(np.float32)"):
        narrow.load_state_dict(wide.state_dict())


def test_a_state_goes_through_torch_s_files() -> None:
    torch = pytest.importorskip("torch")
    opt, file = grouped("bias"), io.BytesIO()
    opt.step(two())
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again = grouped("bias")
    again.load_state_dict(torch.load(file, weights_only=False))
    assert bits(again.state["w"]["exp_avg"]) == bits(opt.state["w"]["exp_avg"])


# ---- what may be set --------------------------------------------------------------------------------

SET: dict[str, tuple[Any, str, Any, str]] = {
    "momentum": (lambda: optim.SGD(two()), "momentum", 0.9, "SGD.momentum=0.9"),
    "betas": (lambda: optim.AdamW(two()), "betas", (0.5, 0.5), "AdamW.betas=(0.5, 0.5)"),
    "eps": (lambda: optim.Adam(two()), "eps", 1e-4, "Adam.eps=0.0001"),
    "groups": (lambda: optim.Lion(two()), "groups", {}, "Lion.groups={}"),
    "backend": (lambda: optim.Lion(two()), "backend", "numpy", "Lion.backend='numpy'"),
    "a group's paths": (lambda: grouped("w").groups["g"], "paths", ["bias"], "AdamW, groups['g'].paths=['bias']"),
}


@pytest.mark.parametrize("name", SET)
def test_what_is_fixed_is_not_set(name: str) -> None:
    make, attribute, value, asked = SET[name]
    with says(gc.InvalidArgumentError, asked, "it is fixed when the optimizer is made", "Set lr or weight_decay"):
        setattr(make(), attribute, value)


def test_what_is_misspelled_is_not_set() -> None:
    opt = grouped("w")
    for thing in (opt, opt.groups["g"]):
        with says(gc.InvalidArgumentError, "learning_rate=0", "nothing of that name", "Set lr or weight_decay"):
            thing.learning_rate = 0
        thing.lr, thing.weight_decay = 0.5, 0.25
        assert (thing.lr, thing.weight_decay) == (0.5, 0.25)


def test_groups_and_fixed_numbers_are_only_read() -> None:
    opt: Any = grouped("w")
    with says(gc.InvalidArgumentError, "AdamW, groups['zz']=1", "it is fixed", "Make an optimizer anew"):
        opt.groups["zz"] = 1
    with says(gc.InvalidArgumentError, "AdamW, fixed['eps']=1", "it is fixed", "Make an optimizer anew"):
        opt.fixed["eps"] = 1
    assert (list(opt.groups), len(opt.groups), opt.fixed) == (["g"], 1, {"betas": (0.9, 0.999), "eps": 1e-8})
    assert repr(opt).endswith("groups={'g': Group(lr=None, weight_decay=None, paths=['w'])})")
    assert repr(opt.fixed) == "{'betas': (0.9, 0.999), 'eps': 1e-08}"


# ---- nothing to update ------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [[], (), lambda path: path.endswith(".bias")], ids=["list", "tuple", "function"])
def test_a_group_that_catches_nothing(paths: Any) -> None:
    with says(gc.InvalidArgumentError, "SGD, groups['g']", "it catches no parameter; their paths are 'w', 'bias'"):
        optim.SGD(two(), groups={"g": {"paths": paths}})


@pytest.mark.parametrize("params", [{}, [], None, {"w": None}], ids=str)
def test_no_parameters(params: Any) -> None:
    with says(gc.InvalidArgumentError, "AdamW, params", "there is no parameter in it", "Pass arrays"):
        optim.AdamW(params)


@pytest.mark.parametrize("grads", [{}, None, {"w": None, "bias": None}], ids=str)
def test_no_gradient(grads: Any, backend: str) -> None:
    opt = optim.SGD(two(), backend=backend)
    for plan in (None, gc.plan(grads, gc.GlobalNorm(1.0))):
        with says(gc.GradClipError, "SGD.step", "no parameter has a gradient", "Call backward before it"):
            opt.step(grads, plan)
    assert opt.step({"w": ones(3), "bias": None})


# ---- plans ------------------------------------------------------------------------------------------


def test_a_plan_is_for_one_step(backend: str) -> None:
    params, grads = two(), two()
    opt = optim.SGD(params, lr=0.5, backend=backend)
    plan = gc.plan(grads, gc.GlobalNorm(1e6), backend=backend)
    assert opt.step(grads, plan)
    with says(gc.GradClipError, "SGD.step, plan", "a step has been made with it", "Call gradclip_core.plan anew"):
        opt.step(grads, plan)
    assert params["w"].tolist() == [0.5] * 3
    assert optim.Lion(two(), backend=backend).step(grads, plan)  # another optimizer, the same gradients
    assert opt.step(grads, gc.plan(grads, gc.GlobalNorm(1.0), backend=backend))


def test_a_plan_that_was_refused_or_skipped(backend: str) -> None:
    """A step that did not take place has not used it; one that was skipped has."""
    opt = optim.SGD(two(), backend=backend)
    plan = gc.plan(two(), gc.GlobalNorm(1.0), backend=backend)
    with says(gc.InvalidArgumentError, "there is no parameter at that path"):
        opt.step({"v": ones(3)}, plan)
    assert opt.step(two(), plan)
    bad = {"w": ones(3) * np.inf, "bias": ones(2)}
    plan = gc.plan(bad, gc.GlobalNorm(1.0), nonfinite="skip", backend=backend)
    assert opt.step(bad, plan) is False
    with says(gc.GradClipError, "a step has been made with it"):
        opt.step(bad, plan)


def test_plans_are_not_held_on_to(backend: str) -> None:
    opt = optim.SGD(two(), backend=backend)
    for _ in range(5):
        opt.step(two(), gc.plan(two(), gc.GlobalNorm(1.0), backend=backend))
    assert len(opt._stepped) == 0


def test_a_plan_that_was_applied_is_not_deferred(backend: str) -> None:
    params, grads = two(), two()
    opt = optim.SGD(params, backend=backend)
    plan = gc.plan(grads, gc.GlobalNorm(1.0), backend=backend)
    plan.apply(grads)
    later = copy.copy(plan)
    plan.apply_(grads)
    for applied in (plan, copy.copy(plan), copy.deepcopy(plan)):
        with says(gc.GradClipError, "SGD.step, plan", "applied in place already", "Call step(grads) without the plan"):
            opt.step(grads, applied)
    assert (params["w"] == 1).all()
    assert opt.step(two(), later)
    assert opt.step(grads)


def test_plans_are_copied_and_not_pickled(backend: str) -> None:
    plan = gc.plan(two(), gc.GlobalNorm(1.0), backend=backend)
    for made in (copy.copy(plan), copy.deepcopy(plan)):
        grads, expected = two(), two()
        made.apply_(grads)
        plan.apply_(expected)
        assert made.scale == plan.scale
        assert bits(grads["w"]) == bits(expected["w"])
    with says(gc.GradClipError, "pickling a plan", "it is a decision", "plan where the gradients are"):
        pickle.dumps(plan)


def test_the_plan_is_the_second_argument() -> None:
    opt, grads = optim.SGD(two()), two()
    plan = gc.plan(grads, gc.GlobalNorm(1.0))
    for arguments in ((plan,), (plan, grads)):
        with says(gc.InvalidArgumentError, "SGD.step(Plan(", "where the gradients belong", "Call step(grads, plan)"):
            opt.step(*arguments)


# ---- advice -----------------------------------------------------------------------------------------


def test_a_module_and_its_named_parameters() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    given: list[Callable[[], Any]] = [
        lambda: model,
        lambda: [model],
        model.named_parameters,
        lambda: list(model.named_parameters()),
    ]
    for give in given:
        with says(gc.UnsupportedArrayError, "SGD, params, leaf", "Pass dict(model.named_parameters())"):
            optim.SGD(give())
    assert list(optim.SGD(model.parameters()).state) == ["0", "1"]


def test_parameter_groups_of_torch() -> None:
    for given in ([{"params": [ones(2)], "lr": 0.1}], ({"params": iter([ones(2)])}, {"params": ones(3)})):
        with says(gc.InvalidArgumentError, "AdamW, params", "torch's parameter groups", "groups={name: {'paths'"):
            optim.AdamW(given)
    assert list(optim.AdamW([{"params": {"w": ones(2)}}]).state) == ["0.params.w"]


def test_advice_on_dtypes_is_an_optimizer_s() -> None:
    cure = "Convert to one of bfloat16, float16, float32, float64"
    for act, seen in (
        (lambda: optim.AdamW({"a": np.ones(2, int)}), "AdamW, params, array 'a': dtype int64 is no parameter's dtype"),
        (lambda: optim.AdamW({"a": ones(2)}).step({"a": np.ones(2, int)}), "AdamW.step, array 'a': dtype int64"),
    ):
        with pytest.raises(gc.UnsupportedArrayError) as caught:
            act()
        assert seen in str(caught.value)
        assert caught.value.cure == cure


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"paths": [1]}, ("groups['g']['paths']", "1 is no path: a path is a str, and this is of type int", "'w'")),
        ({"paths": [ones(1)]}, ("groups['g']['paths']", "is no path", "of type ndarray")),
        ({"paths": ["w"], "learning_rate": 1}, ("'learning_rate' is no key of a group", "Pass {name:")),
        ({"lr": 1}, ("it has no 'paths'", "Pass {name:")),
        (3, ("groups['g']=3", "it is no group", "Pass {name:")),
    ],
    ids=str,
)
def test_groups_that_are_refused(entry: Any, words: tuple[str, ...]) -> None:
    with says(gc.InvalidArgumentError, *words):
        optim.SGD(two(), groups={"g": entry})


def test_two_gradients_of_one_parameter_in_a_whole_sentence() -> None:
    shared = ones(3)
    opt = optim.SGD({"a": shared, "b": shared})
    with says(gc.InvalidArgumentError, "which is another array, and one of them counts. Pass their sum"):
        opt.step({"a": ones(3), "b": ones(3)})


# ---- numbers and replaced arrays --------------------------------------------------------------------


def test_numbers_that_overflow_float32(backend: str) -> None:
    for make in (
        lambda p: optim.SGD(p, lr=1e39, backend=backend),
        lambda p: optim.Adam(p, lr=1e38, backend=backend),  # over 1 - β1
        lambda p: optim.Lion(p, lr=1e30, weight_decay=1e30, backend=backend),
    ):
        params = two()
        opt = make(params)
        with says(gc.InvalidArgumentError, ".step, lr=1e+3", "overflows float32 ('", "Pass smaller ones"):
            opt.step(two())
        assert (params["w"] == 1).all()
        assert opt.state["w"]["step"] == 0
        assert make({"w": np.ones(3), "bias": np.ones(2)}).step(two())


def test_an_array_that_was_put_in_place_of_a_parameter(backend: str) -> None:
    params = two()
    opt = optim.SGD(params, lr=0.5, backend=backend)
    params["w"] = params["w"][:]  # the same memory
    assert opt.step(two())
    old, params["w"] = params["w"], params["w"] * 2
    with says(gc.InvalidArgumentError, "SGD.step, parameter 'w'", "replaced by another array", "params[name][...]"):
        opt.step(two())
    assert params["bias"].tolist() == [0.5] * 2
    params["w"] = old
    assert opt.step(two())


def test_state_of_frozen_parameters_takes_no_memory() -> None:
    """It is zeros that nobody has touched, which the system gives no pages."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("only Linux says how many pages there are")
    w = np.zeros(32_000_000, np.float32)
    before = int(pages.read_text().split()[1])
    opt = optim.AdamW({"w": w, "b": ones(4)})
    assert opt.step({"w": None, "b": ones(4)})
    grown = (int(pages.read_text().split()[1]) - before) * 4096
    assert grown < w.nbytes / 2
    assert opt.state["w"]["step"] == 0
