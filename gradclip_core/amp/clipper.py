"""``Clipper``: the object that lives beside an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gradclip_core.amp.order import InOrder
from gradclip_core.amp.parameters import Parameters
from gradclip_core.amp.scaler import LossScaler
from gradclip_core.amp.statistics import Record, Statistics, checked_statistics
from gradclip_core.amp.torch_amp import GradScalerDoor, is_grad_scaler
from gradclip_core.amp.watch import Left, watch
from gradclip_core.errors import GradClipError, InvalidArgumentError, show
from gradclip_core.info import ClipInfo
from gradclip_core.pipeline import run_in_place_eagerly, run_new_eagerly
from gradclip_core.rules import Rule, checked_rule
from gradclip_core.traced_info import TracedInfo
from gradclip_core.tree import flatten
from gradclip_core.validate import Common, How

_WITH_A_SCALE = ("skip", "zero", "sanitize", "raise")


class Clipper(InOrder):
    """Unscales, looks for infinities, clips and updates the loss scale, in one read pass and at most one write pass.

    Parameters
    ----------
    rule : what to clip by, see ``clip``.
    loss_scaler : a ``LossScaler``, or a ``torch.amp.GradScaler``, which then goes on with its own
        ``step`` and ``update``; None where the loss is not scaled.
    nonfinite : see ``clip``. None: ``"skip"`` with a scaler, ``"raise"`` without. Under "skip" and
        "zero" the scale falls and the optimizer is not to step; under "sanitize" the scale falls, and it may.
    params : where ``step_()`` finds the gradients: an optimizer or a module, which are asked anew each time, or
        parameters. A torch optimizer is watched: its ``step`` raises where gradients are still scaled, where their
        step was to be skipped, and under a loss scale if it is given a closure; until another
        Clipper is bound to it, or this one is gone. Bound, it cannot be copied or pickled.
    update : whether ``step_`` updates the ``LossScaler`` itself. False where several Clippers share one:
        call ``loss_scaler.update()`` once, after all have stepped.
    backend, underflow : see ``clip``.

    A skipped step leaves the gradients as they are, infinities among them, still scaled: clear them
    (``optimizer.zero_grad()``) before the next backward, also those of earlier micro-batches, which are lost.
    So they are after a good step, where scaled gradients would be added to unscaled ones.
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
    norm inf over 1 array; 1 element of '0' was infinite, so the step was skipped
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
        underflow: str = "ignore",
    ) -> None:
        self.rule = checked_rule("Clipper", rule)
        if not isinstance(update, bool):
            raise InvalidArgumentError(f"Clipper(update={show(update)})", "it is no bool", "Pass True or False")
        self.loss_scaler = loss_scaler
        self.updates = update and isinstance(loss_scaler, LossScaler)
        self._torch = _torch_scaler(loss_scaler)
        self.nonfinite = nonfinite if nonfinite is not None else "skip" if self._scales else "raise"
        How(nonfinite=self.nonfinite, backend=backend, underflow=underflow)
        if self._scales and self.nonfinite not in _WITH_A_SCALE:
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
        self.backend, self.underflow = backend, underflow
        self.params = None if params is None else Parameters(params)
        self._record = Record()
        self._left = Left()
        self._consumed = self._clean = 0
        """``LossScaler``'s count of scaled losses, when this last unscaled, and when all that it is bound to was."""
        self._skipping: ClipInfo | None = None
        """The last info, if it said that the step is to be skipped."""
        self._unheeded: ClipInfo | None = None
        """The same, until somebody has asked."""
        if isinstance(loss_scaler, LossScaler):
            loss_scaler.join(self, self.updates)
            self._consumed = self._clean = loss_scaler.taken
        if self.params is not None and self.params.optimizer is not None:
            watch(self, self.params.optimizer)

    # ---- the step -------------------------------------------------------------------------------

    def step_(
        self,
        grads: Any = None,
        *,
        optimizer: Any = None,
        then: Callable[[], object] | None = None,
        array_scales: Mapping[str, float] | None = None,
    ) -> ClipInfo:
        """Unscale and clip in place, once for each optimizer step.

        Parameters
        ----------
        grads : see ``clip_``. None: the ``.grad`` of ``params``.
        optimizer : with a GradScaler, whose gradients they are, where ``params`` is not that optimizer.
        then : called, without arguments, unless the step is to be skipped: ``optimizer.step``.
        array_scales : see ``clip``: of this step's arrays, beside the loss scale.

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
        asked = "Clipper.step_"
        if then is not None and not callable(then):
            raise InvalidArgumentError(f"{asked}, then={show(then)}", "it cannot be called", "Pass optimizer.step")
        if then is not None and self._through is not None:
            cure = "Call scaler.step(optimizer), which skips by itself, and scaler.update()"
            raise InvalidArgumentError(f"{asked}, then", "with a GradScaler the optimizer steps through it", cure)
        found = self._gradients(asked, grads)
        if grads is None:
            self._refuse_left(asked, found.values())

        def run(how: Common) -> ClipInfo:
            return run_in_place_eagerly(found, self.rule, how, asked)

        info = self._step(asked, optimizer, array_scales, run)
        if self.params is not None:
            self._left.mark(flatten(found)[0])
        if isinstance(self.loss_scaler, LossScaler) and not self._dirty():
            self._clean = self.loss_scaler.taken
        if then is not None and not info.skipped:
            then()
        return info

    def __call__(
        self,
        grads: Any = None,
        *,
        out: Any = None,
        optimizer: Any = None,
        array_scales: Mapping[str, float] | None = None,
    ) -> tuple[Any, ClipInfo]:
        """``step_`` into new arrays, for frameworks whose arrays are immutable; or into ``out``, see ``clip``:
        float32 gradients for master weights from float16 ones.
        """
        found = self._gradients("Clipper", grads)
        made: list[Any] = []

        def run(how: Common) -> ClipInfo:
            clipped, info = run_new_eagerly(found, self.rule, how, "Clipper", out)
            made.append(clipped)
            return info

        info = self._step("Clipper", optimizer, array_scales, run)
        return made[0], info

    def _gradients(self, asked: str, grads: Any) -> Any:
        if grads is not None:
            return list(grads) if isinstance(grads, Iterator) else grads
        if self.params is None:
            cure = "Pass them, or bind parameters: Clipper(rule, params=...)"
            raise InvalidArgumentError(f"{asked}()", "there are no gradients to clip", cure)
        found = self.params.gradients()
        if all(grad is None for grad in found.values()):
            raise GradClipError(asked, "no parameter has a gradient", "Call backward before it")
        return found

    def _step(
        self, asked: str, optimizer: Any, scales: Mapping[str, float] | None, run: Callable[[Common], ClipInfo]
    ) -> ClipInfo:
        self._refuse_unheeded(asked)
        how: Common = {"nonfinite": self.nonfinite, "backend": self.backend, "underflow": self.underflow}
        if scales is not None:
            how["array_scales"] = scales
        scaler = self.loss_scaler
        if optimizer is not None and self._torch is None:
            cure = "Leave it out; bind an optimizer with Clipper(rule, ..., params=optimizer)"
            raise InvalidArgumentError(f"{asked}, optimizer", "only a GradScaler's record goes by optimizer", cure)
        if (through := self._through) is not None:
            target = optimizer if optimizer is not None or self.params is None else self.params.optimizer
            how["loss_scale"] = through.open(asked, target)
            info = _untraced(asked, run(how))
            through.close(asked, target, info.nonfinite > 0)
        elif isinstance(scaler, LossScaler):
            self._refuse_used(asked, scaler)
            how["loss_scale"] = scaler.get_scale()
            info = _untraced(asked, run(how))
            self._consumed = scaler.taken
            scaler.record(self, info.nonfinite > 0)
            if self.updates:
                scaler.update()
        else:
            info = _untraced(asked, run(how))
        # Without a scaler nobody knows yet on a device, and asking would wait.
        ask = self.nonfinite in ("skip", "zero") and (info.known or self.loss_scaler is not None)
        self._skipping = info if ask and info.peek_skipped() else None
        self._unheeded = self._skipping if self._through is None else None
        self._record.add(info)
        return info

    def reset(self) -> None:
        """The gradients have been cleared: forget that a loss was scaled, and that a step was to be skipped."""
        self._skipping = self._unheeded = None
        if isinstance(self.loss_scaler, LossScaler):
            self.loss_scaler.forget(self)
            self._consumed = self._clean = self.loss_scaler.taken

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
        """Resume from ``state_dict()``. Gradients stay what they were. Nothing changes at an error."""
        known = isinstance(state, Mapping) and "statistics" in state
        if not known or ("loss_scaler" in state) != isinstance(self.loss_scaler, LossScaler):
            raise InvalidArgumentError(
                f"Clipper.load_state_dict({show(sorted(state) if isinstance(state, Mapping) else state)})",
                "it is not the state of a Clipper with this kind of loss scaler",
                "Pass what state_dict() of a Clipper that was made alike returned",
            )
        statistics = checked_statistics(state["statistics"])
        if isinstance(self.loss_scaler, LossScaler):
            self.loss_scaler.load_state_dict(state["loss_scaler"])
        self._record.load(statistics)
        self._unheeded = None

    def __getstate__(self) -> dict[str, Any]:
        if self.params is not None:
            raise InvalidArgumentError(
                "copying or pickling a Clipper",
                "it is bound to parameters, and a copy would be bound to others",
                "Save clipper.state_dict(), make a Clipper for the copy of the model, and load it there",
            )
        return {**self.__dict__, "_left": Left()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.loss_scaler, LossScaler):
            self.loss_scaler.join(self, self.updates)

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


def _untraced(asked: str, info: ClipInfo | TracedInfo) -> ClipInfo:
    """A report whose numbers are known, or will be."""
    if isinstance(info, TracedInfo):
        raise InvalidArgumentError(
            asked,
            "it remembers from call to call, and these gradients are traced: no value is there to remember",
            "Call gc.clip(grads, rule, loss_scale=..., nonfinite='skip') in the traced function, and keep the scale by "
            "info.skipped where the values are",
        )
    return info
