"""A rule's view of the arrays, before any value was read: everything that can be refused is refused here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.frameworks import door_of
from gradclip_core.errors import InvalidArgumentError, UnsupportedArrayError, show
from gradclip_core.plan import Segments, stored_limits
from gradclip_core.project import Project
from gradclip_core.protocol import FLOAT64, FloatArray, IntArray, Scopes
from gradclip_core.rules import NormRule, Rule, Site, Value, WeightArrays
from gradclip_core.validate import How, is_symbol


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
    shifts: IntArray
    """For each segment the exponent of the array scale that it, and what becomes of it, is multiplied with."""

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
        low, high = stored_limits(self.limit, segments)
        return low / self.inverse, high / self.inverse


def prepare(cargo: Cargo, rule: Rule, how: How) -> list[Stage]:
    """The stages of a rule. The loss scale and the policy belong to the first."""
    site = Site(cargo)
    exponents = _exponents(cargo, site, rule, how)
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
        stages.append(
            Stage(part, axes, rows, scopes, weights, inverse, device_scale, nonfinite, np.repeat(exponents, rows))
        )
    return stages


def traced_number(rule: Rule, how: How) -> Docked | None:
    """A bound or a loss scale that has no value yet, inside a framework's compiler."""
    bounds = [getattr(part, "traced_bound", None) for part in rule.stages]
    for value in (*bounds, how.device_scale):
        if value is not None and is_symbol(value):
            door: Any = door_of(value)
            return Docked(value, door, 0, (), (), FLOAT64, device=f"symbolic:{door.name}", memory=False)
    return None


def _exponents(cargo: Cargo, site: Site, rule: Rule, how: How) -> IntArray:
    """For each array the exponent of its scale."""
    found = np.zeros(len(cargo.arrays), np.int64)
    if not how.array_scales:
        return found
    if not all(isinstance(part, NormRule) for part in rule.stages) or len(rule.stages) != 1:
        raise InvalidArgumentError(
            f"array_scales with {show(rule)}",
            "only rules that multiply by one factor leave a scaled array scaled",
            "Clip by a norm; or clip into float32 first, with out= and a norm rule, and by the other rule then",
        )
    for path, scale in how.array_scales.items():
        if path not in site.paths:
            raise InvalidArgumentError(
                f"array_scales[{path!r}]",
                "there is no array of that path",
                f"The paths are {', '.join(site.paths[:8])}",
            )
        array = site.paths.index(path)
        if cargo.arrays[array].dtype is FLOAT64:
            raise InvalidArgumentError(f"array_scales[{path!r}]", "it is float64", "Scale arrays of narrow types alone")
        found[array] = math.frexp(scale)[1] - 1
    if cargo.device != "cpu":
        raise InvalidArgumentError(
            "array_scales", f"the arrays are on {cargo.device}", "Scales of single arrays are for host memory"
        )
    return found


def refuse_complex(cargo: Cargo, asked: str, rule: Rule) -> None:
    """Complex numbers have a 2-norm, that of their parts, and no order: no other rule means anything."""
    if all(isinstance(stage, NormRule) and stage.order == 2 for stage in rule.stages):
        return
    for i, docked in enumerate(cargo.arrays if cargo.manifest is None else ()):
        if docked.is_complex:
            seen = "it is complex, and complex numbers have no order and no norm but that with ord=2"
            cure = "Clip by a norm with ord=2, or pass its real and imaginary parts"
            if any(isinstance(stage, Project) for stage in rule.stages):
                seen = "it is complex, and projections other than on L2Ball are for real arrays"
                cure = "Project it on L2Ball, or pass its real and imaginary parts"
            raise UnsupportedArrayError(f"{asked}, array '{cargo.first_path(i)}'", seen, cure)


def _rows(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> int:
    if axes is None or len(axes) == len(shape):
        return 1
    return math.prod(n for axis, n in enumerate(shape) if axis not in axes)
