"""The benchmarks run, small; the README's table and the figures come from the CSV files."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_memory, bench_sizes, docked, figures, goals, growth, harness, readme, shapes
from benchmarks.__main__ import ON_THE_CPU, main, run
from benchmarks.harness import RESULTS, ROOT, Settings, append, latest
from gradclip_core.cli.bench_csv import FIELDS, Context
from gradclip_core.cli.bench_timing import LIMIT, OURS, Row
from gradclip_core.cli.bench_works import Frameworks

CONTEXT = Context("2026-01-01", "abc1234", "a machine, 2 cores, Linux", "python 3.11, numpy 2.4, torch 2.13")


def made_up() -> list[tuple[Context, Row]]:
    """Figures of everything that is drawn, of nobody's machine."""
    found = []

    def add(benchmark: str, work: str, data: str, whom: Sequence[str], arrays: int = 1, bytes_: int = 10**9) -> None:
        for place, who in enumerate((LIMIT, OURS, *whom)):
            ms, ratio = 10.0 * (place + 1) * bytes_ / 1e9, 0.5 * (place + 1)
            numbers = (0.9 * ms, ms, 1.2 * ms, 0.9 * ratio, ratio, 1.1 * ratio, 50.0)
            found.append((CONTEXT, Row(benchmark, work, data, who, arrays, bytes_, 2, 21, *numbers)))

    for benchmark, work, data in readme.WANTED:
        add(benchmark, work, data, ("timm", "optax, jit") if benchmark == "agc" else ("torch",))
    for count in (1, 100, 10_000):
        add("arrays", "global norm, unclipped", f"{count}", ("torch",), count, 2200 * count)
    for size in bench_sizes.SIZES:
        add("sizes", "global norm, unclipped", f"{size}", ("torch",), 1, size)
    return found


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_pages_have_the_tables_that_the_files_give(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert readme.filled(text, readme.PAGES[page]) == text, "run: python -m benchmarks readme"


def test_the_page_of_goals_has_the_table_that_the_files_give() -> None:
    text = goals.PAGE.read_text(encoding="utf-8")
    assert goals.filled(text) == text, "run: python -m benchmarks readme"


def test_the_page_of_frameworks_has_the_table_that_the_files_give() -> None:
    text = docked.PAGE.read_text(encoding="utf-8")
    assert docked.filled(text) == text, "run: python -m benchmarks readme"
    assert "| PyTorch | " in text
    assert "| clip | 4 arrays" in text


def test_a_line_through_points_of_one() -> None:
    x = [1, 10, 100, 10_000]
    line = growth.Line.through(x, [0.5 + 0.004 * value for value in x])
    assert (line.fixed, line.each) == pytest.approx((0.5, 0.004))
    assert line.furthest < 1e-12
    assert growth.Line.through(x, [0.5, 0.5, 1.0, 40.0]).furthest > 0.05


def test_every_goal_has_a_benchmark() -> None:
    timed = {(row.benchmark, row.work, row.data, row.who) for _, row in harness.latest()}
    assert timed >= {(benchmark, work, data, peer) for benchmark, work, data, peer, _ in goals.GOALS}


def test_the_table() -> None:
    lines = readme.table(made_up()).splitlines()
    assert lines[2] == (
        "| global norm, unclipped | GPT-2 124M, float32 | 20.0 ms | 50 % | torch | 30.0 ms | **1.50** | 1.35 to 1.65 |"
    )
    assert "|  |  |  |  | optax, jit | 40.0 ms | **2.00** | 1.80 to 2.20 |" in lines
    assert lines[-1] == "a machine, 2 cores, Linux. Python 3.11, numpy 2.4, torch 2.13. Commit abc1234, 2026-01-01."
    with pytest.raises(ValueError, match="no table"):
        readme.filled("# A README")


def test_every_file_of_figures_has_the_one_schema() -> None:
    paths = list(RESULTS.glob("*.csv"))
    assert paths
    for path in paths:
        assert path.read_text(encoding="utf-8").splitlines()[0].split(",") == FIELDS, path


def test_figures(tmp_path: Path) -> None:
    drawn = figures.draw(made_up(), tmp_path)
    assert [path.name for path in drawn] == ["peers.png", "sizes.png", "arrays.png"]
    before = [path.read_bytes() for path in drawn]
    assert all(content.startswith(b"\x89PNG") for content in before)
    assert [path.read_bytes() for path in figures.draw(made_up(), tmp_path)] == before
    assert figures.draw([], tmp_path) == []


def test_the_last_figures_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    row = Row("b", "w", "d", OURS, 1, 8, 2, 5, 1.0, 2.0, 3.0)
    append("b", [row, dataclasses.replace(row, who="x")])
    path = append("b", [dataclasses.replace(row, ms_median=2.5)], machine="a GPU", packages=("numpy",))
    assert len(path.read_text().splitlines()) == 4
    (_, theirs), (context, ours) = latest(tmp_path)
    assert (theirs.who, ours.ms_median) == ("x", 2.5)
    assert context.machine.startswith("a GPU, ")
    assert context.commit.rstrip("+") or not (ROOT / ".git").exists()


@pytest.mark.parametrize("name", ["global-norm", "value", "agc", "norm", "amp", "small"])
def test_every_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    # One round of what is smaller yet than --quick; nothing may be appended.
    tiny: list[tuple[int, ...]] = [(6, 5), (4,), (8, 6, 3, 3)]
    for module in ("global_norm", "value", "agc", "amp", "small"):
        for shape in ("gpt2", "resnet50", "llama", "small", "densenet_like"):
            monkeypatch.setattr(f"benchmarks.bench_{module}.{shape}", lambda *_, **__: tiny, raising=False)
    monkeypatch.setattr("benchmarks.__main__.append", None)
    settings = Settings(Frameworks(torch=torch), threads=2, rounds=1, quick=True)
    run(name, [name], settings)
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == name
    assert "not appended" in out


def test_nothing_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    run("amp", ["amp"], Settings(Frameworks(), quick=True))
    assert "nothing to time" in capsys.readouterr().out


def test_cases_are_listed_without_taking_memory() -> None:
    torch: Any = object()
    settings = Settings(Frameworks(torch=torch), large=True)
    for name, cases in ON_THE_CPU.items():
        if name != "projection":  # which imports its peers
            assert all(case.rounds > 0 for case in cases(settings))


def test_as_a_process() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks", "norm", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 threads each" in done.stdout
    assert "np.linalg.norm" in done.stdout


def test_a_name_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gpt3"])
    assert "there is no benchmark 'gpt3'; there are global-norm," in capsys.readouterr().err


def test_peak_memory() -> None:
    if not bench_memory.cases(Settings(Frameworks())):
        pytest.skip("the peak of a process's memory is Linux's to tell")
    case, _ = bench_memory.cases(Settings(Frameworks(), quick=True))
    ours, new = case.rows(2)
    stored = 4e-6 * shapes.elements(shapes.gpt2(width=64))
    # What both need besides is some megabytes at any size.
    assert 0.9 * stored < new.peak_mb - ours.peak_mb < 1.2 * stored


def test_shapes_of_models() -> None:
    found = {shape.__name__: shape() for shape in (shapes.gpt2, shapes.llama, shapes.resnet50, shapes.densenet_like)}
    assert {name: (len(made), shapes.elements(made)) for name, made in found.items()} == {
        "gpt2": (148, 124_439_808),
        "llama": (146, 1_235_814_400),
        "resnet50": (161, 25_557_032),
        "densenet_like": (10_000, 2_212_104),
    }


def test_files_are_small_rooms() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path


def test_git_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    assert harness.commit() == ""
