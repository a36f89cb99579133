"""``Clipper``: the object that lives beside an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradclip_core.amp.parameters import Parameters
from gradclip_core.amp.scaler import LossScaler
from gradclip_core.amp.statistics import Record, Statistics
from gradclip_core.amp.torch_amp import GradScalerDoor, is_grad_scaler
from gradclip_core.errors import GradClipError, InvalidArgumentError, show
from gradclip_core.functions import run_in_place, run_new
from gradclip_core.info import ClipInfo
from gradclip_core.rules import Rule, checked_rule
from gradclip_core.validate import Common, How

_WITH_A_SCALE = ("skip", "zero", "sanitize", "raise")


class Clipper:
    """Unscales, looks for infinities, clips and updates the loss scale, in one read pass and at most one write pass.

    Parameters
    ----------
    rule : what to clip by, see ``clip``.
    loss_scaler : a ``LossScaler``, or a ``torch.amp.GradScaler``, which then goes on with its own
        ``step`` and ``update``; None where the loss is not scaled.
    nonfinite : see ``clip``. None: ``"skip"`` with a scaler, ``"raise"`` without. Under "skip" and
        "zero" the scale falls and the optimizer is not to step; under "sanitize" the scale falls, and it may.
    params : where ``step_()`` finds the gradients: an optimizer, a module, or its parameters. A
        torch optimizer is watched: its ``step`` raises where the gradients are still scaled, or
        their step was to be skipped. Only references are kept.
    update : whether ``step_`` updates the ``LossScaler`` itself. False where several Clippers share one:
        call ``loss_scaler.update()`` once, after all have stepped.
    backend : see ``clip``.

    A skipped step leaves the gradients as they are, infinities among them, still scaled: clear them
    (``optimizer.zero_grad()``) before the next backward, also those of earlier micro-batches, which are lost.
    With ``nonfinite="zero"`` that has been done.

    Gradient accumulation: scale and run backward as often as you like, and call ``step_`` once. The
    scale does not change in between.

    Raises
    ------
    InvalidArgumentError
        for a scaler that is none, a policy that would let infinities through, a shared scaler that
        one of several Clippers would update.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler(8.0))
    >>> for gradient in (3.0, np.inf):
    ...     loss = clipper.loss_scaler.scale(1.0)
    ...     info = clipper.step_([np.array([gradient * 8], np.float32)])
    ...     print(gc.explain(info) + ("" if info.skipped else ": optimizer.step()"))
    norm 3 over 1 array; clipped to 1: optimizer.step()
    norm inf over 1 array; 1 element of '0' was infinite and the step was skipped
    >>> clipper.loss_scaler.get_scale()
    4.0
    """

    def __init__(
        self,
        rule: Rule,
        loss_scaler: Any = None,
        *,
        nonfinite: str | None = None,
        params: Any = None,
        update: bool = True,
        backend: str | None = None,
    ) -> None:
        self.rule = checked_rule("Clipper", rule)
        self.loss_scaler = loss_scaler
        self.updates = bool(update) and isinstance(loss_scaler, LossScaler)
        self._torch = _torch_scaler(loss_scaler)
        self.nonfinite = nonfinite if nonfinite is not None else "raise" if loss_scaler is None else "skip"
        How(nonfinite=self.nonfinite, backend=backend)
        if loss_scaler is not None and self.nonfinite not in _WITH_A_SCALE:
            raise InvalidArgumentError(
                f"Clipper(nonfinite={self.nonfinite!r})",
                "with a loss scale infinities are a part of life, and would go into the weights",
                f"Pass one of {', '.join(_WITH_A_SCALE)}",
            )
        if self._torch is not None and self.nonfinite == "sanitize":
            raise InvalidArgumentError(
                "Clipper(nonfinite='sanitize')",
                "a GradScaler that hears of an infinity skips the step, and one that does not keeps its scale",
                "Use gradclip_core.LossScaler, or another policy",
            )
        self.backend = backend
        self.params = None if params is None else Parameters(params)
        self._record = Record()
        self._consumed = 0
        """``LossScaler``'s count of scaled losses, when this last unscaled."""
        self._unheeded: ClipInfo | None = None
        """The last info, if it said that the step is to be skipped."""
        if isinstance(loss_scaler, LossScaler):
            loss_scaler.join(self, self.updates)
            self._consumed = loss_scaler.taken
        self._watch()

    # ---- the step -------------------------------------------------------------------------------

    def step_(self, grads: Any = None, *, optimizer: Any = None, then: Callable[[], object] | None = None) -> ClipInfo:
        """Unscale and clip in place, once for each optimizer step.

        Parameters
        ----------
        grads : see ``clip_``. None: the ``.grad`` of ``params``.
        optimizer : with a GradScaler, whose gradients they are, where ``params`` is not that optimizer.
        then : called, without arguments, unless the step is to be skipped: ``optimizer.step``.

        Returns
        -------
        ClipInfo
            Look at ``info.skipped`` before the optimizer steps, or pass ``then``.

        Raises
        ------
        GradClipError
            where the gradients have been unscaled before, where the scale has changed since the
            loss was scaled, where the last step was to be skipped and nobody asked. Nothing is written.
        """
        found = self._gradients("Clipper.step_", grads)
        info = self._step("Clipper.step_", optimizer, lambda how: run_in_place(found, self.rule, how, "Clipper.step_"))
        if then is not None and not info.skipped:
            then()
        return info

    def __call__(self, grads: Any, *, optimizer: Any = None) -> tuple[Any, ClipInfo]:
        """``step_`` into new arrays, for frameworks whose arrays are immutable."""
        made: list[Any] = []

        def run(how: Common) -> ClipInfo:
            clipped, info = run_new(grads, self.rule, how, "Clipper")
            made.append(clipped)
            return info

        info = self._step("Clipper", optimizer, run)
        return made[0], info

    def _gradients(self, asked: str, grads: Any) -> Any:
        if grads is not None:
            return grads
        if self.params is None:
            cure = "Pass them, or bind parameters: Clipper(rule, params=...)"
            raise InvalidArgumentError(f"{asked}()", "there are no gradients to clip", cure)
        return self.params.gradients()

    def _step(self, asked: str, optimizer: Any, run: Callable[[Common], ClipInfo]) -> ClipInfo:
        self._refuse_unheeded(asked)
        how: Common = {"nonfinite": self.nonfinite, "backend": self.backend}
        scaler = self.loss_scaler
        if self._torch is not None and self._torch.enabled:
            target = optimizer if optimizer is not None or self.params is None else self.params.optimizer
            how["loss_scale"] = self._torch.open(asked, target)
            info = run(how)
            self._torch.close(asked, target, info.nonfinite > 0)
        elif isinstance(scaler, LossScaler):
            self._refuse_used(asked, scaler)
            how["loss_scale"] = scaler.get_scale()
            info = run(how)
            self._consumed = scaler.taken
            scaler.record(self, info.nonfinite > 0)
            if self.updates:
                scaler.update()
            self._unheeded = info if info.peek_skipped() else None
        else:
            info = run(how)
            # On a device nobody knows yet, and asking would wait.
            self._unheeded = info if self.nonfinite in ("skip", "zero") and info.known and info.peek_skipped() else None
        self._record.add(info)
        return info

    # ---- what must not go through in silence ----------------------------------------------------

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
                "no loss was scaled since these gradients were last unscaled, so they would be unscaled twice",
                "Call it once for each optimizer step, after loss_scaler.scale(loss) and backward; to clip once more, "
                "call clip_",
            )
        if scaler.last_taken != scaler.get_scale():
            raise GradClipError(
                asked,
                f"the loss was scaled by {scaler.last_taken:g}, and the scale has become {scaler.get_scale():g} since",
                "Update the scale last, after every Clipper has stepped",
            )

    def _refuse_unheeded(self, asked: str) -> None:
        if self._unheeded is not None and not self._unheeded.heeded:
            count = self._unheeded.nonfinite
            self._unheeded = None
            raise GradClipError(
                asked,
                f"the last step was to be skipped, for {count} non-finite elements, and nobody asked: if the "
                "optimizer has stepped, they are in the weights",
                "Write 'if not info.skipped: optimizer.step()', or pass step_(then=optimizer.step); "
                "go back to a checkpoint if it has",
            )

    def _watch(self) -> None:
        """Have a torch optimizer refuse to step on gradients that it should not take."""
        optimizer: Any = None if self.params is None else self.params.optimizer
        if not isinstance(self.loss_scaler, LossScaler) or not hasattr(optimizer, "register_step_pre_hook"):
            return
        scaler = self.loss_scaler

        def check(*_: object) -> None:
            if scaler.taken != self._consumed:
                raise GradClipError(
                    "optimizer.step",
                    f"its gradients are still multiplied with the loss scale {scaler.get_scale():g}",
                    "Call clipper.step_() between backward and optimizer.step()",
                )
            if self._unheeded is not None:
                raise GradClipError(
                    "optimizer.step",
                    f"this step is to be skipped: {self._unheeded.nonfinite} gradient elements are infinite or NaN",
                    "Write 'if not info.skipped: optimizer.step()', or pass step_(then=optimizer.step)",
                )

        optimizer.register_step_pre_hook(check)

    # ---- what is kept ---------------------------------------------------------------------------

    @property
    def statistics(self) -> Statistics:
        """Counts, and the mean and the largest norm, of all steps so far. Waits for a device that has some."""
        return self._record.read()

    def state_dict(self) -> dict[str, Any]:
        """What resumes it: the statistics, and the state of its ``LossScaler``."""
        state: dict[str, Any] = {"statistics": self._record.state()}
        if isinstance(self.loss_scaler, LossScaler):
            state["loss_scaler"] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict()``."""
        if ("loss_scaler" in state) != isinstance(self.loss_scaler, LossScaler) or "statistics" not in state:
            raise InvalidArgumentError(
                f"Clipper.load_state_dict({show(sorted(state))})",
                "it is not the state of a Clipper with this kind of loss scaler",
                "Pass what state_dict() of a Clipper that was made alike returned",
            )
        if isinstance(self.loss_scaler, LossScaler):
            self.loss_scaler.load_state_dict(state["loss_scaler"])
            self._consumed = self.loss_scaler.taken
        self._record.load(dict(state["statistics"]))
        self._unheeded = None

    def __repr__(self) -> str:
        return f"Clipper({self.rule!r}, {self.loss_scaler!r}, nonfinite={self.nonfinite!r})"


def _torch_scaler(scaler: Any) -> GradScalerDoor | None:
    if scaler is None or isinstance(scaler, LossScaler):
        return None
    if is_grad_scaler(scaler):
        return GradScalerDoor(scaler)
    raise InvalidArgumentError(
        f"Clipper, loss_scaler={show(scaler)}",
        f"a {type(scaler).__name__} is no loss scaler",
        "Pass a gradclip_core.LossScaler (LossScaler.static(S) for a fixed scale), or a torch.amp.GradScaler",
    )
