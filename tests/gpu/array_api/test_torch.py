"""PyTorch's tensors on a device that has no kernels here: through PyTorch's own operations."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import registry
from gradclip_core.rules import Rule
from gradclip_core.testing.protect import dies_when_protected
from tests.gpu.array_api.ways import PASSED_OVER, Ways, layouts
from tests.gpu.cupy.compare import POLICIES, contents, laid_out, some, told
from tests.gpu.standin import Machine
from tests.gpu.standin.torch_cuda import TorchCuda, cuda_tensors
from tests.refusals import check_sentence

torch: Any = pytest.importorskip("torch")
BFLOAT16 = ml_dtypes.bfloat16
REAL = (np.float16, BFLOAT16, np.float32, np.float64)
RULES: dict[str, Rule] = {
    "global": gc.GlobalNorm(1.0),
    "global 1": gc.GlobalNorm(1.0, 1),
    "global inf": gc.GlobalNorm(0.5, math.inf),
    "nothing over": gc.GlobalNorm(1e6),
    "all to zero": gc.GlobalNorm(0.0),
    "array": gc.ArrayNorm(1.0),
    "groups": gc.GroupNorm({"x": 1.0, "y": None, "z": 0.1}, {"x": ["w", "one"], "y": ["b"], "z": ["none"]}),
    "value": gc.Value(0.5),
    "interval": gc.Value((-0.1, 0.7)),
    "half open": gc.Value((-math.inf, 0.25)),
    "chain": gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
    "chain of three": gc.Chain(gc.ArrayNorm(9.0), gc.GlobalNorm(5.0, 1), gc.Value(0.001)),
}


@pytest.fixture
def fake(standin: Machine) -> Iterator[TorchCuda]:
    with cuda_tensors(standin) as fake:
        yield fake


@pytest.fixture
def ways(fake: TorchCuda) -> Ways:
    return Ways(lambda x: fake.add(tensor(x), 1), as_numpy)


def tensor(x: Any) -> Any:
    """A tensor with an array's elements and strides."""
    bits, kind = (np.uint16, torch.bfloat16) if x.dtype == BFLOAT16 else (x.dtype, None)
    block, start = laid_out(x) if x.size else (np.zeros(0, np.uint8), 0)
    flat = torch.from_numpy(block.view(bits))
    flat = flat if kind is None else flat.view(kind)
    return flat.as_strided(x.shape, [step // x.itemsize for step in x.strides], start // x.itemsize)


def as_numpy(x: Any) -> Any:
    """A copy of its bits, wherever it pretends to be."""
    name = str(x.dtype).removeprefix("torch.")
    raw = torch.empty(x.shape, dtype=x.dtype).copy_(x).reshape(-1)
    kind = BFLOAT16 if name == "bfloat16" else np.dtype(name)
    return raw.view(torch.uint8).numpy().view(kind).reshape(tuple(x.shape)).copy()


def poisoned(host: Any) -> Any:
    """With an infinity and NaNs."""
    host["w"][3, 3], host["w"][96, 54], host["b"][77] = math.nan, math.nan, -math.inf
    return host


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_rules_and_policies(ways: Ways, rule: str, dtype: Any) -> None:
    for policy in POLICIES:
        ways.check(some(scale=3.0, dtype=dtype), RULES[rule], nonfinite=policy, loss_scale=3.0)
        if policy != "raise":
            ways.check(poisoned(some(scale=3.0, dtype=dtype)), RULES[rule], nonfinite=policy, loss_scale=3.0)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex(ways: Ways, dtype: Any) -> None:
    host = {name: np.asarray(x + 1j * x * 2).astype(dtype) for name, x in some(dtype=np.float64).items()}
    host["strided"] = host["w"].copy()[::2, ::3]
    for rule in (gc.GlobalNorm(2.0), gc.ArrayNorm(1.5), gc.GlobalNorm(1e4)):
        ways.check({**host, "real": np.ones(7, np.float32)}, rule, loss_scale=3.0)
    weights = {name: x + 1 for name, x in host.items()}
    unit = (gc.UnitNorm(where, 0.01, axis="all_but_last") for where in (weights, ways.up(weights)))
    ways.check(host, *unit)


@pytest.mark.parametrize("name", [*layouts(negative=False), "all"])
def test_layouts(ways: Ways, name: str) -> None:
    every = layouts(negative=False)
    host = every if name == "all" else {name: every[name]}
    rules: list[Rule] = [gc.GlobalNorm(1.0), gc.GlobalNorm(1e9), gc.ArrayNorm(1.0)]
    if not any(np.iscomplexobj(x) for x in host.values()):
        rules += [gc.Value(0.5), gc.Chain(gc.Value(1.0), gc.ArrayNorm(0.1))]
    for rule in rules:
        ways.check(host, rule, nonfinite="skip")
    weights = {key: np.ones(x.shape, x.dtype) for key, x in host.items()}
    for axis in ("all_but_first", "all_but_last"):
        ways.check(host, *(gc.UnitNorm(where, 0.1, axis=axis) for where in (weights, ways.up(weights))))


@pytest.mark.parametrize("axis", ["all_but_first", "all_but_last", 0, (0, 1), None])
@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_adaptive(ways: Ways, axis: Any, dtype: Any) -> None:
    host, weights = some(scale=5.0, dtype=dtype), some(seed=1, dtype=dtype)
    weights["w"][4], weights["w"][:, 7] = 0, 500
    weights["w"][40:60] = 900  # rows that are left alone, among some that are not
    for place in (weights, ways.up(weights)):
        on_host, on_device = (gc.UnitNorm(where, 0.05, axis=axis) for where in (weights, place))
        ways.check(host, on_host, on_device, loss_scale=2.0)
        ways.check(poisoned(some(scale=5.0, dtype=dtype)), on_host, on_device, nonfinite="sanitize")


def test_float64_beyond_the_range_of_its_squares(ways: Ways) -> None:
    rng = np.random.default_rng(1)
    for size in (1e-300, 1e-200, 1e160, 1e300):
        host = {"big": rng.standard_normal(5000) * size, "small": rng.standard_normal(9), "none": np.zeros(4)}
        for rule in (gc.GlobalNorm(1.0), gc.GlobalNorm(1e-201), gc.ArrayNorm(1e-3), gc.GlobalNorm(1e155, 1)):
            ways.check(host, rule)


def test_more_than_one_chunk(ways: Ways) -> None:
    rng = np.random.default_rng(2)
    host = {"long": rng.standard_normal(9_000_001).astype(np.float32), "odd": rng.standard_normal((5, 3)[::-1])}
    ways.check(host, gc.GlobalNorm(1.0))


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_global_norm(ways: Ways, order: float) -> None:
    every = list(layouts(negative=False).values())[:8]
    assert gc.global_norm(ways.up(every), order) == gc.global_norm(every, order, backend="numpy")
    assert gc.global_norm(ways.up(every[:2]), 3.5) == pytest.approx(gc.global_norm(every[:2], 3.5), rel=1e-12, abs=0)


# ---- what else a call owes ---------------------------------------------------------------------------


def test_every_function(ways: Ways) -> None:
    host = some(scale=2.0)
    calls: dict[str, Any] = {
        "clip_by_global_norm": lambda f, g: f(g, 1.0, ord=1),
        "clip_by_group_norm": lambda f, g: f(g, 1.0, groups=len),
        "clip_by_norm": lambda f, g: f(g, 1.0),
        "clip_by_value": lambda f, g: f(g, (-0.5, 0.25), loss_scale=2.0),
        "adaptive_clip": lambda f, g: f(g, g, 0.5, axis=None, nonfinite="skip"),
    }
    for name, call in calls.items():
        expected, info = call(getattr(gc, name), host)
        grads = ways.up(host)
        made, ours = call(getattr(gc, name), grads)
        assert contents(ways.down(made)) == contents(expected)
        assert told(call(getattr(gc, f"{name}_"), grads)) == told(ours) == told(info)
        assert contents(ways.down(grads)) == contents(expected)
        assert (ours.backend, ours.passed_over) == ("array_api", PASSED_OVER)


def test_versions_count_what_was_written_and_that_alone(ways: Ways) -> None:
    grads = ways.up(some(scale=3.0))
    for limit, counted in ((1e6, 0), (1.0, 1)):
        versions = {name: x._version for name, x in grads.items()}
        gc.clip_by_norm_(grads, limit)
        assert grads["w"]._version - versions["w"] == counted
        assert grads["none"]._version == versions["none"]


def test_what_was_measured_comes_to_the_host_in_one_transfer_for_each_pass(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_framework: Any = importlib.import_module("gradclip_backends.array_api.frameworks").TorchFramework
    real, transfers = torch_framework.on_host, []

    def counted(self: Any, x: Any) -> Any:
        transfers.append(tuple(x.shape))
        return real(self, x)

    def refuse(self: Any, *args: Any) -> Any:
        raise AssertionError("the host reads a value by itself")

    monkeypatch.setattr(torch_framework, "on_host", counted)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    half, single, double = (some(dtype=dtype)["w"] for dtype in (np.float16, np.float32, np.float64))
    for limit, passes in ((1e6, 1), (1.0, 2)):  # float64 that is clipped is measured with carries
        for arrays, expected in (([half, single[::2], single], 1), ([double, double[::2]], passes)):
            transfers.clear()
            assert gc.clip_by_global_norm_(ways.up(arrays), limit).norm > 1
            assert transfers == [(6, len(arrays))] * expected


@pytest.mark.parametrize("call", ["global", "value", "unit"])
def test_what_is_not_clipped_is_not_written(ways: Ways, call: str) -> None:
    host = {"w": some()["w"]}
    grads, weights = ways.up(host), ways.up({"w": np.full_like(host["w"], 1e6)})

    def clip() -> None:
        if call == "unit":
            gc.adaptive_clip_(grads, weights, axis="all_but_first")
        elif call == "value":
            gc.clip_by_value_(grads, 1e6)
        else:
            gc.clip_by_global_norm_(grads, 1e6)

    x = grads["w"]
    assert dies_when_protected(x.data_ptr(), x.numel() * 4, clip) is False

    def unscale() -> None:
        gc.clip_by_norm_(grads, 1e6, loss_scale=2.0)

    assert dies_when_protected(x.data_ptr(), x.numel() * 4, unscale) is True, "the proof can fail"


def test_tensors_that_autograd_knows(ways: Ways, fake: TorchCuda) -> None:
    host = some(scale=3.0)["w"]
    expected, _ = gc.clip_by_global_norm([host], 1.0, backend="numpy")
    with torch.inference_mode():
        inference = fake.add(tensor(host).clone())
    leaf = fake.add(tensor(host)).requires_grad_()  # of no module: it may be somebody's gradient
    for grads in ([inference], [leaf]):
        gc.clip_by_global_norm_(grads, 1.0)
        assert contents([as_numpy(grads[0].detach())]) == contents(expected)
    assert leaf.requires_grad


def test_new_tensors_are_where_the_old_ones_are(ways: Ways) -> None:
    grads = ways.up(some())
    made, _ = gc.clip_by_global_norm(grads, 1.0)
    assert {str(x.device) for x in made.values()} == {"cuda:1"}
    assert not any(x.requires_grad or x.is_inference() for x in made.values())
    channels_last = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    host = channels_last.numpy().copy(order="K")
    (ours,), _ = gc.clip_by_global_norm([channels_last], 1.0, backend="array_api")
    (theirs,), _ = gc.clip_by_global_norm([host], 1.0, backend="numpy")
    assert ours.stride() == channels_last.stride()
    assert as_numpy(ours).tobytes() == theirs.tobytes()


def test_expanded_tensors(ways: Ways, fake: TorchCuda) -> None:
    one = np.random.default_rng(0).standard_normal((7, 1)).astype(np.float32)
    x = fake.add(tensor(one)).expand(7, 9)
    made, info = gc.clip_by_global_norm([x], 1.0)
    expected, theirs = gc.clip_by_global_norm([np.broadcast_to(one, (7, 9))], 1.0, backend="numpy")
    assert told(info) == told(theirs)
    assert contents([as_numpy(made[0])]) == contents(expected)


# ---- refusals ----------------------------------------------------------------------------------------


def test_a_named_backend_on_two_kinds_of_memory(ways: Ways) -> None:
    mixed = {"here": np.full(3, 9.0, np.float32), **ways.up({"there": np.full(3, 9.0, np.float32)})}
    with pytest.raises(gc.BackendError, match="works on one device, and these arrays are on cpu, cuda:1"):
        gc.clip_by_global_norm_(mixed, 1.0, backend="array_api")


def test_a_framework_that_fails(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = ways.up(some(scale=9.0))
    before = contents(ways.down(grads))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    monkeypatch.setattr(torch, "zeros", fails)
    with pytest.raises(gc.BackendError) as caught:
        gc.clip_by_global_norm_(grads, 1.0)
    seen = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    check_sentence(caught.value, gc.BackendError, "array_api, measuring on cuda:1", seen, "Free memory there")
    assert contents(ways.down(grads)) == before


def test_without_array_api_compat_three_reasons(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = ways.up(some(scale=9.0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        gc.BackendError, match=r"cupy_raw: it cannot.*numba_cuda: it cannot.*array_api: .*not installed"
    ):
        gc.clip_by_global_norm_(grads, 1.0)


def test_it_comes_third() -> None:
    assert registry.PREFERENCE["cuda"] == ("cupy_raw", "numba_cuda", "array_api")
    assert registry.PREFERENCE["cpu"] == ("numba_cpu", "numpy")
