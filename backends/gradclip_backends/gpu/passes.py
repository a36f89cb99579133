"""The sequence of launches: read passes, the decision, the write pass. Nothing here waits for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_backends.gpu.layout import (
    BOUNDS,
    DTYPE_CODES,
    OWN_BOUNDS,
    PASS,
    RECORD,
    SANITIZE,
    SCALE,
    WARPS,
    code_of,
    state_offset,
)
from gradclip_backends.gpu.memory import Workspace
from gradclip_backends.gpu.tables import Rows, Struct
from gradclip_core.protocol import FLOAT64, Buffer

# Blocks of threads that a multiprocessor holds at a time. More only wait their turn.
BLOCKS_PER_PROCESSOR = 2
Bounds = dict[str, tuple[float, float]]


def kernels_for(ord: float, float64: bool, *, value: bool = False) -> list[str]:
    """Every kernel that a decision needs, without the suffix for its rows."""
    names = ["measure_magnitudes" if ord == 1 else "measure_squares"]
    if value:
        return [*names, "decide_value", "apply", *(["rescale"] if float64 else [])]
    if ord not in (1, 2, math.inf):
        return [*names, "powers", "decide_general", "apply"]
    if float64 and ord != math.inf:
        names += ["rescale", "ask_for_carries", "carries"]
    return [*names, "decide_norms", "apply"]


def grid(workspace: Workspace, warps: int) -> int:
    """How many blocks of threads to launch for the work of so many warps."""
    most = BLOCKS_PER_PROCESSOR * workspace.driver.processors(workspace.queue.device)
    return max(1, min(most, -(-warps // WARPS)))


def scale_of(inverse: float, loss_scale: Buffer | None) -> Struct:
    """1 / loss scale, or where the loss scale is."""
    if loss_scale is None:
        return np.array([(inverse, 0, 0, 0)], SCALE)
    return np.array([(0.0, loss_scale.pointer, code_of(loss_scale.dtype), 0)], SCALE)


class Passes:
    """The launches of one call, over one table of rows, into one record."""

    def __init__(self, workspace: Workspace, rows: Rows, record: int, scale: Struct, *, sanitize: bool) -> None:
        self.workspace = workspace
        self.rows = rows
        self.record = np.array([(record, rows.segments)], RECORD)
        self.scale = scale
        self.sanitize = sanitize

    def _launch(self, kernel: str, warps: int, *args: Any) -> None:
        name = f"{kernel}_{self.rows.suffix}"
        blocks = grid(self.workspace, warps)
        self.workspace.driver.launch(self.workspace.queue, name, blocks, (self.rows.argument, *args))

    def _pass(self, gate: int, bounds: Bounds | None = None, *, own_bounds: bool = False) -> Struct:
        told = np.zeros(1, PASS)
        told["nodes"] = self.workspace.nodes_for(self.rows.blocks)
        told["record"] = self.record
        told["gate"] = gate
        told["buffers"] = self.rows.buffers
        bounded = BOUNDS * (bounds is not None or own_bounds)
        told["options"] = SANITIZE * self.sanitize + bounded + OWN_BOUNDS * own_bounds
        told["scale"] = self.scale
        if bounds is not None:
            for dtype, code in DTYPE_CODES.items():
                told["low"][0, code], told["high"][0, code] = bounds[dtype.name]
        return told

    def flag(self, field: str) -> int:
        """The address of a field of the record's state."""
        return int(self.record["address"][0]) + state_offset(field)

    def measure(self, ord: float, *, bounds: Bounds | None = None, own_bounds: bool = False, gate: int = 0) -> None:
        """The read pass: squares, or magnitudes for ord 1. ``own_bounds``: the record holds each segment's."""
        if self.rows.blocks:
            kernel = "measure_magnitudes" if ord == 1 else "measure_squares"
            self._launch(kernel, self.rows.blocks, self._pass(gate, bounds, own_bounds=own_bounds))

    def rescale(self, power: float, *, gate: int | None = None) -> None:
        """Once more, scaled, the float64 whose squares leave float64's range, if there is any."""
        if self.rows.blocks:
            gate = self.flag("rescale") if gate is None else gate
            self._launch("rescale", self.rows.blocks, self._pass(gate), np.float64(power))

    def powers(self, power: float) -> None:
        """Once more, for a general order, in units of the largest magnitudes."""
        if self.rows.blocks:
            self._launch("powers", self.rows.blocks, self._pass(0), np.float64(power))

    def carries(self, power: float, *, gate: int | None = None) -> None:
        """Once more, for what rounding took from float64's sums, if that was asked for."""
        if self.rows.blocks:
            gate = self.flag("carry") if gate is None else gate
            self._launch("carries", self.rows.blocks, self._pass(gate), np.float64(power))

    def decide(self, kernel: str, rule: Struct) -> None:
        """The decision, or whether it needs carries."""
        if self.rows.segments:
            warps = -(-self.rows.segments // 32) if kernel == "decide_value" else int(rule["scopes"][0])
            self._launch(kernel, warps, rule)

    def apply(self, *, in_place: bool) -> None:
        """The write pass."""
        if self.rows.blocks:
            self._launch(
                "apply",
                self.rows.blocks,
                np.uint64(self.rows.blocks),
                self.record,
                np.uint32(self.rows.buffers),
                np.uint32(self.sanitize),
                np.uint32(in_place),
            )


def has_float64(buffers: Sequence[Buffer]) -> bool:
    """Whether the passes for float64 alone are to be launched."""
    return any(buffer.dtype is FLOAT64 and buffer.length for buffer in buffers)
