"""The examples in the docstrings run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import gradclip_core

CORE = Path(gradclip_core.__file__).parent
# A door is imported when its framework is; a command line needs its extra.
FRAMEWORKS = ("cupy", "jax", "mlx", "paddle", "tensorflow", "torch")
APART = {
    *(str(path.relative_to(CORE)) for name in FRAMEWORKS for path in (CORE / "arrays").glob(f"{name}_*.py")),
    *(str(path.relative_to(CORE)) for path in (CORE / "cli").glob("*.py")),
}
FILES = sorted(str(path.relative_to(CORE)) for path in CORE.rglob("*.py"))


@pytest.mark.parametrize("file", [file for file in FILES if file not in APART])
def test_examples(file: str) -> None:
    name = "gradclip_core." + file.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_every_function_has_an_example_or_points_to_one() -> None:
    for name in gradclip_core.__all__:
        if name.startswith(("clip", "adaptive", "plan", "global")):
            doc = getattr(gradclip_core, name).__doc__
            assert ">>>" in doc or doc.startswith("``"), name
