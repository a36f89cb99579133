"""Half-spaces and hyperplanes: the closed form, exact feasibility, extremes, scopes and refusals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import refuses

Array = npt.NDArray[Any]
Kind = type[sets.HalfSpace] | type[sets.Hyperplane]
KINDS: list[Kind] = [sets.HalfSpace, sets.Hyperplane]
ROUNDOFF = {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-53}


def closed_form(g: Array, a: Array, b: float, *, half: bool) -> Array:
    wide, normal = g.astype(np.longdouble), a.astype(np.longdouble)
    step = (normal @ wide - np.longdouble(b)) / (normal @ normal)
    return wide - (np.maximum(step, 0) if half else step) * normal


def exact_dot(a: Array, y: Array) -> Fraction:
    return sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a, y, strict=True)), Fraction(0))


def cases() -> list[tuple[Array, Array, float]]:
    rng = np.random.default_rng(11)
    made = []
    for trial in range(60):
        size, length = int(rng.integers(2, 50)), 10.0 ** int(rng.integers(-3, 4))
        a = rng.standard_normal(size).astype([np.float64, np.float32][trial % 2])
        a[:: 1 + trial % 3] *= trial % 4 != 0
        a[-1] = 1.0
        g = length * rng.standard_normal(size)
        made.append((g, a, [0.0, length, -length][trial % 3]))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_closed_form_feasibility_and_certificate(kind: Kind, dtype: type, backend: str) -> None:
    moved = 0
    for wide, a, b in cases():
        g: Array = wide.astype(dtype)
        y, info = gc.clip_by_projection(g, kind(a, b), backend=backend)
        u = ROUNDOFF[g.itemsize]
        size = float(np.linalg.norm(g.astype(np.float64))) + abs(b) / float(np.linalg.norm(a))
        expected = closed_form(g, a, b, half=kind is sets.HalfSpace)
        # Rounding, and what a half-space is aimed inside, which in float64 is the dots' worst case.
        allowed = 64 if dtype is np.float64 else 4
        assert float(np.linalg.norm(y - expected)) <= allowed * u * size
        assert y[a == 0].tobytes() == g[a == 0].tobytes()
        assert info.certificate is not None
        assert info.certificate.optimality <= allowed * u
        over = float(exact_dot(a, y) - Fraction(b)) / float(np.linalg.norm(a)) / size
        if kind is sets.HalfSpace and dtype is not np.float16:
            assert over <= 0
            assert info.certificate.feasibility == 0
        else:
            assert (over if kind is sets.HalfSpace else abs(over)) <= 2 * u
            assert info.certificate.feasibility <= 2 * u
        if dtype is not np.float16:
            again, second = gc.clip_by_projection(y, kind(a, b), backend=backend)
            assert again.tobytes() == y.tobytes()
            assert not second.clipped
        moved += info.clipped
    assert moved > 25


@pytest.mark.jit
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_same_bits_on_both_backends(kind: Kind, dtype: type) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    g = [rng.standard_normal((300, 70)).astype(dtype), rng.standard_normal(9)]
    a = [rng.standard_normal((300, 70)), rng.standard_normal(9).astype(np.float32)]
    results = [gc.clip_by_projection(g, kind(a, -3.0), backend=name) for name in ("numpy", "numba_cpu")]
    assert [y.tobytes() for y in results[0][0]] == [y.tobytes() for y in results[1][0]]
    assert results[0][1].certificate == results[1][1].certificate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("g", "a", "b"),
    [
        ([1e300, 1e300], [1e300, 1.0], 0.0),
        ([1e-310, 2e-310], [1.0, 1.0], 0.0),
        ([1e-310, 2e-310], [-1.0, -1.0], -1.0),
        ([1.0, 2.0], [-1e-200, -1e-200], -1.0),
        ([1.0, 2.0], [1e200, 1e200], -1e300),
        ([1e-300, 1.0], [1e-320, 0.0], -1e-320),
        ([0.0, 0.0], [1e-300, 0.0], -1.0),
        ([1e308, 1e308], [1e-308, 1e-308], 1.0),
        ([1e308, -1e308], [1e308, 3e307], -1.5e308),
    ],
)
def test_extremes_of_float64(kind: Kind, g: list[float], a: list[float], b: float, backend: str) -> None:
    y, info = gc.clip_by_projection(np.array(g), kind(np.array(a), b), backend=backend)
    expected = closed_form(np.array(g), np.array(a), b, half=kind is sets.HalfSpace).astype(np.float64)
    size = float(max(np.abs(g).max(), np.abs(expected).max()))
    assert info.clipped
    assert float(np.abs(y / size - expected / size).max()) <= max(2.0**-48, 4 * 5e-324 / size)
    assert info.clipped_norm == pytest.approx(float(np.linalg.norm(y / size)) * size, rel=1e-10, abs=1e-322)
    assert info.certificate is not None
    assert info.certificate.feasibility <= 1e-15
    assert info.certificate.optimality <= max(2.0**-48, 16 * 5e-324 / size)


def test_inside_nothing_is_written() -> None:
    g = np.array([1.0, 2.0])
    g.flags.writeable = False
    for onto in (sets.HalfSpace([np.array([1.0, 1.0])], 3.0), sets.Hyperplane([np.array([1.0, 1.0])], 3.0)):
        y, info = gc.clip_by_projection([g], onto)
        assert y[0].tobytes() == g.tobytes()
        assert not info.clipped
    kept = np.array([1.0, 2.0])
    assert not gc.clip_by_projection_(kept, sets.HalfSpace(np.array([1.0, 1.0]), 3.5)).clipped


def test_each_scope_has_its_part_of_a_and_the_same_b() -> None:
    g = {"x": np.array([2.0, 0.0]), "y": np.array([0.0, 4.0])}
    a = {"x": np.array([1.0, 0.0]), "y": np.array([0.0, 2.0])}
    onto = sets.Hyperplane(a, 1.0)
    each = gc.clip_by_projection(g, onto, "array")[0]
    assert each["x"].tolist() == [1.0, 0.0]
    assert each["y"].tolist() == [0.0, 0.5]
    grouped = gc.clip_by_projection(g, onto, "group", groups=lambda path: path)[0]
    assert all(grouped[name].tobytes() == each[name].tobytes() for name in g)
    together = gc.clip_by_projection(g, onto)[0]
    assert together["x"].tolist() == [2.0 - 9 / 5, 0.0]
    assert together["y"].tolist() == [0.0, 4.0 - 18 / 5]


def test_loss_scale_layout_and_generators() -> None:
    rng = np.random.default_rng(3)
    g, a = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    plain = gc.clip_by_projection(g, sets.Hyperplane(a, 1.0))[0]
    scaled = gc.clip_by_projection(1024 * g, sets.Hyperplane(a, 1.0), loss_scale=1024.0)[0]
    assert scaled.tobytes() == plain.tobytes()
    turned = gc.clip_by_projection(np.asfortranarray(g), sets.Hyperplane(a[::-1][::-1], 1.0))[0]
    assert np.allclose(turned, plain, rtol=1e-13, atol=1e-15)
    onto = sets.Hyperplane((x for x in [a]), 1.0)
    for _ in range(2):  # the iterator was read once, when the set was made
        assert gc.clip_by_projection([g], onto)[0][0].tobytes() == plain.tobytes()


def test_a_may_share_memory_with_the_gradients() -> None:
    memory = np.arange(1.0, 7.0)
    expected = gc.clip_by_projection(memory[:5].copy(), sets.Hyperplane(memory[1:].copy(), 0.0))[0]
    gc.clip_by_projection_(memory[:5], sets.Hyperplane(memory[1:], 0.0))
    assert memory[:5].tobytes() == expected.tobytes()


def test_plan_applies_what_was_decided() -> None:
    rng = np.random.default_rng(7)
    g, a = rng.standard_normal(40).astype(np.float32), rng.standard_normal(40)
    rule = gc.Project(sets.HalfSpace(a, -1.0))
    planned, (y, info) = gc.plan(g, rule), gc.clip(g, rule)
    assert planned.apply(g).tobytes() == y.tobytes()
    assert planned.info == info


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind: Kind) -> None:
    name = kind.__name__
    w, b = np.ones((2, 3)), np.ones(1)
    for bound in (np.nan, np.inf, -np.inf):
        with refuses(f"{name}, b", "not finite", "finite number"):
            kind({"w": w, "b": b}, bound)
    with refuses(f"{name}, a", "normal is zero", "not zero") as grads:
        gc.clip_by_projection_(grads, kind({"w": 0 * w, "b": 0 * b}, 0.0))
    with refuses(f"{name}, a, array 'b'", "normal is zero", "not zero") as grads:
        gc.clip_by_projection_(grads, kind({"w": w, "b": 0 * b}, 0.0), "array")
    for bad in (np.nan, np.inf):
        with refuses(f"{name}, a, array 'b'", "infinities or NaNs", "finite") as grads:
            gc.clip_by_projection_(grads, kind({"w": w, "b": bad * b}, 0.0))
    with refuses(f"{name}, a, gradient 'b'", "no array at that path", "same structure") as grads:
        gc.clip_by_projection_(grads, kind({"w": w}, 0.0))
    with refuses(f"{name}, a, gradient 'w'", "(3, 2)", "same structure") as grads:
        gc.clip_by_projection_(grads, kind({"w": w.T, "b": b}, 0.0))
    empty = {"w": np.zeros((0, 3))}
    assert not gc.clip_by_projection(empty, kind({"w": np.zeros((0, 3))}, 0.0))[1].clipped
    with pytest.raises(gc.InvalidArgumentError, match="no point is in the set"):
        gc.clip_by_projection(empty, kind({"w": np.zeros((0, 3))}, -1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_nearest_point_beyond_the_type_is_refused(kind: Kind) -> None:
    with refuses(f"{kind.__name__}, gradient 'w'", "cannot hold", "wider type") as grads:
        gc.clip_by_projection_(grads, kind({"w": np.ones((2, 3)), "b": np.zeros(1)}, -1e40))
    a = np.array([1.0, -1.0])
    kept = gc.clip_by_projection(np.zeros(2, np.float16), kind(a, -2 * 65504.0))[0]
    assert kept.tolist() == [-65504.0, 65504.0]
    with pytest.raises(gc.InvalidArgumentError, match="float16"):
        gc.clip_by_projection(np.zeros(2, np.float16), kind(a, -2 * 65536.0))
    with pytest.raises(gc.InvalidArgumentError, match="float64"):
        gc.clip_by_projection(np.ones(2), kind(np.full(2, 1e-310), -1e300))
