"""Rows in a CSV file, each with its date, commit, machine and versions. One schema for every benchmark."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from gradclip_core.cli.bench_machine import machine, versions
from gradclip_core.cli.bench_timing import Row

_DIGITS = 4
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Context:
    """When, of what, and where."""

    date: str
    commit: str
    machine: str
    versions: str

    @classmethod
    def now(cls, commit: str) -> Context:
        """Of the machine that it runs on, today."""
        return cls(datetime.date.today().isoformat(), commit, machine(), versions())


FIELDS = [field.name for kind in (Context, Row) for field in dataclasses.fields(kind)]


def write(file: TextIO, context: Context, rows: Sequence[Row], header: bool = True) -> None:
    """Append to an open file."""
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        shown = {key: _shown(value) for key, value in dataclasses.asdict(row).items()}
        writer.writerow({**dataclasses.asdict(context), **shown})


def read(path: Path) -> list[tuple[Context, Row]]:
    """Everything that is in a file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(_of(Context, line), _of(Row, line)) for line in csv.DictReader(file)]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{_DIGITS}g}"
    return str(value)


def _of(kind: type[Kind], line: dict[str, str]) -> Kind:
    """Annotations are strings here, and name what the text of a cell is made into."""
    make: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": lambda text: float(text or "nan")}
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{field.name: make[field.type](line[field.name]) for field in fields})
