"""A-GEM and GEM: closed forms, independent solvers, degenerate memories, policies, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets, surgery
from gradclip_core.surgery.qp import nonnegative
from tests.refusals import refuses

Array = npt.NDArray[Any]


def problem(seed: int, dtype: type = np.float64) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(seed)
    size, tasks = int(rng.integers(8, 40)), int(rng.integers(2, 7))
    g = rng.standard_normal(size)
    memories = [rng.standard_normal(size) * 10.0 ** int(rng.integers(-3, 4)) for _ in range(tasks)]
    return g.astype(dtype), [memory.astype(dtype) for memory in memories]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_agem_is_equation_11(dtype: type, backend: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        g: Array = rng.standard_normal(30).astype(dtype)
        ref: Array = rng.standard_normal(30).astype(dtype)
        y, info = surgery.agem(g, ref, backend=backend)
        wide, r = g.astype(np.longdouble), ref.astype(np.longdouble)
        if wide @ r >= 0:
            assert y.tobytes() == g.tobytes()
            assert not info.clipped
            continue
        expected = wide - (wide @ r) / (r @ r) * r
        allowed = {2: 2.0**-10, 4: 2.0**-22, 8: 2.0**-46}[g.itemsize]
        assert float(np.linalg.norm(y - expected)) <= allowed * float(np.linalg.norm(wide))
        if dtype is not np.float16:
            assert y.astype(np.longdouble) @ r >= 0
            assert surgery.agem(y, ref)[0].tobytes() == y.tobytes()
        onto = sets.HalfSpace(-ref, 0.0)
        assert gc.clip_by_projection(g, onto, backend=backend)[0].tobytes() == y.tobytes()
        held = g.copy()
        assert surgery.agem_(held, ref, backend=backend) == info
        assert held.tobytes() == y.tobytes()


def test_agem_of_opposite_and_of_zero() -> None:
    g = np.array([1.0, -2.0, 3.0])
    y, info = surgery.agem(g, -g)
    assert float(np.abs(y).max()) <= 2.0**-45
    assert info.clipped
    for ref in (np.zeros(3), g):
        y, info = surgery.agem(g, ref)
        assert y.tobytes() == g.tobytes()
        assert not info.clipped
    held = g.copy()
    surgery.agem_(held, held)  # the reference may be the gradients themselves
    assert held.tobytes() == g.tobytes()


def test_gem_against_nnls(backend: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    conflicts = 0
    for seed in range(60):
        g, memories = problem(seed)
        y, info = surgery.gem(g, memories, backend=backend)
        units = np.array([memory / np.linalg.norm(memory) for memory in memories]).T
        weights, _ = optimize.nnls(units, -g)  # the distance of -g from the cone of the memories: the dual
        assert np.abs(y - (g + units @ weights)).max() <= 1e-12 * np.linalg.norm(g)
        assert info.certificate is not None
        assert info.certificate.feasibility <= 1e-15
        assert info.certificate.optimality <= 1e-15
        conflicts += info.clipped
    assert conflicts > 30


def test_gem_against_slsqp() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(8):
        g, memories = problem(seed)
        rows = np.array([memory / np.linalg.norm(memory) for memory in memories])
        found = optimize.minimize(
            lambda z, g=g: 0.5 * (z - g) @ (z - g),
            g,
            jac=lambda z, g=g: z - g,
            constraints={"type": "ineq", "fun": lambda z, rows=rows: rows @ z, "jac": lambda _, rows=rows: rows},
            method="SLSQP",
            options={"ftol": 1e-18, "maxiter": 500},
        )
        assert np.abs(surgery.gem(g, memories)[0] - found.x).max() <= 1e-8


@pytest.mark.jit
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_gem_has_the_same_bits_on_both_backends(dtype: type) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(8)
    grads = {"w": rng.standard_normal((90, 80)).astype(dtype), "b": rng.standard_normal(3)}
    memories = [{"b": rng.standard_normal(3), "w": rng.standard_normal((90, 80)) - grads["w"]} for _ in range(4)]
    results = [surgery.gem(grads, memories, margin=0.1, backend=name) for name in ("numpy", "numba_cpu")]
    assert results[0][1].clipped
    assert all(results[0][0][name].tobytes() == results[1][0][name].tobytes() for name in grads)
    assert results[0][1].certificate == results[1][1].certificate
    held = {name: g.copy() for name, g in grads.items()}
    surgery.gem_(held, memories, margin=0.1)
    assert all(held[name].tobytes() == results[0][0][name].tobytes() for name in grads)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gem_twice_is_gem_once_and_gem_of_one_is_agem(dtype: type) -> None:
    for seed in range(40):
        g, memories = problem(seed, dtype)
        y, _ = surgery.gem(g, memories)
        assert surgery.gem(y, memories)[0].tobytes() == y.tobytes()
        alone, info = surgery.gem(g, memories[:1])
        expected, other = surgery.agem(g, memories[0])
        assert alone.tobytes() == expected.tobytes()
        assert info == other


def test_gem_with_dependent_opposite_and_zero_memories() -> None:
    rng = np.random.default_rng(9)
    g, first, second = rng.standard_normal((3, 12))
    first -= 2 * g
    expected, _ = surgery.gem(g, [first, second])
    for memories in (
        [first, first, second],
        [first, second, first + second],
        [3e100 * first, 1e-200 * second, np.zeros(12)],
        [first, second, 0.5 * first, 7 * second, first + 3 * second],
    ):
        assert np.allclose(surgery.gem(g, memories)[0], expected, rtol=0, atol=1e-13)
    # A memory and its opposite leave the plane between them.
    y, _ = surgery.gem(g, [first, -first])
    assert np.allclose(y, gc.clip_by_projection(g, sets.Hyperplane(first, 0.0))[0], rtol=0, atol=1e-13)
    for harmless in ([], [np.zeros(12), np.zeros(12)], [g, 2 * g]):
        y, info = surgery.gem(g, harmless)
        assert y.tobytes() == g.tobytes()
        assert not info.clipped


def test_gem_margin_is_the_least_weight() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(20):
        g, memories = problem(seed)
        memories = [memory / np.linalg.norm(memory) for memory in memories]
        rows = np.array(memories)
        y, info = surgery.gem(g, memories, margin=0.5)
        if (rows @ g >= 0).all():
            assert y.tobytes() == g.tobytes()
            continue
        moved = g + 0.5 * rows.sum(axis=0)
        weights, _ = optimize.nnls(rows.T, -moved)
        assert np.abs(y - (moved + rows.T @ weights)).max() <= 1e-12 * np.linalg.norm(g)
        assert info.certificate is not None
        assert info.certificate.optimality <= 1e-15


def test_float16_is_computed_in_float64_and_rounded_once() -> None:
    g, memories = problem(3, np.float16)
    wide = surgery.gem(g.astype(np.float64), [memory.astype(np.float64) for memory in memories])[0]
    assert surgery.gem(g, memories)[0].tobytes() == wide.astype(np.float16).tobytes()


def test_the_program_is_solved_to_its_kkt_conditions() -> None:
    rng = np.random.default_rng(12)
    for _ in range(200):
        count, rank = int(rng.integers(1, 12)), int(rng.integers(1, 12))
        vectors = rng.standard_normal((count, rank))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        c = vectors @ rng.standard_normal(rank)
        x = nonnegative(vectors @ vectors.T, c)
        gradient = vectors @ vectors.T @ x + c
        assert (x >= 0).all()
        assert gradient.min() >= -1e-10
        assert np.abs(gradient[x > 0]).max(initial=0.0) <= 1e-10


def test_loss_scale_and_policies() -> None:
    g, memories = problem(1)
    for function in (partial(surgery.gem, memories=memories), partial(surgery.agem, reference=-g)):
        plain = function(g)[0]
        assert function(256 * g, loss_scale=256.0)[0].tobytes() == plain.tobytes()
        bad = g.copy()
        bad[0] = np.nan
        with pytest.raises(gc.NonFiniteGradientError):
            function(bad)
        skipped, info = function(bad, nonfinite="skip")
        assert info.skipped
        assert skipped.tobytes() == bad.tobytes()
        zeroed, info = function(bad, nonfinite="zero")
        assert info.skipped
        assert not zeroed.any()
        cleaned = np.where(np.isnan(bad), 0.0, bad)
        assert function(bad, nonfinite="sanitize")[0].tobytes() == function(cleaned)[0].tobytes()
        assert np.isnan(function(bad, nonfinite="propagate")[0]).all()


def test_refusals() -> None:
    w, b = np.full((2, 3), -1.0), np.zeros(1)
    with refuses("agem, reference, gradient 'b'", "no array at that path", "same structure") as grads:
        surgery.agem_(grads, {"w": w})
    with refuses("agem, reference, array 'w'", "infinities or NaNs", "finite") as grads:
        surgery.agem_(grads, {"w": w * np.nan, "b": b})
    with refuses("gem, memories[1], gradient 'w'", "its shape", "same structure") as grads:
        surgery.gem_(grads, [{"w": w, "b": b}, {"w": w.T, "b": b}])
    with refuses("gem, memories[1], array 'b'", "infinities or NaNs", "finite") as grads:
        surgery.gem_(grads, [{"w": w, "b": b}, {"w": w, "b": b + np.inf}])
    for wrong in ({"w": w, "b": b}, w):
        with refuses("gem, memories", "no list of gradients", "each earlier task") as grads:
            surgery.gem_(grads, wrong)  # type: ignore[arg-type]  # that is the mistake
    for margin in (-1.0, np.nan, np.inf):
        with refuses("margin", "not a finite number >= 0", "finite number >= 0") as grads:
            surgery.gem_(grads, [], margin=margin)
    g, ahead = np.array([-6e4, 6e4], np.float16), np.array([0.95, 0.32])  # the nearest point: (-24025, 72004)
    for memories in ([ahead], [ahead, ahead]):
        with pytest.raises(gc.InvalidArgumentError, match=r"gem, gradient '0'.*float16"):
            surgery.gem(g, memories)
    with pytest.raises(gc.UnsupportedArrayError, match="complex"):
        surgery.agem(np.ones(2, complex), np.ones(2))


def test_torch_tensors_keep_their_kind() -> None:
    torch = pytest.importorskip("torch")
    g, ref = torch.tensor([1.0, -3.0]), torch.tensor([1.0, 1.0])
    y, _ = surgery.agem([g], [ref])
    assert torch.allclose(y[0], torch.tensor([2.0, -2.0]), rtol=1e-6, atol=0.0)
    half = [torch.tensor([1.0, -3.0], dtype=torch.bfloat16)]
    version = half[0]._version
    surgery.gem_(half, [[ref], [ref + 1]])
    assert half[0].dtype == torch.bfloat16
    assert half[0]._version > version
    assert half[0].tolist() == [2.0, -2.0]
