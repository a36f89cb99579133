"""The kernels' sources, a text for each ``.cu`` file, with its headers written out in it.

CuPy keeps what it has compiled under a hash of the text that it is given. Headers that it would
include itself are not in that hash, and a changed one would go unnoticed.
"""

from __future__ import annotations

import functools
import re
from importlib import resources

# Every kernel's file, by the kernel's name without the suffix for its rows.
FILES = {
    "apply": "apply.cu",
    "ask_for_carries": "decide.cu",
    "carries": "carries.cu",
    "decide_general": "general.cu",
    "decide_norms": "decide.cu",
    "decide_value": "decide.cu",
    "gather": "strides.cu",
    "measure_magnitudes": "measure.cu",
    "measure_squares": "measure.cu",
    "powers": "general.cu",
    "rescale": "rescale.cu",
    "scatter": "strides.cu",
    "store_chunk": "tables.cu",
    "store_large_chunk": "tables.cu",
}
OPTIONS = ("-std=c++17", "--fmad=false")
"""No fused multiply-add but where the source says so: fusing changes bits."""

_INCLUDE = re.compile(r'#include "([a-z_]+\.cuh)"')


def file_of(kernel: str) -> str:
    """The file that a kernel is in."""
    return FILES[kernel.removesuffix("_inline").removesuffix("_table")]


@functools.cache
def source(file: str) -> str:
    """One text: each header where it is first included, with ``#line`` for the compiler's messages."""
    return "\n".join(_written_out(file, set())) + "\n"


def _written_out(file: str, seen: set[str]) -> list[str]:
    lines = [f'#line 1 "{file}"']
    text = (resources.files(__package__) / "kernels" / file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        include = _INCLUDE.fullmatch(line.strip())
        if include and include[1] not in seen:
            seen.add(include[1])
            lines += [*_written_out(include[1], seen), f'#line {number + 1} "{file}"']
        else:
            lines.append("" if include or line.startswith("#pragma once") else line)
    return lines
