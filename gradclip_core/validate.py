"""The arguments that all functions share, checked once, with the sentence for each mistake.

Numbers are looked at by comparisons alone: those ``torch.compile`` can follow, where a number is a symbol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.precision.nonfinite import POLICIES, UNDERFLOW_POLICIES
from gradclip_core.tracing import in_graph, leave_graph


def number(name: str, value: Any, cure: str) -> float:
    """``value`` as a float; anything that holds exactly one real number will do."""
    if isinstance(value, (bool, np.bool_, str, bytes, bytearray)) or value is None:
        raise InvalidArgumentError(f"{name}={show(value)}", f"a {type(value).__name__} is no number", cure)
    if not isinstance(value, (float, int)) and in_graph():
        leave_graph(f"{name} is a {type(value).__name__}, whose value is not known in a graph: pass a number.")
    if not isinstance(value, (float, int)) and getattr(value, "ndim", None):
        raise InvalidArgumentError(f"{name}={show(value)}", f"it is an array of shape {tuple(value.shape)}", cure)
    if is_symbol(value):
        # Some of them can be read as numbers, and a derivative by them, or another value later, would be lost.
        seen = "it is traced: what stands in its place is known when the function runs"
        raise InvalidArgumentError(f"{name}, a {type(value).__name__}", seen, f"{cure}, known while it is traced")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        seen = f"a {type(value).__name__} cannot be read as one number ({error})"
        raise InvalidArgumentError(f"{name}={show(value)}", seen, cure) from error


def threshold(name: str, value: Any, *, traced: bool = False) -> float:
    """A norm's bound: finite and not negative. 0 is allowed, and gives zeros. ``traced``: or nobody knows it yet."""
    if traced and is_symbol(value):
        return one_symbol(name, value)  # type: ignore[no-any-return]  # who measures by it asks what it is
    cure = "Pass a finite number > 0 (0 sets every gradient to zero)"
    bound = number(name, value, cure)
    if bound != bound:
        raise InvalidArgumentError(f"{name}={show(value)}", "it is NaN, and no gradient is within NaN", cure)
    if bound < 0:
        seen = "no gradient is within a negative bound, and a factor of it would flip the sign of every element"
        raise InvalidArgumentError(f"{name}={show(value)}", seen, cure)
    if bound == math.inf:
        seen = "an infinite bound clips nothing"
        raise InvalidArgumentError(f"{name}={show(value)}", seen, f"{cure}; to measure only, call global_norm")
    return bound + 0.0  # -0.0 is 0


def positive(name: str, value: Any) -> float:
    """Finite and > 0."""
    cure = "Pass a finite number > 0"
    checked = number(name, value, cure)
    if not 0 < checked < math.inf:
        raise InvalidArgumentError(f"{name}={show(value)}", "it is not a finite number > 0", cure)
    return checked


def power_of_two(name: str, value: Any) -> float:
    """A power of two that float32 holds, and its reciprocal."""
    checked = positive(name, value)
    if math.frexp(checked)[0] != 0.5 or not 2.0**-126 <= checked <= 2.0**126:
        seen = "it is no power of two between 2^-126 and 2^126"
        raise InvalidArgumentError(f"{name}={show(value)}", seen, "Pass a power of two, so that unscaling is exact")
    return checked


def order(value: Any) -> float:
    """The ``ord`` of a norm: 1 ≤ p ≤ inf."""
    cure = "Pass 1, 2, math.inf, or any p >= 1"
    ord = number("ord", value, cure)
    if not ord >= 1:
        raise InvalidArgumentError(
            f"ord={show(value)}", "below 1 there is no norm (the triangle inequality fails)", cure
        )
    return ord


def interval(limit: Any, name: str = "limit") -> tuple[float, float]:
    """``limit`` v as (-v, v), or (low, high) as it is."""
    cure = "Pass a finite v >= 0 for [-v, v], or (low, high) with low <= high, one of which may be infinite"
    if not (isinstance(limit, (tuple, list)) and len(limit) == 2):
        if isinstance(limit, (tuple, list)):
            raise InvalidArgumentError(f"{name}={show(limit)}", f"it has {len(limit)} entries", cure)
        bound = number(name, limit, cure)
        if not 0 <= bound < math.inf:
            raise InvalidArgumentError(f"{name}={show(limit)}", "[-v, v] is empty or endless for such a v", cure)
        return -bound, bound + 0.0
    low, high = number(f"{name}[0]", limit[0], cure), number(f"{name}[1]", limit[1], cure)
    if not low <= high:
        raise InvalidArgumentError(f"{name}={show(limit)}", "low is not <= high", cure)
    if low == math.inf or high == -math.inf or (low, high) == (-math.inf, math.inf):
        raise InvalidArgumentError(f"{name}={show(limit)}", "no finite number is left, or none is cut off", cure)
    return low, high


def mapping_or_number(name: str, value: Any) -> float | dict[Any, float]:
    """One threshold, or one for each group."""
    if isinstance(value, Mapping):
        # None: measured, and left alone.
        return {
            group: math.inf if bound is None else threshold(f"{name}[{group!r}]", bound)
            for group, bound in value.items()
        }
    return threshold(name, value)


_HOST_MEMORY = (1, 3, 11)  # DLPack's kinds of it: plain, and what CUDA and ROCm have pinned


