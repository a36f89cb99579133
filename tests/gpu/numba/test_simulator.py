"""The kernels as Python, in a process of Numba's simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gpu.toolkit.needs import needs_numba_cuda

ROOT = Path(__file__).parents[3]


@needs_numba_cuda
def test_the_simulator_has_the_same_bits() -> None:
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"}
    command = [sys.executable, "-W", "error", "-m", "tests.gpu.numba.simulation"]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " done, 0 failed" in ran.stdout
