"""The order of a step: what a Clipper refuses because it comes twice, too early, too late, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradclip_core.amp.parameters import Parameters
from gradclip_core.amp.scaler import LossScaler
from gradclip_core.amp.torch_amp import GradScalerDoor
from gradclip_core.amp.watch import Left
from gradclip_core.errors import GradClipError
from gradclip_core.info import ClipInfo


class InOrder:
    """What a Clipper remembers of the last step, and the refusals that follow from it. Each comes before any write."""

    loss_scaler: Any
    params: Parameters | None
    nonfinite: str
    _torch: GradScalerDoor | None
    _left: Left
    _consumed: int
    """``LossScaler``'s count of scaled losses, when this last unscaled."""
    _clean: int
    """The same, when all gradients that it is bound to were unscaled."""
    _skipping: ClipInfo | None
    """The last info, if it said that the step is to be skipped."""
    _unheeded: ClipInfo | None
    """The same, until somebody has asked."""

    @property
    def _through(self) -> GradScalerDoor | None:
        """The GradScaler that steps and updates, where there is one and it is enabled."""
        return self._torch if self._torch is not None and self._torch.enabled else None

    @property
    def _scales(self) -> bool:
        """Whether the loss is scaled."""
        return isinstance(self.loss_scaler, LossScaler) or self._through is not None

    def _dirty(self) -> bool:
        """Whether a bound parameter has a gradient that is not as it was left."""
        bound = {} if self.params is None else self.params.gradients()
        return not all(grad is None or self._left.has(grad) for grad in bound.values())

    def _refuse_used(self, asked: str, scaler: LossScaler) -> None:
        if scaler.has_heard(self):
            raise GradClipError(
                asked,
                "the scale was not updated since this Clipper's last step",
                "Call loss_scaler.update() once in each iteration, after all Clippers have stepped",
            )
        if scaler.taken == self._consumed:
            raise GradClipError(
                asked,
                "no loss was scaled since the last step: gradients would be unscaled twice, or never were scaled",
                "Call it once for each optimizer step, after loss_scaler.scale(loss) and backward; to clip once more, "
                "call clip_",
            )
        if scaler.last_taken != scaler.get_scale():
            raise GradClipError(
                asked,
                f"the loss was scaled by {scaler.last_taken:g}, and the scale has become {scaler.get_scale():g} since",
                "Update the scale last, after every Clipper has stepped",
            )

    def _refuse_left(self, asked: str, grads: Iterable[Any]) -> None:
        """Bound gradients that are as the last step left them, whatever was scaled since."""
        there = [grad for grad in grads if grad is not None]
        # A CUDA graph writes without telling the version counters.
        if self._scales and there and all(self._left.has(grad) and grad.device.type == "cpu" for grad in there):
            raise GradClipError(
                asked,
                "these gradients have been unscaled already, and nothing was added to them since",
                "Call it once for each optimizer step, after backward; to clip once more, call clip_",
            )

    def _refuse_unheeded(self, asked: str) -> None:
        if self._unheeded is not None and not self._unheeded.heeded:
            count = self._unheeded.nonfinite + self._unheeded.overflow
            self._unheeded = None
            taken = "has taken a step of zeros" if self.nonfinite == "zero" else "has them in the weights now"
            raise GradClipError(
                asked,
                f"the last step was to be skipped, for {count} non-finite elements, and nobody has read info.skipped: "
                f"an optimizer that stepped {taken}",
                "Write 'if not info.skipped: optimizer.step()', or pass step_(then=optimizer.step); "
                "go back to a checkpoint if it has",
            )

    def check_step(self, optimizer: Any, *, closure: bool) -> None:
        """What a bound torch optimizer asks before it steps. Nothing has been changed then."""
        scaler = self.loss_scaler
        if closure and self._scales:
            raise GradClipError(
                "optimizer.step(closure)",
                "a closure runs backward inside the step, where nothing can be skipped",
                "Use no loss scale with optimizers that need a closure",
            )
        if isinstance(scaler, LossScaler):
            scaled = scaler.taken != self._clean and self._dirty()
        else:
            scaled = self._through is not None and self._through.holds_scaled(optimizer) and self._dirty()
        if scaled:
            raise GradClipError(
                "optimizer.step",
                f"its gradients, or some of them, are still multiplied with the loss scale {scaler.get_scale():g}",
                "Call clipper.step_() between backward and optimizer.step(), or clipper.reset() if they were cleared",
            )
        if self._skipping is not None and getattr(optimizer, "found_inf", None) is None:
            raise GradClipError(
                "optimizer.step",
                f"this step is to be skipped: {self._skipping.nonfinite + self._skipping.overflow} gradient "
                "elements are infinite or NaN",
                "Write 'if not info.skipped: optimizer.step()', or pass step_(then=optimizer.step)",
            )
