"""What a Clipper knows of the gradients of its parameters, and how a torch optimizer is kept from taking wrong ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol


class Left:
    """Gradients as a Clipper left them: unscaled, as long as nobody has written to them since.

    Told by torch's version counters. Other arrays keep no record of writes, and are never known.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}

    def mark(self, grads: Iterable[Any]) -> None:
        """These are unscaled now. Only weak references are kept."""
        self._seen = {key: entry for key, entry in self._seen.items() if entry[0]() is not None}
        for grad in grads:
            version = _version(grad)
            if version is not None:
                self._seen[id(grad)] = weakref.ref(grad), version

    def has(self, grad: Any) -> bool:
        """Whether it is as it was left."""
        reference, version = self._seen.get(id(grad), (None, 0))
        return reference is not None and reference() is grad and _version(grad) == version


def _version(grad: Any) -> int | None:
    try:
        return int(grad._version)
    except (AttributeError, RuntimeError):  # no tensor, or one made under torch.inference_mode
        return None


class Watcher(Protocol):
    """Who is asked before an optimizer steps."""

    def check_step(self, optimizer: Any, *, closure: bool) -> None:
        """Raise where it should not."""
        ...


_watchers: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Optimizer -> who watches it: the last Clipper that was bound to it."""


def watch(watcher: Watcher, optimizer: Any) -> None:
    """Have ``watcher`` asked before each step of a torch optimizer, as long as it lives and no other takes over."""
    me = weakref.ref(watcher)

    def check(stepping: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = me()
        if asked is not None and _watchers.get(stepping) is me:
            # torch passes the optimizer itself as the first of them.
            closure = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
            asked.check_step(stepping, closure=closure)

    try:
        optimizer.register_step_pre_hook(check)
        _watchers[optimizer] = me
    except (AttributeError, TypeError):  # not torch's, or a wrapper that has no hooks: nobody to watch
        return
