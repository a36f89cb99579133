"""The application: help, version, and how it meets a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradclip_core
from tests.cli.helpers import gradients, run, save


def test_version() -> None:
    assert run("--version").out == f"gradclip-core {gradclip_core.__version__}\n"


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_help(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.code == 0
    for command in ("demo", "clip", "info", "check", "bench"):
        assert f"  {command} " in result.out
    assert "..." not in result.out.split("Commands:")[1]  # every sentence fits
    assert result.out.isascii()


@pytest.mark.parametrize("command", ["demo", "clip", "info", "check", "bench"])
def test_help_of_a_command(command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert "Usage: gradclip" in result.out


def test_a_command_that_is_not_there() -> None:
    result = run("clop")
    assert result.code == 2
    assert "clop" in result.err


def test_as_a_process(tmp_path: Path) -> None:
    """``python -m``, exit codes, and a terminal that knows nothing but ASCII."""
    grads = save(tmp_path / "g.npz", {**gradients(), "größe": gradients()["half"]})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "gradclip_core.cli", "clip", str(grads), "-o", str(grads), "--max-norm"]
    done = subprocess.run([*command, "1"], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe" in done.stdout
    done = subprocess.run([*command, "-1"], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: max_norm=-1.0: no gradient is within a negative bound")


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = run("info")
    assert "╭" in result.out
    assert "\x1b[" in result.out
