"""``gradclip bench``, small; who is left out; and that what is timed does what its name says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

pytest.importorskip("typer")
from gradclip_core.cli import bench, bench_machine
from gradclip_core.cli.bench_csv import read
from gradclip_core.cli.bench_shapes import Shapes, elements, gpt2, small
from gradclip_core.cli.bench_timing import LIMIT, OURS, Call
from gradclip_core.cli.bench_works import Frameworks, by_global_norm, by_value, norm_alone, numpy_clip
from tests.cli.helpers import refused, run

SHAPES: Shapes = [(30, 40), (7,), (), (50, 3)]
FRAMEWORKS = ("torch", "jax", "optax")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small gradients, few rounds."""
    monkeypatch.setattr(bench, "_DATA", (("tiny", SHAPES), ("tiny", SHAPES)))
    monkeypatch.setattr(bench, "_SECONDS", 0.0)
    monkeypatch.setattr(bench, "small", lambda count: small(20))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No framework."""
    for name in FRAMEWORKS:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("tiny", "alone")
def test_bench_with_numpy_alone() -> None:
    result = run("bench")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "\x1b" not in result.out
    for words in ("of the limit", "times ours", "NumPy loop", "np.linalg.norm", "tiny, float16", "GB/s"):
        assert words in result.out
    for name in FRAMEWORKS:
        assert f"without {name}, which is not installed\n" in result.out


@pytest.mark.usefixtures("tiny", "alone")
def test_bench_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "bench.csv"
    result = run("bench", "--out", out)
    assert result.code == 0, result.err
    assert f"Wrote {out}" in result.out
    found = read(out)
    assert {context.commit for context, _ in found} == {f"gradclip-core {gc.__version__}"}
    assert {row.who for _, row in found} == {OURS, LIMIT, "NumPy loop", "np.linalg.norm"}
    for _, row in found:
        assert 0 < row.ms_q25 <= row.ms_median <= row.ms_q75
        assert row.rounds == 5
        if row.who == OURS:
            assert row.times_ours_median == 1
        if row.who == LIMIT:
            assert row.percent_of_limit == 100


@pytest.mark.usefixtures("tiny")
def test_bench_with_frameworks() -> None:
    torch, _, _ = (pytest.importorskip(name) for name in FRAMEWORKS)
    threads = torch.get_num_threads()
    try:
        result = run("bench")
    finally:
        torch.set_num_threads(threads)
    assert result.code == 0, result.err
    assert "without" not in result.out
    for words in ("torch", "optax, jit", "tiny, bfloat16"):
        assert words in result.out


def test_the_target_is_checked_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "cases", None)
    assert "there is no directory" in refused(run("bench", "-o", tmp_path / "x" / "bench.csv"))


def test_a_number_of_threads_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setenv("GRADCLIP_NUM_THREADS", "many")
    assert "GRADCLIP_NUM_THREADS='many' is no number of threads" in refused(run("bench"))


def test_a_broken_framework_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optax_broken.py").write_text("raise RuntimeError('no libopt\\nand a page of it')")
    monkeypatch.syspath_prepend(tmp_path)
    sentence = "without optax_broken, which cannot be imported: RuntimeError: no libopt"
    assert bench_machine.imported("optax_broken") == (None, sentence)


def test_smaller_gradients_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name in ((64 << 30, "GPT-2 124M"), (1 << 30, "GPT-2, 256 wide"), (1 << 20, "GPT-2, 32 wide")):
        monkeypatch.setattr(bench_machine, "available_memory", lambda room=room: room)
        assert bench._fitting("numba_cpu")[0] == name
    monkeypatch.setattr(bench_machine, "available_memory", lambda: 64 << 30)
    assert bench._fitting("numpy")[0] == "GPT-2, 256 wide"


def test_shapes() -> None:
    assert (len(gpt2()), elements(gpt2())) == (148, 124_439_808)
    sizes = [shape[0] for shape in small(1000)]
    assert min(sizes) == 64
    assert max(sizes) == 1024


@pytest.fixture(params=["NumPy", "torch"])
def peers(request: pytest.FixtureRequest) -> Frameworks:
    """Both ways in which gradients are made."""
    return Frameworks() if request.param == "NumPy" else Frameworks(torch=pytest.importorskip("torch"))


def peer(calls: dict[str, Call]) -> Call:
    return calls["torch" if "torch" in calls else "NumPy loop"]


def test_a_clipped_step_clips_each_time(peers: Frameworks) -> None:
    prepared = by_global_norm(SHAPES, "float32", 2, peers, clips=True)
    assert prepared.arrays == 4
    assert prepared.bytes == 3 * 4 * elements(SHAPES)
    norms = []
    for _ in range(3):
        theirs = peer(prepared.calls)()  # the norm that was found
        info: Any = prepared.calls[OURS]()
        assert info.clipped
        assert info.norm < float(theirs)  # type: ignore[arg-type]
        norms.append(info.norm)
    assert norms == sorted(norms, reverse=True)


def test_an_unclipped_step_never_clips(peers: Frameworks) -> None:
    prepared = by_global_norm(SHAPES, "float32", 2, peers, clips=False)
    assert prepared.bytes == 4 * elements(SHAPES)
    for _ in range(2):
        info: Any = prepared.calls[OURS]()
        assert not info.clipped
        assert float(peer(prepared.calls)()) == pytest.approx(info.norm, rel=1e-6)  # type: ignore[arg-type]


def test_by_value(peers: Frameworks) -> None:
    for clips in (False, True):
        prepared = by_value(SHAPES, "float16", 2, peers.torch, clips=clips)
        assert prepared.bytes == (4 if clips else 2) * elements(SHAPES)
        for _ in range(2):
            peer(prepared.calls)()
            info: Any = prepared.calls[OURS]()
            assert info.clipped == clips


def test_the_norm_alone() -> None:
    prepared = norm_alone(1000, "float32", 2)
    assert prepared.calls[OURS]() == pytest.approx(prepared.calls["np.linalg.norm"](), rel=1e-6)


def test_the_loop_in_numpy_clips() -> None:
    arrays = [np.array([3, 4], np.float32), np.full((2, 2), 6, np.float32)]
    assert numpy_clip(arrays, 1.0) == 13
    assert gc.global_norm(arrays) == pytest.approx(1)
