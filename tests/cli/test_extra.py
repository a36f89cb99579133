"""Without the extra, or a part of it, the command line says what to install. Needs none of it itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradclip_core.cli import EXTRA


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def without(packages: tuple[str, ...], *args: str) -> subprocess.CompletedProcess[str]:
    return python(
        "import sys\n"
        f"sys.path[:] = {sys.path!r}\n"
        f"sys.modules.update(dict.fromkeys({packages!r}))\n"
        "from gradclip_core.cli import main\n"
        f"sys.exit(main({list(args)!r}))"
    )


def test_importing_the_package_imports_none_of_it() -> None:
    done = python(
        f"import sys\nsys.path[:] = {sys.path!r}\nimport gradclip_core.cli\n"
        f"print(sorted(set(sys.modules) & set({EXTRA!r})))"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("packages", [EXTRA, ("typer",), ("rich",)], ids=lambda packages: "+".join(packages))
def test_without(packages: tuple[str, ...]) -> None:
    done = without(packages, "--version")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("gradclip: the command line needs ")
    assert done.stderr.rstrip().endswith("which is not installed: pip install 'gradclip-core[cli]'")


def test_demo_without_matplotlib() -> None:
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    done = without(("matplotlib",), "demo")
    assert done.returncode == 1
    assert done.stderr == (
        "gradclip: the command line needs matplotlib, which is not installed: pip install 'gradclip-core[cli]'\n"
    )
