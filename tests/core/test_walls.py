"""The walls of the house: what the core may import, and proof that these tests can fail."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "gradclip_core"
HEAVY = {"numba", "llvmlite", "torch", "jax", "cupy", "tensorflow", "typer", "rich", "matplotlib", "safetensors"}
HEAVY |= {"gradclip_backends", "ml_dtypes", "array_api_compat", "paddle", "mlx", "dask", "ndonnx"}
LOADED = "import sys; {}; print(sorted(set(sys.modules) & {!r}))"


def loaded_by(statement: str) -> list[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    code = LOADED.format(statement, HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    names = ast.literal_eval(done.stdout)
    assert isinstance(names, list)
    return names


def test_importing_the_core_loads_numpy_alone() -> None:
    assert loaded_by("import gradclip_core") == []


def test_importing_the_conformance_suite_loads_numpy_alone() -> None:
    assert loaded_by("import gradclip_core.testing") == []


def test_the_import_test_can_fail() -> None:
    pytest.importorskip("ml_dtypes")
    assert loaded_by("import gradclip_core, ml_dtypes") == ["ml_dtypes"]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_reference_imports_numpy_and_the_protocol() -> None:
    allowed = {"__future__", "sys", "collections.abc", "typing", "numpy", "numpy.typing", "gradclip_core.protocol"}
    assert imports(CORE / "reference.py") <= allowed
    allowed |= {"dataclasses", "gradclip_core.forms", "gradclip_core.reference"}
    assert imports(CORE / "reference_forms.py") <= allowed
    allowed |= {"gradclip_core.updates"}
    assert imports(CORE / "optim" / "reference.py") <= allowed


def test_the_protocol_imports_numpy() -> None:
    allowed = {"__future__", "collections.abc", "dataclasses", "typing", "numpy", "numpy.typing"}
    assert imports(CORE / "protocol.py") <= allowed
    assert imports(CORE / "device.py") <= allowed | {"gradclip_core.protocol"}
    assert imports(CORE / "forms.py") <= allowed | {"gradclip_core.protocol", "importlib"}
    assert imports(CORE / "updates.py") <= allowed | {"gradclip_core.protocol", "importlib"}


def test_backends_do_not_import_decisions() -> None:
    """A backend never decides: it sees the protocols and the errors, and nothing else of the core."""
    for path in (ROOT / "backends").rglob("*.py"):
        core = {name for name in imports(path) if name.startswith("gradclip_core")}
        protocols = {f"gradclip_core.{name}" for name in ("protocol", "device", "forms", "operations", "updates")}
        assert core <= protocols | {"gradclip_core.errors"}, path


def test_files_are_small_rooms() -> None:
    for path in [*CORE.rglob("*.py"), *(ROOT / "backends").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= 350, f"{path} has {lines} lines: one topic each"


def test_the_linter_guards_the_same_walls() -> None:
    ruff = Path(sys.executable).parent / "ruff"
    if not ruff.exists():
        pytest.skip("ruff is in the lint lane")
    code = "import numba\nimport torch\nfrom gradclip_backends import numba_cpu\n"
    done = subprocess.run(
        [ruff, "check", "--select", "TID251", "--stdin-filename", str(CORE / "made_up.py"), "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stdout.count("TID251") == 3
