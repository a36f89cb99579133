"""CUDA 12's compiler takes the kernels too, and comes to an end: 12.6 to 13.0 once never did.

In a process of its own, because two versions of one library do not live together, and because it may hang.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradclip_core.arrays import dlpack_door

ROOT = Path(dlpack_door.__file__).parents[2]
_SECONDS = 400
_COMPILE = """
import sys
from gradclip_backends.cupy_raw.sources import FILES, OPTIONS, source
from tests.gpu.toolkit import nvrtc

print(*nvrtc.version())
for file in sorted(set(FILES.values())):
    for arch in (75, 89, 90):
        ptx, _ = nvrtc.compile(source(file), [*OPTIONS, f"-arch=compute_{arch}", "-ftz=true"], "ptx")
        assert b".entry" in ptx, file
        print(file, arch)
"""


def _library() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = Path(folder) / "cuda_nvrtc" / "lib"
        if any(found.glob("libnvrtc.so.12")):
            return found
    return None


@pytest.mark.skipif(_library() is None, reason="needs CUDA 12's NVRTC: pip install nvidia-cuda-nvrtc-cu12")
def test_cuda_12_compiles_every_kernel() -> None:
    pytest.importorskip("cupy")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    environment = {**os.environ, "GRADCLIP_NVRTC": str(_library()), "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", "-c", _COMPILE]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("12 ")
    assert len(lines) == 1 + 3 * 8
