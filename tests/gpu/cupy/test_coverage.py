"""Every line of the kernels runs in the scenarios, every branch is taken that can be. ``pytest -s`` shows a table."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources

import pytest

from tests.gpu.bugs.bench import open_bench
from tests.gpu.bugs.small import run
from tests.gpu.cpu.coverage import Branches, branch_counts, forget, line_counts
from tests.gpu.cpu.engine import CpuEngine, CpuProgram
from tests.gpu.cpu.needs import needs_gxx
from tests.gpu.cupy.scenarios import SCENARIOS

pytestmark = [
    needs_gxx,
    pytest.mark.skipif(
        importlib.util.find_spec("cupy") is None, reason="needs the package beside the kernels: pip install cupy"
    ),
]

Lines = dict[str, dict[int, int]]

# File, line, and why a branch of it is never taken.
NEVER_TAKEN = {
    ("general.cu", "if (closed(pass.gate)) return;"): "the pass for a general order has no gate",
    ("tree.cuh", "for (int half = WIDTH / 2; half; half /= 2, mask /= 2) total"): "for WIDTH 1 there is no half",
}


class _Counting(CpuEngine):
    """Functions are not inlined, so that each instance of a template is counted by itself."""

    def __init__(self) -> None:
        super().__init__("coverage")
        self.programs: list[CpuProgram] = []

    def compile(self, source: str, options: Sequence[str]) -> CpuProgram:
        inline, plain = "__device__ __forceinline__", "__device__ __noinline__ inline"
        assert source.count(f"#define INLINE {inline}\n") <= 1
        program = super().compile(source.replace(f"#define INLINE {inline}\n", f"#define INLINE {plain}\n"), options)
        forget(program.module)
        self.programs.append(program)
        return program


@pytest.fixture(scope="module")
def counted() -> tuple[Lines, Branches]:
    """All modules' counts together, of the kernels' own files."""
    engine = _Counting()
    with open_bench(engine) as bench:
        run(bench, list(SCENARIOS))
    lines: Lines = defaultdict(lambda: defaultdict(int))
    branches: Branches = defaultdict(lambda: defaultdict(dict))
    for program in engine.programs:
        for file, counts in line_counts(program.module).items():
            for line, count in counts.items():
                lines[file][line] += count
        for file, places in branch_counts(program.module).items():
            for line, widths in places.items():
                for width, taken in widths.items():
                    known = branches[file][line].setdefault(width, [0] * width)
                    branches[file][line][width] = [a + b for a, b in zip(known, taken, strict=True)]
    ours = _texts()
    return {file: lines[file] for file in ours}, {file: branches[file] for file in ours}


def _texts() -> dict[str, list[str]]:
    folder = resources.files("gradclip_backends.cupy_raw") / "kernels"
    files = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    return {file.name: file.read_text(encoding="utf-8").splitlines() for file in files}


def _untaken(branches: Branches) -> Iterator[tuple[str, str, list[int]]]:
    """File, text of the line, and how often each of its branches was taken, where one never was."""
    texts = _texts()
    for file, places in branches.items():
        for line, widths in sorted(places.items()):
            for width, taken in widths.items():
                if width > 1 and 0 in taken:  # what has one way to go on is no branch
                    yield file, texts[file][line - 1].strip(), taken


def test_a_table(counted: tuple[Lines, Branches]) -> None:
    lines, branches = counted
    print(f"\n{'file':16} {'lines':>10} {'branches':>12}")
    for file in lines:
        ran = sum(count > 0 for count in lines[file].values())
        taken = [count > 0 for w in branches[file].values() for n, counts in w.items() if n > 1 for count in counts]
        print(f"{file:16} {ran:>4} of {len(lines[file]):<4} {sum(taken):>4} of {len(taken):<4}")
    assert sum(map(len, lines.values())) > 500


def test_every_line_runs(counted: tuple[Lines, Branches]) -> None:
    texts = _texts()
    missed = [
        f"{file}: {texts[file][n - 1]}" for file, ran in counted[0].items() for n, count in ran.items() if not count
    ]
    assert missed == []


def test_every_branch_is_taken_that_can_be(counted: tuple[Lines, Branches]) -> None:
    missed = {(file, text): taken for file, text, taken in _untaken(counted[1])}
    known = {where: any(where[0] == file and where[1] in text for file, text in missed) for where in NEVER_TAKEN}
    unknown = {k: v for k, v in missed.items() if not any(k[0] == file and text in k[1] for file, text in NEVER_TAKEN)}
    assert unknown == {}
    assert all(known.values()), f"taken by now: {known}"
