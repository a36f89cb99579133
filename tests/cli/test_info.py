"""``gradclip info``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest

from gradclip_core import registry
from tests.cli.helpers import run


@pytest.fixture
def backends() -> Iterator[None]:
    """The registry as it was, afterwards."""
    table, preference = dict(registry.BACKENDS), dict(registry.PREFERENCE)
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(table)
    registry.PREFERENCE.clear()
    registry.PREFERENCE.update(preference)


def test_info() -> None:
    result = run("info")
    assert result.code == 0
    assert "\x1b" not in result.out
    for word in ("gradclip-core", "python", "numpy", "numba", "typer", "platform", "byte order", *registry.BACKENDS):
        assert word in result.out


@pytest.mark.usefixtures("backends")
def test_a_backend_that_is_not_installed_says_why() -> None:
    registry.register("elsewhere", "no_such_module_anywhere:BACKEND", "pip install elsewhere", ("moon",))
    result = run("info")
    line = next(line for line in result.out.splitlines() if line.startswith("elsewhere"))
    assert line.split()[1:3] == ["moon", "no"]
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in line
    assert "pip install elsewhere" in line


def test_no_framework_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("info").code == 0


def test_without_the_packages_that_know_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> object:
        if name.startswith(("llvmlite", "gradclip_backends")):
            raise OSError("libllvm is broken")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    result = run("info")
    assert result.code == 0
    assert "avx2" not in result.out
    assert "threads" not in result.out
