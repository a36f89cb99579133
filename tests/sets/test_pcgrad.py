"""PCGrad: against algorithm 1 taken literally, what it leaves alone, policies, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import surgery
from tests.refusals import check_sentence

Array = npt.NDArray[Any]


def literally(tasks: Sequence[Array], seed: int) -> Array:
    """Algorithm 1, on the vectors themselves."""
    rng = np.random.Generator(np.random.PCG64(seed))
    combined = np.zeros(tasks[0].shape)
    for i, g in enumerate(tasks):
        p = g.astype(np.float64)
        for j in rng.permutation([j for j in range(len(tasks)) if j != i]):
            other = tasks[j].astype(np.float64)
            if p @ other < 0:
                p = p - (p @ other) / (other @ other) * other
        combined += p
    return combined


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_it_is_algorithm_1(dtype: type, backend: str) -> None:
    rng = np.random.default_rng(1)
    differ = 0
    for seed in range(60):
        tasks = list(rng.standard_normal((int(rng.integers(1, 8)), int(rng.integers(2, 40)))).astype(dtype))
        combined, report = surgery.pcgrad(tasks, seed, backend=backend)
        expected = literally(tasks, seed)
        u = {2: 2.0**-11, 4: 2.0**-24, 8: 2.0**-46}[combined.itemsize]
        assert combined.dtype == dtype
        assert np.abs(combined - expected).max() <= 1.01 * u * np.abs(expected).max() + 1e-13
        again, same = surgery.pcgrad(tasks, seed, backend="numpy")
        assert again.tobytes() == combined.tobytes()
        assert (same.projections, same.coefficients) == (report.projections, report.coefficients)
        wide = np.array(tasks, np.float64)
        dots = wide @ wide.T
        pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks)) if dots[i, j] < 0]
        assert list(report.conflicts) == pairs
        assert np.allclose(np.array(report.coefficients) @ wide, expected, rtol=0, atol=1e-12)
        norms = np.sqrt(np.diag(dots))
        assert np.allclose(report.cosines, dots / np.outer(norms, norms), rtol=0, atol=1e-13)
        other = surgery.pcgrad(tasks, seed + 1000)[0]
        differ += other.tobytes() != combined.tobytes()
    assert differ > 10  # the order matters


def test_many_arrays_in_any_layout() -> None:
    rng = np.random.default_rng(4)
    tasks: list[dict[str, Any]] = [
        {"w": rng.standard_normal((6, 5)), "b": [rng.standard_normal(3), np.zeros(0)]} for _ in range(3)
    ]
    tasks[1]["w"] = np.asfortranarray(tasks[1]["w"])
    tasks[2]["w"] = np.repeat(tasks[2]["w"], 2, axis=1)[:, ::2]
    combined, _ = surgery.pcgrad(tuple(tasks), 5)
    expected = literally([np.concatenate([t["w"].ravel(), t["b"][0]]) for t in tasks], 5)
    assert np.allclose(np.concatenate([combined["w"].ravel(), combined["b"][0]]), expected, rtol=0, atol=1e-13)
    assert combined["b"][1].shape == (0,)


def test_no_conflict_is_the_plain_sum() -> None:
    rng = np.random.default_rng(3)
    tasks = [np.abs(rng.standard_normal(50)).astype(np.float32) for _ in range(4)]
    combined, report = surgery.pcgrad(tasks, 0)
    wide = ((tasks[0].astype(np.float64) + tasks[1]) + tasks[2]) + tasks[3]
    assert combined.tobytes() == wide.astype(np.float32).tobytes()
    assert report.coefficients == (1.0,) * 4
    assert report.conflicts == report.projections == ()
    alone = np.array([1.5, -0.0, 3e-40], np.float32)
    assert surgery.pcgrad([alone], 0)[0].tobytes() == alone.tobytes()
    assert surgery.pcgrad([alone], 0)[0] is not alone


def test_opposite_equal_and_zero_gradients() -> None:
    g = np.array([1.0, 2.0])
    combined, report = surgery.pcgrad([g, -g], 0)
    assert combined.tolist() == [0.0, 0.0]  # each loses all of itself
    assert report.projections == ((0, 1), (1, 0))
    combined, report = surgery.pcgrad([g, np.zeros(2), g], 0)
    assert combined.tolist() == [2.0, 4.0]
    assert report.conflicts == ()
    assert report.cosines[1] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("lengths", [(1e-300, 1e300, 1.0), (1e-160, 3e-162, 1e-158), (1e180, 1e-200, 1e200)])
def test_extremes_of_float64(lengths: tuple[float, ...], backend: str) -> None:
    rng = np.random.default_rng(6)
    units = [rng.standard_normal(8) for _ in range(3)]
    units[1] -= 2 * units[0]
    combined, _ = surgery.pcgrad([u * n for u, n in zip(units, lengths, strict=True)], 2, backend=backend)
    top = max(lengths)
    # The direction of each p_i does not depend on the lengths of the others.
    parts = [np.zeros(8)] * 3
    rng = np.random.Generator(np.random.PCG64(2))
    for i in range(3):
        p = units[i]
        for j in rng.permutation([j for j in range(3) if j != i]):
            p = p - min(p @ units[j], 0.0) / (units[j] @ units[j]) * units[j]
        parts[i] = p * (lengths[i] / top)
    assert np.allclose(combined / top, sum(parts), rtol=0, atol=1e-13)


def test_loss_scale_and_policies(backend: str) -> None:
    rng = np.random.default_rng(2)
    tasks: list[dict[str, Any]] = [{"w": rng.standard_normal(20), "b": rng.standard_normal(2)} for _ in range(3)]
    plain, _ = surgery.pcgrad(tasks, 1, backend=backend)
    scaled = [{name: 512 * g for name, g in task.items()} for task in tasks]
    unscaled, _ = surgery.pcgrad(scaled, 1, loss_scale=512.0, backend=backend)
    assert all(unscaled[name].tobytes() == plain[name].tobytes() for name in plain)

    bad = [{name: g.copy() for name, g in task.items()} for task in tasks]
    bad[1]["w"][3], bad[2]["b"][0] = np.nan, np.inf
    with pytest.raises(gc.NonFiniteGradientError) as raised:
        surgery.pcgrad(bad, 1, backend=backend)
    check_sentence(raised.value, gc.NonFiniteGradientError, "pcgrad", "'1.w' (0 inf, 1 NaN), '2.b' (1 inf", "pass")
    summed, report = surgery.pcgrad(bad, 1, nonfinite="skip", backend=backend)
    assert report.skipped
    assert (report.nonfinite, report.culprits) == (2, ("1.w", "2.b"))
    assert np.array_equal(summed["w"], bad[0]["w"] + bad[1]["w"] + bad[2]["w"], equal_nan=True)
    zeroed, report = surgery.pcgrad(bad, 1, nonfinite="zero", backend=backend)
    assert report.skipped
    assert not zeroed["w"].any()
    assert not zeroed["b"].any()
    largest = np.finfo(np.float64).max
    cleaned = [{name: np.nan_to_num(g, posinf=largest) for name, g in task.items()} for task in bad]
    expected, _ = surgery.pcgrad(cleaned, 1, backend=backend)
    found, report = surgery.pcgrad(bad, 1, nonfinite="sanitize", backend=backend)
    assert not report.skipped
    assert all(found[name].tobytes() == expected[name].tobytes() for name in found)
    nan_alone = [tasks[0], bad[1]]
    found, report = surgery.pcgrad(nan_alone, 1, nonfinite="propagate", backend=backend)
    assert report.projections == ()  # a dot that is NaN is no conflict
    assert np.array_equal(found["w"], tasks[0]["w"] + bad[1]["w"], equal_nan=True)


def test_refusals() -> None:
    w = np.ones(3)
    wrong: list[tuple[Any, Any, str, str, str]] = [
        ([], 0, "task_grads=[]", "no task", "one container"),
        ({"a": w}, 0, "task_grads=", "no list of gradients", "one container"),
        (w, 0, "task_grads=", "no list of gradients", "one container"),
        ([w, w], -1, "seed=-1", "no int >= 0", "int >= 0"),
        ([w, w], 0.5, "seed=0.5", "no int", "int >= 0"),
        ([w, w], True, "seed=True", "no int >= 0", "int >= 0"),
        ([{"a": w}, {"b": w}], 0, "task_grads[1], gradient 'a'", "no array at that path", "same structure"),
        ([{"a": w}, {"a": w, "b": w}], 0, "task_grads[1], gradient 'b'", "no array at that path", "same structure"),
        (
            [{"a": w, "b": w}, {"a": w, "b": w + 1}],
            0,
            "task_grads[1], gradient 'b'",
            "one array there",
            "same structure",
        ),
        ([{"a": w}, {"a": np.ones(4)}], 0, "task_grads[1], gradient 'a'", "its shape is (3,)", "same structure"),
    ]
    for tasks, seed, asked, seen, cure in wrong:
        with pytest.raises(gc.InvalidArgumentError) as raised:
            surgery.pcgrad(tasks, seed)
        check_sentence(raised.value, gc.InvalidArgumentError, asked, seen, cure)
    with pytest.raises(gc.UnsupportedArrayError) as complex_one:
        surgery.pcgrad([w, w * 1j], 0)
    check_sentence(complex_one.value, gc.UnsupportedArrayError, "array '1.0'", "complex", "real and imaginary")


def test_torch_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.tensor([1.0, 0.0], dtype=torch.bfloat16), torch.tensor([-1.0, 1.0], dtype=torch.bfloat16)
    combined, _ = surgery.pcgrad([[a], [b]], 0)
    assert combined[0].dtype == torch.bfloat16
    assert combined[0].tolist() == [0.5, 1.5]
