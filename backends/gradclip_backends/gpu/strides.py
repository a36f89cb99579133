"""Arrays on the device that do not fill their memory: packed before the passes, put back after them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gradclip_backends.gpu.answers import GpuAnswer
from gradclip_backends.gpu.layout import MOST_AXES, RECORD, STRIDED, THREADS
from gradclip_backends.gpu.memory import Workspace
from gradclip_backends.gpu.passes import grid
from gradclip_backends.gpu.tables import Struct
from gradclip_core.device import Strided
from gradclip_core.errors import BackendError
from gradclip_core.protocol import Buffer


def gather(workspace: Workspace, strided: Strided) -> Buffer:
    """A dense copy, in memory of its own."""
    count = math.prod(strided.shape)
    memory = workspace.driver.allocate(workspace.queue, count * strided.itemsize)
    told = _told(strided, memory.pointer)
    workspace.driver.launch(workspace.queue, "gather", _grid(workspace, count), (told,))
    return dataclasses.replace(strided.like, pointer=memory.pointer, owner=memory, lent=False)


def scatter(workspace: Workspace, packed: Buffer, strided: Strided, answer: GpuAnswer | None, first: int) -> None:
    """Back, where the answer is not to leave the array alone. Without an answer always."""
    told = _told(strided, packed.pointer)
    record = np.zeros(1, RECORD)
    if answer is not None:
        record[0] = (answer.lease.address, answer.segments)
    segments = packed.rows if answer is not None else 0
    arguments = (told, record, np.uint64(first), np.uint64(segments))
    workspace.driver.launch(workspace.queue, "scatter", _grid(workspace, math.prod(strided.shape)), arguments)


def _grid(workspace: Workspace, count: int) -> int:
    return grid(workspace, -(-count // THREADS) * (THREADS // 32))


def _told(strided: Strided, dense: int) -> Struct:
    # Axes of one element have no stride that matters.
    axes = [(n, s) for n, s in zip(strided.shape, strided.strides, strict=True) if n != 1]
    # Items move as words of a size that they are all aligned to: half of a complex number, or less.
    word = math.gcd(8, strided.itemsize, strided.pointer, *(abs(stride) for _, stride in axes))
    if word < strided.itemsize:
        axes.append((strided.itemsize // word, word))
    if len(axes) > MOST_AXES:
        seen = f"an array has {len(strided.shape)} axes, and {MOST_AXES - 1} are the most here"
        raise BackendError("a GPU backend", seen, "Reshape it, or pass a contiguous copy")
    told = np.zeros(1, STRIDED)
    told["strided"], told["dense"] = strided.pointer, dense
    told["count"] = math.prod(extent for extent, _ in axes)
    for axis, (extent, stride) in enumerate(axes):
        told["shape"][0, axis], told["strides"][0, axis] = extent, stride
    told["axes"], told["itemsize"] = len(axes), word
    return told
