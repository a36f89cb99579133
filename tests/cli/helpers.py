"""Running the command line in this process, and files of gradients to run it on."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradclip_core.cli import EXTRA, main

# Whoever imports this is skipped where the extra is not installed.
for _name in EXTRA:
    pytest.importorskip(_name)
_safetensors = pytest.importorskip("safetensors.numpy")

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
BFLOAT16: np.dtype[Any] = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
FLOATS = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))


@dataclass
class Result:
    """Of one command line."""

    code: int
    out: str
    err: str


def run(*args: object) -> Result:
    """Everything but help and usage errors goes through here as from a shell."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Result(code, out.getvalue(), err.getvalue())


def refused(result: Result) -> str:
    """The one line of a failure; asserts that it is one."""
    assert result.code == 1, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.err
    return lines[0]


def save(path: Path, arrays: Arrays, metadata: dict[str, str] | None = None) -> Path:
    """With the formats' own libraries."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        _safetensors.save_file(arrays, path, metadata)
    return path


def load(path: Path) -> Arrays:
    """With the formats' own libraries."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    loaded: Arrays = _safetensors.load_file(path)
    return loaded


def same(found: Arrays, expected: Arrays) -> bool:
    """Names, dtypes, shapes and bits; order is the format's business."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == x.dtype and found[name].shape == x.shape and found[name].tobytes() == x.tobytes()
        for name, x in expected.items()
    )


def gradients() -> Arrays:
    """Of several dtypes, shapes and sizes, among them some that are no gradients."""
    random = np.random.default_rng(0)
    return {
        "layer.weight": random.standard_normal((5, 7)).astype(np.float32),
        "layer.bias": random.standard_normal(7),
        "half": random.standard_normal((3, 2)).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "none": np.empty((0, 4), np.float32),
        "steps": np.array([7, -1], np.int64),
        "mask": np.array([True, False, True]),
    }
