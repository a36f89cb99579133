"""The loss scale: a power of two that falls at an overflow and rises after many steps without one.

Micikevicius et al. 2018, "Mixed precision training", https://arxiv.org/abs/1710.03740, section 3.2; the
semantics are those of ``torch.amp.GradScaler`` and of Keras's ``LossScaleOptimizer``.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

from gradclip_core.errors import GradClipError, InvalidArgumentError, UnsupportedArrayError, show
from gradclip_core.validate import power_of_two

_NARROW = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


class LossScaleWarning(UserWarning):
    """A dynamic loss scale is at its floor, and gradients still overflow."""


class LossScaler:
    """A loss scale S, kept a power of two: gradients of ``S·loss`` are S times the loss's, exactly.

    ``S ← max(S · backoff_factor, min_scale)`` after a step with an infinity or a NaN;
    ``S ← min(S · growth_factor, max_scale)`` after ``growth_interval`` steps in a row without.

    Parameters
    ----------
    init_scale : the first S.
    growth_factor, backoff_factor : > 1 and < 1, powers of two.
    growth_interval : steps in a row without an overflow until S grows.
    min_scale, max_scale : the floor and the ceiling of S. ``torch.amp.GradScaler`` has neither.

    The numbers default to torch's. ``LossScaler.static(S)`` never changes.

    Give it to a ``Clipper``, which unscales, looks for overflows and updates S. There is nothing
    else to call but ``scale(loss)``.

    Raises
    ------
    InvalidArgumentError
        for a number that is no power of two, or out of order with the others.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> scaler = gc.LossScaler(init_scale=1024)
    >>> clipper = gc.Clipper(gc.GlobalNorm(1.0), scaler)
    >>> loss = scaler.scale(np.float32(0.25))            # backward from this
    >>> grads = [np.array([3.0, 4.0], np.float16) * np.float16(1024)]
    >>> clipper.step_(grads).norm, scaler.get_scale()
    (5.0, 1024.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        min_scale: float = 2.0**-24,
        max_scale: float = 2.0**24,
    ) -> None:
        self.min_scale = power_of_two("LossScaler, min_scale", min_scale)
        self.max_scale = power_of_two("LossScaler, max_scale", max_scale)
        self._set_schedule(growth_factor, backoff_factor, growth_interval)
        self._scale = self._within(power_of_two("LossScaler, init_scale", init_scale), "init_scale")
        self._tracker = 0
        self.taken = 0
        """How often a loss was scaled."""
        self.last_taken = self._scale
        """With which S, the last time."""
        self._found: dict[int, bool] = {}
        """Of each Clipper that has measured since the last update: whether it met an overflow."""
        self._clippers: list[weakref.ref[object]] = []

    @classmethod
    def static(cls, scale: float) -> LossScaler:
        """A scale that stays: overflows are looked for all the same, and their steps skipped."""
        checked = power_of_two("LossScaler.static, scale", scale)
        scaler = cls(checked, min_scale=checked, max_scale=checked)
        scaler.growth_factor = scaler.backoff_factor = 1.0
        return scaler

    def _set_schedule(self, growth_factor: float, backoff_factor: float, growth_interval: int) -> None:
        self.growth_factor = power_of_two("LossScaler, growth_factor", growth_factor)
        self.backoff_factor = power_of_two("LossScaler, backoff_factor", backoff_factor)
        fixed = self.growth_factor == self.backoff_factor == 1.0
        if not fixed and not self.backoff_factor < 1 < self.growth_factor:
            raise InvalidArgumentError(
                f"LossScaler(growth_factor={growth_factor!r}, backoff_factor={backoff_factor!r})",
                "the scale would not grow and fall",
                "Pass growth_factor > 1 > backoff_factor, or use LossScaler.static(scale)",
            )
        if isinstance(growth_interval, bool) or not isinstance(growth_interval, int) or growth_interval < 1:
            raise InvalidArgumentError(
                f"LossScaler, growth_interval={show(growth_interval)}",
                "it is no number of steps",
                "Pass an integer >= 1",
            )
        self.growth_interval = growth_interval

    def _within(self, scale: float, name: str) -> float:
        if not self.min_scale <= scale <= self.max_scale:
            raise InvalidArgumentError(
                f"LossScaler, {name}={scale!r}",
                f"it is not between min_scale={self.min_scale!r} and max_scale={self.max_scale!r}",
                "Move the scale, or make the LossScaler with another min_scale or max_scale",
            )
        return scale

    @property
    def dynamic(self) -> bool:
        """Whether the scale ever changes."""
        return self.growth_factor != 1.0

    def get_scale(self) -> float:
        """S, as it is now."""
        return self._scale

    def scale(self, loss: Any) -> Any:
        """``loss · S``, for the backward pass to start from. Lists and tuples, element by element.

        Any framework's scalar or array, or a number; differentiable where the framework is. A
        16-bit loss is made float32 first, as S times it would overflow.

        Raises
        ------
        UnsupportedArrayError
            for a JAX tracer: S would be compiled in as a constant. Pass ``take_scale()`` into the
            traced function as an argument, and multiply there.
        """
        if isinstance(loss, (list, tuple)):
            parts = [scaled_loss(part, self._scale) for part in loss]
            self.take_scale()
            return type(loss)(*parts) if hasattr(loss, "_fields") else type(loss)(parts)
        result = scaled_loss(loss, self._scale)
        self.take_scale()
        return result

    def take_scale(self) -> float:
        """S, for a loss that is multiplied with it elsewhere, such as inside a jitted function."""
        self.taken += 1
        self.last_taken = self._scale
        return self._scale

    def update(self) -> None:
        """S for the next iteration. A Clipper calls it; with several under one scaler, call it once, last.

        Raises
        ------
        GradClipError
            where no Clipper has measured gradients since the last update.
        """
        if not self._found:
            raise GradClipError(
                "LossScaler.update",
                "no Clipper has measured gradients since the last update",
                "A Clipper updates its scaler itself in step_. With update=False, call step_ for each first",
            )
        overflowed = any(self._found.values())
        self._found = {}
        if not self.dynamic:
            return
        if overflowed:
            self._tracker = 0
            if self._scale <= self.min_scale:
                warnings.warn(
                    f"gradients overflow although the loss scale is at its floor, {self.min_scale:g}: "
                    "they are infinite or NaN for another reason, or min_scale is too high",
                    LossScaleWarning,
                    stacklevel=3,
                )
            self._scale = max(self._scale * self.backoff_factor, self.min_scale)
            return
        self._tracker += 1
        if self._tracker == self.growth_interval:
            self._tracker = 0
            self._scale = min(self._scale * self.growth_factor, self.max_scale)

    def state_dict(self) -> dict[str, float]:
        """What resumes the schedule: numbers, with the keys of ``torch.amp.GradScaler.state_dict()`` and two more."""
        return {
            "scale": self._scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self._tracker,
            "min_scale": self.min_scale,
            "max_scale": self.max_scale,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resume from ``state_dict()``, ours or that of a ``torch.amp.GradScaler``. Nothing changes at an error."""
        if not isinstance(state, Mapping):
            raise InvalidArgumentError(
                f"LossScaler.load_state_dict({show(state)})", "it is no mapping", "Pass what state_dict() returned"
            )
        if missing := [key for key in _KEYS if key not in state]:
            raise InvalidArgumentError(
                "LossScaler.load_state_dict",
                f"there is no {', '.join(map(repr, missing))} in it",
                "Pass what state_dict() of a LossScaler or of an enabled torch.amp.GradScaler returned",
            )
        fresh = LossScaler.__new__(LossScaler)
        fresh.min_scale = power_of_two("load_state_dict, min_scale", state.get("min_scale", self.min_scale))
        fresh.max_scale = power_of_two("load_state_dict, max_scale", state.get("max_scale", self.max_scale))
        fresh._set_schedule(state["growth_factor"], state["backoff_factor"], int(state["growth_interval"]))
        scale = fresh._within(power_of_two("load_state_dict, scale", state["scale"]), "scale")
        tracker = state["_growth_tracker"]
        if not 0 <= tracker < fresh.growth_interval or int(tracker) != tracker:
            raise InvalidArgumentError(
                f"load_state_dict, _growth_tracker={show(tracker)}",
                f"it does not count steps of an interval of {fresh.growth_interval}",
                "Pass what state_dict() returned, unchanged",
            )
        self.min_scale, self.max_scale = fresh.min_scale, fresh.max_scale
        self.growth_factor, self.backoff_factor = fresh.growth_factor, fresh.backoff_factor
        self.growth_interval, self._scale, self._tracker = fresh.growth_interval, scale, int(tracker)
        self._found = {}

    def __repr__(self) -> str:
        if not self.dynamic:
            return f"LossScaler.static({self._scale!r})"
        return (
            f"LossScaler({self._scale!r}, growth_factor={self.growth_factor!r}, "
            f"backoff_factor={self.backoff_factor!r}, growth_interval={self.growth_interval!r})"
        )

    # ---- for Clipper ----------------------------------------------------------------------------

    def join(self, clipper: object, updates: bool) -> None:
        """A Clipper unscales by this from now on. Of several, none may update it by itself."""
        self._clippers = [ref for ref in self._clippers if ref() is not None]
        others = [getattr(ref(), "updates", False) for ref in self._clippers]
        if others and (updates or any(others)):
            raise InvalidArgumentError(
                "Clipper, loss_scaler",
                "another Clipper unscales by this scaler too, and the first of them to step would change the scale "
                "before the other has used it",
                "Pass update=False to each of them, and call loss_scaler.update() once, after all have stepped",
            )
        self._clippers.append(weakref.ref(clipper))

    def has_heard(self, clipper: object) -> bool:
        """Whether a Clipper has measured since the last update."""
        return id(clipper) in self._found

    def forget(self, clipper: object) -> None:
        """As if it had not measured."""
        self._found.pop(id(clipper), None)

    def record(self, clipper: object, overflowed: bool) -> None:
        """What a Clipper has met."""
        self._found[id(clipper)] = overflowed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clippers": [], "_found": {}}  # a copy has its own


def scaled_loss(loss: Any, scale: float) -> Any:
    """``loss · scale`` in at least float32."""
    if isinstance(loss, (bool, str, bytes)) or loss is None or "bool" in str(getattr(loss, "dtype", "")):
        raise UnsupportedArrayError(
            "LossScaler.scale", f"a {type(loss).__name__} is no loss", "Pass the loss: a number or an array"
        )
    kind = type(loss)
    if "jax" in sys.modules and issubclass(kind, sys.modules["jax"].core.Tracer):
        raise UnsupportedArrayError(
            "LossScaler.scale",
            "the loss is a JAX tracer, and the scale would be compiled in as a constant",
            "Pass scaler.take_scale() to the traced function as an argument, and multiply the loss there",
        )
    dtype = str(getattr(loss, "dtype", "")).removeprefix("torch.")
    if dtype.startswith(_NARROW) or "'float16'" in dtype or "'bfloat16'" in dtype:
        loss = _as_float32(loss)
    try:
        return loss * scale
    except TypeError as error:
        raise UnsupportedArrayError(
            "LossScaler.scale", f"a {kind.__module__}.{kind.__name__} cannot be multiplied ({error})", "Pass the loss"
        ) from error


def _as_float32(loss: Any) -> Any:
    if hasattr(loss, "astype"):
        return loss.astype("float32")
    if hasattr(loss, "float"):  # torch, differentiable
        return loss.float()
    tensorflow = sys.modules.get("tensorflow")
    return loss if tensorflow is None else tensorflow.cast(loss, "float32")