def on_device(value: Any) -> bool:
    """Whether a value is an array in a device's memory."""
    if isinstance(value, (float, int)) or not hasattr(type(value), "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) not in _HOST_MEMORY
    except Exception:  # tracers, freed arrays: whoever reads the value says what is wrong with it
        return False


def is_symbol(value: Any) -> bool:
    """Whether a value is an array that has no values yet, inside a framework's compiler."""
    if isinstance(value, (float, int, np.ndarray, np.generic)) or in_graph():
        return False
    from gradclip_core.arrays.frameworks import door_of

    traced = getattr(door_of(value), "traced", None)
    return traced is not None and bool(traced(value))


def one_symbol(name: str, value: Any) -> Any:
    """Such an array, if it will be one number."""
    if len(value.shape):
        seen = f"it is an array of shape {tuple(value.shape)}"
        raise InvalidArgumentError(f"{name}, a {type(value).__name__}", seen, "Pass one number, as a 0-d array")
    return value


# What other libraries call it.
_ELSEWHERE = {
    "clip_norm": "The bound is called max_norm here",
    "clip_value": "The bound is called limit here",
    "error_if_nonfinite": "Here nonfinite='raise' is the default, and 'propagate' is torch's",
    "out": "clip(grads, rule, out=...) has it",
    "norm_type": "The order of the norm is called ord here",
}


class Common(TypedDict, total=False):
    """The keywords that every public function takes."""

    loss_scale: float
    nonfinite: str
    backend: str | None
    underflow: str
    array_scales: Mapping[str, float]
    mesh_axes: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class How:
    """What every function takes by keyword, see ``Common``."""

    loss_scale: Any = 1.0
    nonfinite: str = "raise"
    backend: str | None = None
    underflow: str = "ignore"
    array_scales: Mapping[str, float] = field(default_factory=dict)
    mesh_axes: Any = ()
    device_scale: Any = field(default=None, init=False)
    """The loss scale, where it is a number in a device's memory; ``loss_scale`` is 1 then."""

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> How:
        """From the keywords that a public function did not name itself."""
        if unknown := sorted(set(keywords) - set(Common.__annotations__)):
            cure = f"The common arguments are {', '.join(Common.__annotations__)}"
            cure = _ELSEWHERE.get(unknown[0], cure)
            raise InvalidArgumentError(f"{unknown[0]}={show(keywords[unknown[0]])}", "there is no such argument", cure)
        return cls(**keywords)

    def __post_init__(self) -> None:
        symbol = is_symbol(self.loss_scale)
        if symbol or on_device(self.loss_scale):
            # Only the device knows it, or nobody yet, and is asked there: reading it here would wait for it.
            scale = one_symbol("loss_scale", self.loss_scale) if symbol else self.loss_scale
            object.__setattr__(self, "device_scale", scale)
            object.__setattr__(self, "loss_scale", 1.0)
        if callable(getattr(self.loss_scale, "get_scale", None)):
            raise InvalidArgumentError(
                f"loss_scale={show(self.loss_scale)}",
                f"a {type(self.loss_scale).__name__} is more than a number: it has to be updated, and steps skipped",
                "Use Clipper(rule, loss_scaler), or pass loss_scale=scaler.get_scale() and do both yourself",
            )
        scale = positive("loss_scale", self.loss_scale)
        # 1/loss_scale has to be a normal float64, or unscaling would lose bits.
        if not 2.0**-1022 <= scale <= 2.0**1022:
            raise InvalidArgumentError(
                f"loss_scale={show(self.loss_scale)}",
                "its reciprocal is no normal float64",
                "Pass the scale that the loss was multiplied with",
            )
        object.__setattr__(self, "loss_scale", scale)
        if not isinstance(self.nonfinite, str) or self.nonfinite not in POLICIES:
            raise InvalidArgumentError(
                f"nonfinite={show(self.nonfinite)}", "there is no such policy", f"Pass one of {', '.join(POLICIES)}"
            )
        if not isinstance(self.underflow, str) or self.underflow not in UNDERFLOW_POLICIES:
            raise InvalidArgumentError(
                f"underflow={show(self.underflow)}",
                "there is no such policy",
                f"Pass one of {', '.join(UNDERFLOW_POLICIES)}",
            )
        if not isinstance(self.array_scales, Mapping):
            raise InvalidArgumentError(
                f"array_scales={show(self.array_scales)}", "it is no mapping", "Pass {path: power of two}"
            )
        for path, scale_of in self.array_scales.items():
            power_of_two(f"array_scales[{path!r}]", scale_of)
        axes = (self.mesh_axes,) if isinstance(self.mesh_axes, str) else self.mesh_axes
        if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, str) for axis in axes):
            raise InvalidArgumentError(
                f"mesh_axes={show(self.mesh_axes)}", "it names no axes of a mesh", "Pass a name, or a tuple of names"
            )
        object.__setattr__(self, "mesh_axes", tuple(dict.fromkeys(axes)))
        if self.backend is not None and not isinstance(self.backend, str):
            raise InvalidArgumentError(
                f"backend={show(self.backend)}", "it is no name", "Pass a name from the registry, or None"
            )

    def refuse_mesh_axes(self, asked: str) -> None:
        """Raise where mesh axes are named and the arrays are in memory."""
        if self.mesh_axes:
            raise InvalidArgumentError(
                f"{asked}, mesh_axes={show(self.mesh_axes)}",
                "there are no mesh axes here: the arrays are concrete, not shards inside jax.shard_map",
                "Leave it out; of a sharded array all is measured",
            )

    def known_on_host(self) -> How:
        """The same, with a loss scale that is on a device read from there."""
        if self.device_scale is None:
            return self
        return How(float(self.device_scale), self.nonfinite, self.backend, self.underflow, self.array_scales)

    @property
    def inverse_scale(self) -> float:
        """What unscales: 1/loss_scale."""
        return 1.0 / float(self.loss_scale)
