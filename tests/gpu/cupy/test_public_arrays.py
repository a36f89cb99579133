"""Every kind of array and container on the device, clipped as the reference does."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import check, cp, on_device, some, told
from tests.gpu.standin import Machine
from tests.property import strategies

BFLOAT16 = ml_dtypes.bfloat16
REAL = (np.float16, BFLOAT16, np.float32, np.float64)
# ---- what there is to clip -------------------------------------------------------------------------


def strided() -> dict[str, Any]:
    """Every layout but the plain one."""
    rng = np.random.default_rng(7)

    def base(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    with_offset = np.zeros(4 * 700 + 4, np.uint8)
    off = with_offset[2 : 2 + 2 * 700].view(np.float16)
    off[:] = base(700)
    return {
        "every second": base(60, 70)[:, ::2],
        "transposed": base(33, 130).T,
        "permuted": base(6, 7, 8, 9).transpose(2, 0, 3, 1),
        "backwards": base(5000)[::-1],
        "both ways": base(40, 30)[::-2, ::3],
        "fortran": np.asfortranarray(base(50, 20)),
        "fortran, part": np.asfortranarray(base(50, 20))[:, ::-1],
        "column": base(99, 4)[:, 1:2],
        "double": base(64, 64).astype(np.float64)[::3, 1:],
        "bfloat16": base(90, 10).astype(BFLOAT16).T[::2],
        "unaligned vectors": off,
    }


@pytest.mark.shows("cupy", "16-bit", "emulated")
@pytest.mark.parametrize("name", [*strided(), "all"])
def test_strides(standin: Machine, name: str) -> None:
    host = strided() if name == "all" else {name: strided()[name]}
    chain = gc.Chain(gc.Value(1.0), gc.ArrayNorm(0.1))
    for rule in (gc.GlobalNorm(1.0), gc.GlobalNorm(1e9), gc.Value(0.5), chain):
        check(host, rule, nonfinite="skip")
    weights = {key: np.ones(x.shape, x.dtype) for key, x in host.items()}
    for axis in ("all_but_first", "all_but_last"):
        check(host, gc.UnitNorm(on_device(weights), 0.1, axis=axis))


def test_a_strided_array_has_a_norm(standin: Machine) -> None:
    for x in strided().values():
        assert gc.global_norm(on_device([x])) == gc.global_norm([x], backend="numpy")


def test_slices_of_one_array(standin: Machine) -> None:
    whole = np.random.default_rng(0).standard_normal(9001).astype(np.float32)
    for start in (1, 2, 3):
        expected, info = gc.clip_by_global_norm(whole[start:5000], 1.0, backend="numpy")
        x = on_device(whole)
        assert told(gc.clip_by_global_norm_(x[start:5000], 1.0)) == told(info)
        got = x.get()
        assert got[start:5000].tobytes() == expected.tobytes()
        assert got[:start].tobytes() == whole[:start].tobytes()
        assert got[5000:].tobytes() == whole[5000:].tobytes()


MANY: dict[str, Rule] = {
    "global": gc.GlobalNorm(1.0),
    "global 1": gc.GlobalNorm(0.5, 1),
    "array": gc.ArrayNorm(2.0),
    "groups": gc.GroupNorm(2.0, lambda path: int(path) % 7),
    "interval": gc.Value((-1.0, 0.5)),
}


@pytest.mark.shows("cupy", "new arrays", "emulated")
@pytest.mark.shows("cupy", "in place", "emulated")
@pytest.mark.parametrize(("count", "rule"), [(n, r) for n in (1, 79, 80, 81, 200) for r in MANY] + [(760, "global")])
def test_many_arrays(standin: Machine, count: int, rule: str) -> None:
    """Around the number of rows that go with a launch, and the number of words that a small upload takes."""
    rng = np.random.default_rng(count)
    host = [rng.standard_normal(int(n)).astype(REAL[n % 3]) for n in rng.integers(0, 90, count)]
    if rule.startswith("global"):
        host += [rng.standard_normal(8) * 1e200] * (count == 200)
    check(host, MANY[rule], loss_scale=3.0)


def test_many_units(standin: Machine) -> None:
    rng = np.random.default_rng(0)
    host = [rng.standard_normal((3000, 3)).astype(np.float32), rng.standard_normal((900, 2))]
    check(host, gc.UnitNorm([x * 2 for x in on_device(host)], 0.2, axis="all_but_first"))
    limits = np.linspace(0.01, 4.0, 300)
    arrays = [rng.standard_normal(3).astype(np.float32) for _ in limits]
    check(arrays, gc.GroupNorm({i: float(limit) for i, limit in enumerate(limits)}, int))


def test_containers(standin: Machine) -> None:
    x, y = some()["w"], some(3)["b"]
    tied = {"a": x, "b": [None, (y, x)], "c": strategies.Pair(y, None), "d": strategies.Layer(x, None)}
    check(tied, gc.GlobalNorm(1.0))
    made, info = gc.clip_by_norm(on_device(tied), 1.0)
    assert made["a"] is made["b"][1][1] is made["d"].weight
    assert made["b"][0] is made["c"].second is None
    assert list(info.norms) == ["a", "b.1.0", "b.1.1", "c.first", "d.weight"]
    made, _ = gc.clip_by_norm(iter([on_device(x)]), 1.0)
    assert (type(made), type(made[0])) == (list, cp().ndarray)
    check(x, gc.Value(0.5))
    bare, _ = gc.clip_by_value(on_device(x), 0.5)
    assert type(bare) is cp().ndarray
    nothings: list[Any] = [[], {}, None, [None], {"a": []}]
    for empty in nothings:
        assert gc.clip_by_global_norm_(empty, 1.0).norm == 0.0
    nothing = {"x": np.zeros((0, 4), np.float32), "y": np.zeros((3, 0), np.float64)}
    for rule in (gc.GlobalNorm(1.0), gc.ArrayNorm(1.0), gc.Value(1.0), gc.GlobalNorm(1.0, 3.5)):
        check(nothing, rule)
    check(nothing, gc.UnitNorm(on_device(nothing), axis="all_but_first"))
    check([np.full((), 3, np.float32)], gc.GlobalNorm(1.0))
