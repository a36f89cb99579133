"""What NVVM and ptxas make of the kernels: that they compile, fit into registers, and round where they should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.gpu.numba.thorough import EVERYTHING
from tests.gpu.toolkit.needs import needs_numba_cuda
from tests.gpu.toolkit.nvrtc import install_root

pytestmark = needs_numba_cuda

NAMES = (
    *("apply_table", "ask_for_carries_table", "carries_table", "decide_general_table", "decide_norms_table"),
    *("decide_value_table", "gather", "measure_magnitudes_table", "measure_squares_table", "powers_table"),
    *("rescale_table", "scatter", "store_words"),
)
WITH_POW = ("decide_general_table", "powers_table")  # libdevice's own, fused as its authors meant it
HEAVY = ("apply_table", "carries_table", "decide_norms_table", "measure_squares_table")
BUILDS = [
    (name, architecture)
    for architecture in (75, 80, 89, 90, 120)
    for name in NAMES
    if EVERYTHING or architecture == 90 or name in HEAVY
]
EXACT_SQUARES = (16 + 16) * 4 + 8 * 4
"""Of 16-bit and 32-bit values: eight vectors of 8, 8 and 4 elements."""


def _assembled(text: str, architecture: int, folder: Path) -> str:
    source = folder / "kernel.ptx"
    source.write_text(text)
    ptxas = install_root() / "bin" / "ptxas"
    if not ptxas.is_file():
        pytest.skip("needs ptxas: pip install nvidia-cuda-nvcc")
    command: list[str | Path] = [ptxas, "-v", f"-arch=sm_{architecture}", source, "-o", folder / "kernel.cubin"]
    ran: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.parametrize(("name", "architecture"), BUILDS)
def test_it_compiles_without_spills(name: str, architecture: int, tmp_path: Path) -> None:
    from tests.gpu.numba.compiled import ptx_of

    # The PTX for sm_75 runs on the two after it; where everything is run, each has its own.
    made_for = {80: 75, 89: 75}.get(architecture, architecture) if not EVERYTHING else architecture
    log = _assembled(ptx_of(name, divmod(made_for, 10)), architecture, tmp_path)
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert not re.search(r"[1-9]\d* bytes (stack|spill)", log), log
    [registers] = re.findall(r"Used (\d+) registers", log)
    # Two blocks of 256 threads share a multiprocessor's 65,536; a decision has them for itself.
    assert int(registers) <= (255 if name.startswith(("decide", "ask", "gather", "scatter", "store")) else 128)


def test_these_are_all_kernels() -> None:
    from gradclip_backends.gpu.passes import kernels_for
    from gradclip_backends.numba_cuda.kernels import KERNELS

    assert sorted(KERNELS) == sorted(NAMES)
    for order in (1.0, 2.0, 3.0, float("inf")):
        for value in (False, True):
            assert {f"{name}_table" for name in kernels_for(order, True, value=value)} <= set(KERNELS)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_POW])
def test_no_product_is_fused_with_a_sum_but_exact_squares(name: str) -> None:
    from tests.gpu.numba.compiled import ptx_of

    text = ptx_of(name)
    fused = len(re.findall(r"\b(?:fma|mad)\.\S*f(?:32|64)\s", text))
    assert fused == (EXACT_SQUARES if name == "measure_squares_table" else 0)
    # A product without `.rn` is one that ptxas may fuse.
    assert not re.search(r"\bmul\.(?:ftz\.)?f(?:32|64)\s", text)
    assert ".ftz" not in text
    assert not re.search(r"\b(?:div|sqrt|rcp)\.(?:approx|full)", text)


def test_float32_is_multiplied_exactly() -> None:
    from tests.gpu.numba.compiled import ptx_of

    text = ptx_of("apply_table")
    assert text.count("mul.rn.f32") > 0
    assert text.count("mul.rn.f64") > 0


@pytest.mark.parametrize("name", ["apply_table", "measure_squares_table", "measure_magnitudes_table"])
def test_memory_is_read_by_16_bytes(name: str) -> None:
    from tests.gpu.numba.compiled import ptx_of

    text = ptx_of(name)
    assert len(re.findall(r"ld\.global\.v2\.u64", text)) >= 4 * 8  # four storage types, eight under way
    assert bool(re.search(r"st\.global\.v2\.u64", text)) == (name == "apply_table")


@pytest.mark.parametrize("name", NAMES)
def test_every_access_is_one_to_global_memory(name: str) -> None:
    from tests.gpu.numba.compiled import ptx_of

    text = ptx_of(name)
    accesses = set(re.findall(r"(?<!\.)\b((?:ld|st|atom|red)\.\S+)", text))
    # `pow` is called, with its argument on the callee's stack of parameters; powers have tables of constants.
    assert all(re.match(r"(ld|st|atom|red)\.(global|param)\b", access) for access in accesses), accesses
    assert ".local" not in text
    assert ".shared" not in text
