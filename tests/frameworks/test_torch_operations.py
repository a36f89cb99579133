"""Tensors that have no memory to read: inside ``torch.func``, and on devices that PyTorch alone can reach.

There is no such device here. A processor's tensors play one whose widest float is float32, as mps is.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

torch: Any = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")
func: Any = importlib.import_module("torch.func")
ELEMENT, NORM = 2.0**-22, 2.0**-40  # testing.approximate: float64, and few elements


def close(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = (np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64) for x in (a, b))
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-25).all())


def tensor(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# ---- torch.func ------------------------------------------------------------------------------------------


@pytest.mark.shows("torch", "under its compiler", "approximate")
def test_vmap_clips_each_on_its_own() -> None:
    x = tensor(6, 400)

    def clipped(x: Any) -> Any:
        y, info = gc.clip_by_norm(x, 1.0, nonfinite="skip")
        return y, info.norm

    made, norms = func.vmap(clipped)(x)
    expected = torch.stack([gc.clip_by_norm(row, 1.0)[0] for row in x])
    assert close(made, expected)
    assert close(norms, [gc.global_norm(row) for row in x], NORM)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, of its jvp
def test_derivatives() -> None:
    def clipped(x: Any) -> Any:
        return gc.clip_by_global_norm([x, torch.zeros(2)], 1.0, nonfinite="propagate")[0][0]

    def plain(x: Any) -> Any:
        return x * torch.clamp(1 / torch.linalg.vector_norm(x), max=1.0)

    x, v = tensor(300), tensor(300, seed=1)
    for f in (lambda f: func.grad(lambda x: f(x) @ v), lambda f: lambda x: func.jvp(f, (x,), (v,))[1]):
        torch.testing.assert_close(f(clipped)(x), f(plain)(x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(f(clipped)(x * 1e-6), f(lambda x: x)(x * 1e-6))
        assert torch.isfinite(f(clipped)(torch.zeros(300))).all()
    hessian = func.hessian(lambda x: clipped(x) @ v[:4])(x[:4] * 9)
    torch.testing.assert_close(hessian, func.hessian(lambda x: plain(x) @ v[:4])(x[:4] * 9), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "rule", [gc.Value(0.25), gc.ArrayNorm(0.5), gc.GlobalNorm(1.0, 1), gc.GlobalNorm(1.0, math.inf)]
)
def test_per_example_gradients(rule: gc.Rule) -> None:
    """What differentially private training does: the gradient of each example, clipped on its own, and added up."""
    w, xs, ys = tensor(5), tensor(8, 5, seed=2), tensor(8, seed=3)

    def clipped(w: Any, x: Any, y: Any) -> Any:
        g = func.grad(lambda w: (x @ w - y) ** 2)(w)
        return gc.clip([g], rule, nonfinite="skip")[0][0]

    made = func.vmap(clipped, in_dims=(None, 0, 0))(w, xs, ys)
    for x, y, z in zip(xs, ys, made, strict=True):
        g = 2 * (x @ w - y) * x
        assert close(z, gc.clip([g], rule)[0][0], 2.0**-20)  # vmap multiplies in another order


def test_plain_tensors_and_bounds_inside_a_transform() -> None:
    z = torch.tensor([3.0, 4.0, 12.0])
    slope = func.grad(lambda m: (gc.clip_by_norm(z, 1.0, nonfinite="skip")[0] * m).sum())(torch.tensor(1.0))
    assert float(slope) == pytest.approx(19 / 13)
    slope = func.grad(lambda m: gc.clip_by_norm(z, m, nonfinite="skip")[0].sum())(torch.tensor(1.0))
    assert float(slope) == pytest.approx(19 / 13)
    with pytest.raises(gc.InvalidArgumentError, match="it is traced: what stands in its place"):
        func.grad(lambda m: gc.clip_by_value(z, m, nonfinite="skip")[0].sum())(torch.tensor(1.0))


def test_raise_plans_and_other_frameworks_are_refused() -> None:
    x = tensor(3, 4)
    with pytest.raises(gc.InvalidArgumentError, match="Pass nonfinite='skip'"):
        func.vmap(lambda x: gc.clip_by_norm(x, 1.0)[0])(x)
    with pytest.raises(gc.InvalidArgumentError, match=r"multiply by info.scale"):
        func.vmap(lambda x: gc.plan(x, gc.GlobalNorm(1.0)).scale)(x)
    with pytest.raises(gc.UnsupportedArrayError, match="dtype int64"):
        func.vmap(lambda x: gc.clip_by_norm(x, 1.0, nonfinite="skip")[0])(torch.ones((3, 4), dtype=torch.int64))


# ---- another device ------------------------------------------------------------------------------------------


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> None:
    door = importlib.import_module("gradclip_core.arrays.torch_door")
    languages = importlib.import_module("gradclip_backends.array_api.languages")
    right = door.TorchDoor.dock

    def dock(self: Any, x: Any) -> Any:
        docked = right(self, x)
        docked.device, docked.memory, docked.pointer = "mps:0", False, 0
        return docked

    monkeypatch.setattr(door.TorchDoor, "dock", dock)
    monkeypatch.setattr(door.TorchDoor, "plain", lambda self, leaves: False)
    monkeypatch.setattr(languages.Torch, "wide_name", "float32", raising=False)
    monkeypatch.setattr(languages.Torch, "__init__", lambda self, xp, device: languages.Language.__init__(self, xp))


@pytest.mark.usefixtures("mps")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_device_of_pytorch_s_own(dtype: str) -> None:
    values = tensor(37, 129).to(getattr(torch, dtype))
    expected, known = gc.clip_by_global_norm([values.double().numpy()], 1.0)
    given = [values.clone(), torch.zeros((0, 3))]
    versions = [x._version for x in given]
    made, info = gc.clip_by_global_norm(given, 1.0)
    assert isinstance(info, gc.ClipInfo)
    assert (info.backend, info.clipped, info.skipped, info.culprits) == ("array_api", True, False, [])
    assert close(info.norm, known.norm, 2.0**-22)
    assert close(info.norms["0"], known.norm, 2.0**-22)
    assert close(made[0].double(), expected[0], 2.0**-7 if dtype == "bfloat16" else 2.0**-10)
    assert [x._version for x in given] == versions
    info = gc.clip_by_global_norm_(given, 1.0)
    assert torch.equal(given[0], made[0])
    assert given[0]._version > versions[0]
    again = given[0]._version
    assert not gc.clip_by_global_norm_(given, 2.0).clipped
    assert given[0]._version == again, "a step that clips nothing writes nothing"
    assert gc.global_norm(given) == pytest.approx(1.0, rel=2.0**-7)


@pytest.mark.usefixtures("mps")
def test_values_are_there_so_that_raise_raises() -> None:
    bad = [torch.ones(3), torch.tensor([1.0, math.inf, math.nan])]
    kept = [x.clone() for x in bad]
    with pytest.raises(gc.NonFiniteGradientError, match=r"'1' \(1 inf, 1 NaN\)"):
        gc.clip_by_global_norm_(bad, 1.0)
    with pytest.raises(gc.NonFiniteGradientError, match="3 finite elements would be infinite after unscaling"):
        gc.clip_by_global_norm_([torch.full((3,), 60000.0, dtype=torch.float16)], 1e9, loss_scale=2.0**-10)
    assert all(torch.equal(a, b) or torch.isnan(a).any() for a, b in zip(bad, kept, strict=True))
    info = gc.clip_by_global_norm_(bad, 1.0, nonfinite="skip")
    assert (info.skipped, info.culprits, info.counts) == (True, ["1"], {"1": (1, 1)})
    info = gc.clip_by_global_norm_(bad, 1.0, nonfinite="zero")
    assert (info.skipped, [x.tolist() for x in bad]) == (True, [[0.0] * 3] * 2)


@pytest.mark.usefixtures("mps")
def test_what_needs_memory_is_refused_there_too() -> None:
    x = torch.ones(3)
    with pytest.raises(gc.InvalidArgumentError, match="a plan is for arrays in memory"):
        gc.plan([x], gc.GlobalNorm(1.0))
    with pytest.raises(gc.BackendError, match="mps:0"):
        gc.clip_by_global_norm_([x], 1.0, backend="numba_cpu")
    with pytest.raises(gc.GradClipError, match="one call works on one device"):
        gc.clip_by_global_norm_([x, np.ones(3)], 1.0)
