"""The command line, ``gradclip``. Needs the ``cli`` extra; this module alone does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXTRA = ("matplotlib", "ml_dtypes", "rich", "safetensors", "typer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, ``sys.argv[1:]`` if it is None, and return its exit code."""
    try:
        from gradclip_core.cli.app import run

        return run(argv)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        print(
            f"gradclip: the command line needs {missing}, which is not installed: pip install 'gradclip-core[cli]'",
            file=sys.stderr,
        )
        return 1
