"""Output: with colours and frames on a terminal, plain text everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_LONGEST = 600


def console(stderr: bool = False) -> Console:
    """Made anew each time, because tests and callers replace the streams."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    # A file or a pipe has no width: wrapped or shortened cells would be lost to whoever reads it.
    return made if made.is_terminal else Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=10**6)


def clean(text: str) -> str:
    """One line of printable characters: names in files are anyone's, and terminals obey what they print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def say(text: str = "", style: str = "") -> None:
    """One line on stdout."""
    console().print(Text(clean(text), style), soft_wrap=True)


def fail(message: str) -> None:
    """One red line on stderr."""
    line = clean(message)
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    console(stderr=True).print(Text(f"error: {line}", "bold red"), soft_wrap=True)


def table(title: str, columns: Sequence[str], right: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table; ``right`` names the columns of numbers."""
    out = console()
    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.ROUNDED if out.is_terminal else None,
        pad_edge=out.is_terminal,
        header_style="bold",
        show_header=any(columns),
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(clean(cell) if isinstance(cell, str) else cell for cell in row))
    out.print(made)


def progress() -> Progress:
    """A bar that goes when it is done, on a terminal; nothing elsewhere."""
    out = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )
