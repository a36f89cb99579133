"""What a backend does with arrays that have no memory for it to read: traced, lazy, or on a device without kernels.

Their framework's own operations are all that can be done with them. Nothing may branch on a value, results are new
arrays, and every number of a report is an array too. What a decision means stands in ``plan.py``; here it is
evaluated in floating-point operations whose order a compiler chooses, so results are not the reference's bits but
within a bound of them: the class ``approximate`` of the conformance suite (docs/numerics.md, "Without memory").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradclip_core.protocol import DType, IntArray, Scopes

Axes = Sequence[tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class UnitLimits:
    """Limits that come of weights (AGC): ``clipping · max(‖w_u‖, eps)`` for each unit u."""

    weights: Sequence[Any]
    """An array for each of the gradients', of the same shape, of the same framework."""
    dtypes: Sequence[tuple[DType, bool]]
    clipping: float
    eps: float


@dataclass(frozen=True, slots=True)
class Task:
    """One rule over arrays of one framework. One of three is given: ``scopes``, ``units`` or ``bounds``."""

    dtypes: Sequence[tuple[DType, bool]]
    """Of each array; True: complex."""
    axes: Axes
    """Of each array, the axes that its units extend over; None: the array is one segment."""
    rows: IntArray
    """Segments of each array."""
    ord: float
    nonfinite: str
    """``"raise"`` is asked for only where values are there: it does as ``"skip"``, and the caller raises."""
    inverse: float
    """1 / loss scale; what it is where ``loss_scale`` is given does not matter."""
    loss_scale: Any = None
    """The loss scale as a 0-d array of the framework, where only that knows it."""
    scopes: Scopes | None = None
    bound: Any = None
    """With ``scopes``, the limit of them all as a 0-d array of the framework, where nobody knows it yet."""
    units: UnitLimits | None = None
    bounds: Mapping[str, tuple[float, float]] | None = None
    """By value: low and high as each storage type holds them, by its name."""
    after: Any = None
    """Whether the rule before this one gave up: a 0-d array. Then this one leaves everything as it is."""
    mesh_axes: tuple[str, ...] = ()
    """Names of mesh axes over which the arrays are sharded, inside ``jax.shard_map``: norms are those of all shards."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a task, see ``ClipInfo``: 0-d arrays of the framework, but for ``arrays`` and the last four."""

    arrays: Sequence[Any]
    norm: Any
    clipped_norm: Any
    scale: Any
    clipped: Any
    skipped: Any
    infs: Any
    nans: Any
    overflow: Any
    written: Any
    """Whether any element of ``arrays`` is not what was given."""
    norms: Any
    """An array with an entry for each of the arrays, as are the next three."""
    scales: Any
    array_infs: Any
    array_nans: Any


class Operations(Protocol):
    """A backend's way with arrays that have no memory."""

    def not_supported_reasons(self, framework: str, device: str) -> list[str]:
        """Why arrays of a framework (its module) on a device cannot be worked on; empty where they can."""
        ...

    def clip(self, arrays: Sequence[Any], task: Task) -> Answer:
        """Measure, decide and multiply."""
        ...

    def norm(
        self, arrays: Sequence[Any], dtypes: Sequence[tuple[DType, bool]], ord: float, mesh_axes: tuple[str, ...]
    ) -> Any:
        """The norm of all arrays together, a 0-d array."""
        ...
