"""A ``torch.amp.GradScaler`` in place of our scaler: its scale is read, and it is told what was found.

Its ``step`` and ``update`` go by a record that ``unscale_`` leaves for each optimizer: that the
gradients are unscaled, and whether there was an infinity. Here the record is left by us, after
one pass that unscaled and clipped. It is private to torch; what it is made of is looked for, and
its absence said, before any gradient is touched (seen in torch 2.13).
"""

from __future__ import annotations

import sys
from typing import Any

from gradclip_core.errors import BackendError, GradClipError, InvalidArgumentError
from gradclip_core.validate import on_device


def is_grad_scaler(scaler: Any) -> bool:
    """Whether it is torch's, by its methods; torch is not imported for it."""
    return all(callable(getattr(scaler, name, None)) for name in ("scale", "unscale_", "step", "update", "is_enabled"))


class GradScalerDoor:
    """One GradScaler, as a Clipper needs it."""

    def __init__(self, scaler: Any) -> None:
        known = sys.modules["torch"].amp.GradScaler if "torch" in sys.modules else None
        if known is not None and isinstance(scaler, known) and type(scaler).unscale_ is not known.unscale_:
            raise BackendError(
                f"Clipper, loss_scaler, a {type(scaler).__name__}",
                "its unscale_ is its own: FSDP's agrees with the other ranks on what was found",
                "Let it unscale, scaler.unscale_(optimizer), and clip without a loss scaler",
            )
        self._scaler = scaler

    @property
    def enabled(self) -> bool:
        """A disabled one scales nothing."""
        return bool(self._scaler.is_enabled())

    def holds_scaled(self, optimizer: Any) -> bool:
        """Whether new gradients of this optimizer's would be scaled, and its record says that nobody unscaled them."""
        if self._scaler._scale is None:
            return False
        ready = sys.modules["torch"].amp.grad_scaler.OptState.READY
        return bool(self._record("optimizer.step", optimizer)["stage"] is ready)

    def open(self, asked: str, optimizer: Any) -> Any:
        """The scale that this optimizer's gradients have, on whatever device it is; refused where it is used up."""
        states = sys.modules["torch"].amp.grad_scaler.OptState
        record = self._record(asked, optimizer)
        if record["stage"] is states.UNSCALED:
            raise GradClipError(
                asked,
                "this optimizer's gradients have been unscaled already since the last scaler.update()",
                "Call it once for each step, in place of scaler.unscale_(optimizer), not after it",
            )
        if record["stage"] is states.STEPPED:
            raise GradClipError(
                asked,
                "scaler.step(optimizer) has been called since the last scaler.update()",
                "Clip between backward() and scaler.step(optimizer), and call scaler.update() at the end",
            )
        scale = self._scaler._scale
        if scale is None:
            raise GradClipError(asked, "no loss has been scaled yet", "Call scaler.scale(loss).backward() before it")
        return scale if on_device(scale) else float(scale)

    def close(self, asked: str, optimizer: Any, overflowed: bool) -> None:
        """Leave the record that ``unscale_`` would have left."""
        torch = sys.modules["torch"]
        record = self._record(asked, optimizer)
        devices = {p.grad.device for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        found = {device: torch.full((), float(overflowed), dtype=torch.float32, device=device) for device in devices}
        record["found_inf_per_device"] = found
        record["stage"] = torch.amp.grad_scaler.OptState.UNSCALED

    def _record(self, asked: str, optimizer: Any) -> Any:
        if optimizer is None:
            raise InvalidArgumentError(
                f"{asked}, optimizer=None",
                "a GradScaler keeps its record by optimizer",
                "Pass it: Clipper(rule, scaler, params=optimizer), or step_(grads, optimizer=optimizer)",
            )
        try:
            record = self._scaler._per_optimizer_states[id(optimizer)]
            _ = record["stage"], self._scaler._scale, sys.modules["torch"].amp.grad_scaler.OptState.UNSCALED
        except (AttributeError, KeyError, TypeError) as error:
            raise BackendError(
                asked,
                f"this version's GradScaler keeps no record that could be continued ({error!r})",
                "Use gradclip_core.LossScaler, or scaler.unscale_(optimizer) and clip_by_global_norm_",
            ) from error
        return record
