"""What may be set on an optimizer, and the sentence for everything else, which would be set and never read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from gradclip_core.errors import InvalidArgumentError, show

Entry = TypeVar("Entry")

_SETTABLE = ("lr", "weight_decay")


class Settable:
    """Of its public attributes ``lr`` and ``weight_decay`` may be set, and no others."""

    _called: str

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTABLE or name.startswith("_"):
            super().__setattr__(name, value)
            return
        known = hasattr(type(self), name) or name in getattr(self, "fixed", ())
        seen = "it is fixed when the optimizer is made" if known else "there is nothing of that name to be set"
        cure = "Set lr or weight_decay; make an optimizer anew for the rest"
        raise InvalidArgumentError(f"{self._called}.{name}={show(value)}", seen, cure)


class Fixed(Mapping[str, Entry]):
    """A dict that is only read."""

    def __init__(self, entries: dict[str, Entry], asked: str) -> None:
        self._entries = entries
        self._asked = asked

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __setitem__(self, name: str, value: object) -> NoReturn:
        seen, cure = "it is fixed when the optimizer is made", "Make an optimizer anew; lr and weight_decay may be set"
        raise InvalidArgumentError(f"{self._asked}[{name!r}]={show(value)}", seen, cure)

    def __repr__(self) -> str:
        return repr(self._entries)
