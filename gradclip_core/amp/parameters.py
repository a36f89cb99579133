"""Where a Clipper finds the gradients of what it was bound to: an optimizer, a module, or parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradclip_core.errors import InvalidArgumentError, show

_CURE = "Pass an optimizer, a module, or its parameters() or named_parameters()"


class Parameters:
    """Parameters by name; their gradients are what ``.grad`` of each is when it is asked."""

    def __init__(self, source: Any) -> None:
        self.optimizer = source if hasattr(source, "param_groups") else None
        self._source = source
        self._fixed: dict[str, Any] | None = None
        if self.optimizer is None and not hasattr(source, "named_parameters"):
            self._fixed = named(source)
        self._named()  # refuses now what holds no parameters

    def _named(self) -> dict[str, Any]:
        # An optimizer may be given more of them later, and layers of a module be replaced.
        if self._fixed is not None:
            return self._fixed
        return named(self._source) if self.optimizer is None else of_optimizer(self._source)

    def gradients(self) -> dict[str, Any]:
        """Name -> ``.grad``, which is None for parameters that have none yet."""
        return {name: parameter.grad for name, parameter in self._named().items()}


def named(source: Any) -> dict[str, Any]:
    """Parameters by name: a module's own names, or their places."""
    if hasattr(source, "named_parameters"):
        source = source.named_parameters()
    if isinstance(source, Mapping):
        pairs = [(str(name), parameter) for name, parameter in source.items()]
    elif isinstance(source, Iterable) and not hasattr(source, "__array__") and not hasattr(source, "__dlpack__"):
        pairs = [
            (str(item[0]), item[1]) if isinstance(item, tuple) and len(item) == 2 else (str(place), item)
            for place, item in enumerate(source)
        ]
    else:
        raise InvalidArgumentError(f"Clipper, params={show(type(source).__name__)}", "it holds no parameters", _CURE)
    return _checked(pairs)


def of_optimizer(optimizer: Any) -> dict[str, Any]:
    """Parameters of all groups; by their names where the optimizer knows them, otherwise ``group.place``."""
    pairs = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [f"{number}.{place}" for place in range(len(group["params"]))]
        pairs += list(zip(names, group["params"], strict=True))
    return _checked(pairs)


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, parameter in pairs:
        if not hasattr(parameter, "grad"):
            kind = type(parameter)
            raise InvalidArgumentError(
                f"Clipper, params, '{name}'", f"a {kind.__module__}.{kind.__name__} has no .grad", _CURE
            )
    if not pairs:
        seen = "there is no parameter in it (a generator is empty once it was read)"
        raise InvalidArgumentError("Clipper, params", seen, _CURE)
    return dict(pairs)
