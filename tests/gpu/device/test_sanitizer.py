"""compute-sanitizer's four tools over ``sanitized.py``. It knows what no emulation does: the device's own memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.gpu.device import needs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_clean(tool: str) -> None:
    needs.cupy_with_device()
    command = [needs.sanitizer(), "--tool", tool, "--error-exitcode", "9"]
    script = [sys.executable, "-m", "tests.gpu.device.sanitized"]
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, f"{tool}: {done.stdout[-4000:]}{done.stderr[-2000:]}"
    assert "clean" in done.stdout
