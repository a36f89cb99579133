"""The commands, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import gradclip_core
from gradclip_core.cli import bench, check, clip, demo, info
from gradclip_core.cli.console import fail
from gradclip_core.errors import GradClipError


def build() -> typer.Typer:
    """The application. Help and usage errors have frames and colours on a terminal only."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for module in (demo, clip, info, check, bench):
        app.command()(module.command)
        app.registered_commands[-1].name = module.__name__.rpartition(".")[2]
    return app


def run(argv: Sequence[str] | None) -> int:
    """Parse, run, and turn every error that is not ours to fix into one line."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding cannot show is no reason to fail.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        build()(args=list(sys.argv[1:] if argv is None else argv), prog_name="gradclip")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except GradClipError as error:
        fail(str(error))
        return 1
    except MemoryError:
        fail("the machine's memory does not suffice. Nothing was written")
        return 1
    return 0


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Gradient clipping: exact, fast, the same bits on every backend."""
    if version:
        typer.echo(f"gradclip-core {gradclip_core.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
