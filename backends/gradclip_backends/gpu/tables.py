"""From buffers to the rows that kernels read, and to a launch's first argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.gpu.driver import Queue
from gradclip_backends.gpu.layout import BLOCK, ROW, ROWS_BY_VALUE, ROWS_IN_MEMORY, code_of
from gradclip_backends.gpu.memory import Workspace
from gradclip_core.errors import BackendError
from gradclip_core.protocol import Buffer

Struct = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a call. ``suffix`` tells which of the two kinds of kernel takes ``argument``."""

    argument: Struct
    suffix: str
    buffers: int
    blocks: int
    segments: int


def rows_of(buffers: Sequence[Buffer], targets: Sequence[Buffer]) -> tuple[Struct, int, int]:
    """A row for each buffer, and how many blocks and segments there are."""
    table = np.zeros(len(buffers), ROW)
    table["pointer"] = [buffer.pointer for buffer in buffers]
    table["target"] = [buffer.pointer for buffer in targets]
    table["length"] = [buffer.length for buffer in buffers]
    table["rows"] = [buffer.rows for buffer in buffers]
    table["dtype"] = [code_of(buffer.dtype) for buffer in buffers]
    rows = table["rows"].astype(np.uint64)
    blocks = np.cumsum((table["length"] + np.uint64(BLOCK - 1)) // np.uint64(BLOCK) * rows)
    segments = np.cumsum(rows)
    table["first_block"][1:] = blocks[:-1]
    table["first_segment"][1:] = segments[:-1]
    if not len(buffers):
        return table, 0, 0
    if segments[-1] > 2**32 - 1:
        seen = f"there are {segments[-1]} units in one call, and their numbers have 32 bits"
        raise BackendError("a GPU backend", seen, "Clip fewer arrays in a call")
    return table, int(blocks[-1]), int(segments[-1])


def put_rows(workspace: Workspace, buffers: Sequence[Buffer], targets: Sequence[Buffer], use: str) -> Rows:
    """By value where the driver takes so many, otherwise in the workspace's memory. ``use`` names the table."""
    table, blocks, segments = rows_of(buffers, targets)
    if len(table) <= workspace.driver.inline_rows:
        argument = np.zeros(1, ROWS_BY_VALUE)
        argument["rows"][0, : len(table)] = table
        return Rows(argument, "inline", len(table), blocks, segments)
    argument = np.array([(workspace.table(use, table),)], ROWS_IN_MEMORY)
    return Rows(argument, "table", len(table), blocks, segments)


def queue_of(buffers: Sequence[Buffer]) -> Queue:
    """Where the work on these is put: the first one's stream."""
    first = buffers[0]
    return Queue(int(first.device.partition(":")[2] or 0), first.stream or 1)
