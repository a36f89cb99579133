"""gcov counts the lines of the .cu file."""

from __future__ import annotations

import numpy as np

from tests.gpu.cpu.coverage import forget, line_counts
from tests.gpu.cpu.helpers import compile_here, run, run_elsewhere
from tests.gpu.cpu.needs import needs_gxx

pytestmark = needs_gxx

SOURCE = """#line 7 "two.cu"
extern "C" __global__ void two_lines(int* out) {
    out[threadIdx.x] = 1;
    if (out[threadIdx.x] == 2)
        out[threadIdx.x] = 3;
}"""


def test_lines_are_counted_under_the_name_that_line_gives() -> None:
    program, out = compile_here(SOURCE, flavour="coverage"), np.zeros(4, np.int32)
    forget(program.module)
    run(program, "two_lines", 1, 4, out)
    assert line_counts(program.module)["two.cu"] == {7: 4, 8: 4, 9: 4, 10: 0, 11: 4}


def test_counts_add_up_over_launches_and_processes() -> None:
    program, out = compile_here(SOURCE, flavour="coverage"), np.zeros(4, np.int32)
    forget(program.module)
    for _ in range(2):
        run(program, "two_lines", 2, 4, out)
        line_counts(program.module)
    there = run_elsewhere("coverage", SOURCE, "run(program, 'two_lines', 1, 4, np.zeros(4, np.int32))")
    assert there.returncode == 0, there.stderr
    assert line_counts(program.module)["two.cu"][8] == 20
    forget(program.module)
    assert line_counts(program.module).get("two.cu", {}).get(8, 0) == 0
