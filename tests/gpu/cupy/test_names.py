"""Every name of CuPy's that the library uses exists in the real one, which can be imported without a GPU."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from gradclip_core.arrays import dlpack_door
from tests.gpu.standin.modules import build
from tests.gpu.standin.surface import missing

ROOT = Path(dlpack_door.__file__).parents[2]
FILES = [
    "backends/gradclip_backends/cupy_raw/launch.py",
    "gradclip_core/arrays/cupy_door.py",
    "gradclip_core/arrays/dlpack_door.py",
]


def used(text: str) -> set[str]:
    """Dotted names behind ``cupy``, and behind the name that launch.py gives its runtime."""
    text = text.replace("_runtime.", "cupy.cuda.runtime.")
    return set(re.findall(r"\bcupy\.((?:\w+\.)*\w+)", text))


@pytest.mark.parametrize("file", FILES)
def test_the_real_cupy_has_them_and_so_has_the_stand_in(file: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing libraries
        real: Any = pytest.importorskip("cupy")
    names = used((ROOT / file).read_text())
    assert len(names) >= 4
    assert missing(names, real) == []
    assert missing(names, build()["cupy"]) == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert used("x = _runtime.teleport(cupy.cuda.Device(0))") == {"cuda.runtime.teleport", "cuda.Device"}
    assert missing({"cuda.runtime.teleport"}, build()["cupy"]) == ["cuda.runtime.teleport"]
