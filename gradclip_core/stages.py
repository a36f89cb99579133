"""A rule's view of the arrays, before any value was read: everything that can be refused is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.plan import Segments, stored_limits
from gradclip_core.protocol import FloatArray, IntArray, Scopes
from gradclip_core.rules import NormRule, Rule, Site, Value, WeightArrays
from gradclip_core.validate import How


@dataclass(frozen=True, slots=True)
class Stage:
    """One rule of a chain. A norm rule has ``scopes``, or ``weights`` that its scopes' limits come of."""

    rule: Rule
    axes: list[tuple[int, ...] | None]
    rows: IntArray
    """Segments of each array."""
    scopes: Scopes | None
    weights: WeightArrays | None
    inverse: float
    device_scale: Any
    """The loss scale, where only the device knows it: ``inverse`` means nothing then."""
    nonfinite: str

    @property
    def sanitize(self) -> bool:
        """Whether infinities and NaNs are replaced before anything is summed."""
        return self.nonfinite == "sanitize"

    @property
    def limit(self) -> tuple[float, float]:
        """Low and high of a by-value rule."""
        assert isinstance(self.rule, Value)
        limit = self.rule.limit
        assert isinstance(limit, tuple)
        return limit

    def bounds(self, segments: Segments) -> tuple[FloatArray, FloatArray] | None:
        """For (low, high) that are not symmetric, the largest magnitude does not tell who is outside."""
        if not isinstance(self.rule, Value) or self.limit[0] == -self.limit[1]:
            return None
        low, high = stored_limits(self.limit, segments.dtypes)
        return low / self.inverse, high / self.inverse


def prepare(cargo: Cargo, rule: Rule, how: How) -> list[Stage]:
    """The stages of a rule. The loss scale and the policy belong to the first."""
    site = Site(cargo)
    stages = []
    for number, part in enumerate(rule.stages):
        axes = part.unit_axes(site)
        if axes is None:
            axes, rows = [None] * len(cargo.arrays), np.ones(len(cargo.arrays), np.int64)
        else:
            rows = np.array([_rows(shape, a) for shape, a in zip(site.shapes, axes, strict=True)], np.int64)
        weights = part.weights(site) if isinstance(part, NormRule) else None
        scopes = part.scopes(site, rows) if isinstance(part, NormRule) and weights is None else None
        inverse, device_scale, nonfinite = 1.0, None, "propagate"
        if number == 0:
            inverse, device_scale, nonfinite = how.inverse_scale, how.device_scale, how.nonfinite
        stages.append(Stage(part, axes, rows, scopes, weights, inverse, device_scale, nonfinite))
    return stages


def refuse_complex(cargo: Cargo, asked: str, rule: Rule) -> None:
    """Complex numbers have a 2-norm, that of their parts, and no order: no other rule means anything."""
    if all(isinstance(stage, NormRule) and stage.order == 2 for stage in rule.stages):
        return
    for i, docked in enumerate(cargo.arrays):
        if docked.is_complex:
            raise UnsupportedArrayError(
                f"{asked}, array '{cargo.first_path(i)}'",
                "it is complex, and complex numbers have no order and no norm but that with ord=2",
                "Clip by a norm with ord=2, or pass its real and imaginary parts",
            )


def _rows(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> int:
    if axes is None or len(axes) == len(shape):
        return 1
    return int(np.prod([n for axis, n in enumerate(shape) if axis not in axes], dtype=np.int64))
