"""``Optimizer``: what all optimizers share. A step is one pass over gradients, parameters and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import numpy as np

from gradclip_core.errors import BackendError, GradClipError, InvalidArgumentError, show
from gradclip_core.optim.deferred import deferred
from gradclip_core.optim.groups import Group, checked_groups, not_negative
from gradclip_core.optim.parameters import Parameters, unloaded
from gradclip_core.optim.settings import Fixed, Settable
from gradclip_core.optim.state import State, refuse_other
from gradclip_core.passes import choose, report_writes
from gradclip_core.planned import Plan
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.protocol import Actions, FloatArray, IntArray
from gradclip_core.updates import UPDATES, compute_type, updates_of

_SAVED = ("optimizer", "hyperparameters", "groups", "state")
_CURE = "Pass what state_dict() of an optimizer that was made alike returned"


class Optimizer(Settable):
    """Base of the optimizers: parameters, groups, state, and the step. See ``AdamW`` for what they take."""

    def __init__(self, params: Any, kind: str, lr: Any, weight_decay: Any, groups: Any, backend: str | None) -> None:
        self._name = self._called = type(self).__name__
        self.lr = lr
        self.weight_decay = weight_decay
        asked = f"{self._name}, params"
        self._parameters = Parameters(params, asked)
        self._groups = checked_groups(groups, self._parameters.paths, self._parameters.site.tied, self._name)
        by_path = {path: group for group in self._groups.values() for path in group.paths}
        self._group_of = [by_path.get(path) for path in self._parameters.paths]
        chosen, _ = choose(backend, self._parameters.arrays)
        if not hasattr(chosen, "optimizers"):
            seen = f"{chosen.name} has no updates for optimizers"
            raise BackendError(f"{self._name}, backend={backend!r}", seen, "Leave backend=None")
        self._backend = chosen.name
        self._kind = kind
        self._types = [compute_type(docked.dtype).name for docked in self._parameters.arrays]
        self._stepped: WeakSet[Plan] = WeakSet()
        self._updates = updates_of(chosen)
        self._state = State(UPDATES[kind].state, self._parameters)
        self._bind()

    def _bind(self) -> None:
        self._bound = self._updates.bind(self._kind, self._parameters.buffers(), self._state.buffers())

    # ---- hyperparameters ------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate. May be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: Any) -> None:
        self._lr = not_negative(f"{self._name}, lr", value)

    @property
    def weight_decay(self) -> float:
        """The weight decay. May be set between steps."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self._weight_decay = not_negative(f"{self._name}, weight_decay", value)

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The other hyperparameters, which stay as they were when it was made."""
        return {}

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups by name; their ``lr`` and ``weight_decay`` may be set."""
        return Fixed(self._groups, f"{self._name}, groups")

    @property
    def backend(self) -> str:
        """Who updates."""
        return self._backend

    def _numbers(self, lr: float, weight_decay: float, count: int) -> dict[str, float]:
        """The numbers of ``UPDATES`` at a parameter's step ``count``, the first being 1. In float64."""
        raise NotImplementedError

    # ---- the step -------------------------------------------------------------------------------

    @ieee_arithmetic
    def step(self, grads: Any, plan: Any = None) -> bool:
        """Update the parameters, in one pass, in which the plan's factor is put on the gradients.

        Parameters
        ----------
        grads : the gradients, in a container of the structure of ``params``; a parameter whose gradient is
            None, or is not there, is left alone, its state and its count of steps too. bfloat16, float16,
            float32 or float64, whatever the parameters are. Only read.
        plan : what ``gradclip_core.plan`` returned for these gradients, its loss scale included. The step
            is the one after ``plan.apply_(grads)``, to the bit for float32 and float64 gradients;
            16-bit ones are not rounded back to 16 bits on the way. It may have a factor for each array; a
            decision about single elements or units (values, projections, AGC, a chain of several that
            clip) is refused. A plan is good for one step of an optimizer, and one that was applied in place for none.
            None: the gradients are used as they are, infinities and NaNs included.

        Returns
        -------
        bool
            True; False where the plan says that the step is skipped. Nothing has changed then.

        Raises
        ------
        InvalidArgumentError
            for gradients of another structure than the parameters; for numbers that overflow float32.
        UnsafeMemoryError
            for gradients that share memory with parameters.
        GradClipError
            for a plan that was made for others, has been used, or is not one factor for an array; where no
            parameter has a gradient. Nothing has changed.
        """
        asked = f"{self._name}.step"
        if isinstance(grads, Plan):
            seen = "a plan is where the gradients belong: it holds none"
            raise InvalidArgumentError(f"{asked}({show(grads)})", seen, "Call step(grads, plan)")
        cargo = unloaded(grads, asked)
        if self._parameters.look_again(asked):
            self._bind()
        found = self._parameters.gradients(cargo, asked)
        if not found.index.size:
            raise GradClipError(asked, "no parameter has a gradient", "Call backward before it")
        if isinstance(plan, Plan) and plan in self._stepped:
            seen = "a step has been made with it: it was decided for the gradients of that step"
            raise GradClipError(f"{asked}, plan", seen, "Call gradclip_core.plan anew for each step")
        actions = deferred(plan, cargo, asked)
        if actions is None:
            self._stepped.add(plan)
            return False
        numbers = self._columns(found.index, asked)
        if plan is not None:
            self._stepped.add(plan)
        self._bound.step(found.index, found.buffers, _picked(actions, found.sources), numbers)
        self._state.counts[found.index] += 1
        report_writes([self._parameters.arrays[i] for i in found.index.tolist()])
        return True

    def _columns(self, index: IntArray, asked: str) -> FloatArray:
        """The numbers of the update, a column for each of the parameters."""
        names = UPDATES[self._kind].numbers
        known: dict[tuple[Group | None, int, str], list[float]] = {}
        columns = []
        for array, count in zip(index.tolist(), (self._state.counts[index] + 1).tolist(), strict=True):
            key = self._group_of[array], count, self._types[array]
            if key not in known:
                group, _, dtype = key
                lr = self.lr if group is None or group.lr is None else group.lr
                decay = self.weight_decay if group is None or group.weight_decay is None else group.weight_decay
                numbers = self._numbers(lr, decay, count)
                known[key] = [numbers[name] for name in names]
                largest = np.finfo(dtype).max
                if over := [name for name in names if not abs(numbers[name]) <= largest]:
                    seen = f"a number of the update overflows {dtype} ('{over[0]}' is {numbers[over[0]]:.3g})"
                    where = f"{asked}, lr={lr}, weight_decay={decay}, {_listed(self.fixed)}".removesuffix(", ")
                    raise InvalidArgumentError(where, seen, "Pass smaller ones")
            columns.append(known[key])
        return np.array(columns).T

    # ---- what is kept ---------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """Path of each parameter -> ``"step"``, how many it has made, and its state by name, of its shape.

        The arrays are the state itself, not to be written: they change with the next step. float32, and float64
        for float64 parameters.
        """
        return self._state.by_path(copies=False)

    def state_dict(self) -> dict[str, Any]:
        """What resumes it: numbers and NumPy arrays, by path; copies."""
        return {
            "optimizer": self._name,
            "hyperparameters": {"lr": self.lr, "weight_decay": self.weight_decay, **self.fixed},
            "groups": {
                name: {"paths": list(g.paths), "lr": g.lr, "weight_decay": g.weight_decay}
                for name, g in self._groups.items()
            },
            "state": self._state.by_path(copies=True),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict()``, ``lr`` and ``weight_decay`` included. Nothing changes at an error.

        Raises
        ------
        InvalidArgumentError
            for the state of another optimizer: other parameters, groups, paths of a group or fixed
            hyperparameters. float32 state is taken into float64 parameters, and not the other way round.
        """
        asked = f"{self._name}.load_state_dict"
        if not isinstance(state, Mapping) or set(state) != set(_SAVED):
            raise InvalidArgumentError(f"{asked}({show(state)})", "it is no optimizer's state", _CURE)
        numbers = state["hyperparameters"]
        for what in ("hyperparameters", "groups"):
            if not isinstance(state[what], Mapping):
                raise InvalidArgumentError(f"{asked}, '{what}'={show(state[what])}", "it is no mapping", _CURE)
        mine: dict[str, Any] = {"optimizer": self._name, "groups": sorted(self._groups), **_plain(self.fixed)}
        there = {"optimizer": state["optimizer"], "groups": sorted(state["groups"]), **_plain(numbers)}
        for what, value in mine.items():
            if there.get(what) != value:
                verb = "are" if what in ("groups", "betas") else "is"
                seen = f"its {what} {verb} {show(there.get(what))}, and here {show(value)}"
                raise InvalidArgumentError(asked, seen, _CURE)
        for name, entry in state["groups"].items():
            where = f"{asked}, groups[{name!r}]"
            refuse_other("entries", entry, ["paths", "lr", "weight_decay"], where)
            paths = list(self._groups[name].paths)
            if sorted(map(str, entry["paths"])) != sorted(paths):
                seen = f"its paths are {show(entry['paths'])}, and here {show(paths)}"
                raise InvalidArgumentError(where, seen, _CURE)
        lr = not_negative(f"{asked}, lr", numbers.get("lr"))
        weight_decay = not_negative(f"{asked}, weight_decay", numbers.get("weight_decay"))
        fresh = {name: Group(name, asked, **entry) for name, entry in state["groups"].items()}
        self._state.load(state["state"], asked)
        self.lr, self.weight_decay = lr, weight_decay
        for name, group in fresh.items():
            self._groups[name].lr, self._groups[name].weight_decay = group.lr, group.weight_decay

    def __reduce__(self) -> Any:
        raise InvalidArgumentError(
            f"copying or pickling {self!r}",
            "it is bound to parameters, and a copy would be bound to others",
            "Save state_dict(), make an optimizer for the copy of the parameters, and load it there",
        )

    def __repr__(self) -> str:
        numbers = {"lr": self.lr, **self.fixed, "weight_decay": self.weight_decay}
        if self._groups:
            numbers["groups"] = self._groups
        return f"{self._name}({_listed(numbers)})"


def _listed(numbers: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in numbers.items())


def _picked(actions: Actions, gradients: IntArray) -> Actions:
    """An entry for each of the gradients that belong to a parameter, in the order of these."""
    g = gradients
    return Actions(
        actions.op[g], actions.factor[g], actions.coarse[g], actions.fine[g], actions.low[g], actions.high[g]
    )


def _plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which JSON and others make of them."""
    return {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in numbers.items()}
