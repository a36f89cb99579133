"""A docked array: where its memory is, how it is laid out, and whether it may be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradclip_core.errors import GradClipError
from gradclip_core.protocol import DType


class Refused(Exception):  # noqa: N818  # a message to the dock, which no user sees
    """A door's "no". The dock turns it into ``kind``, with the path of the array in front."""

    def __init__(self, kind: type[GradClipError], seen: str, cure: str) -> None:
        super().__init__(seen)
        self.kind = kind
        self.seen = seen
        self.cure = cure


class Door(Protocol):
    """How one framework's arrays come in and go out."""

    def dock(self, x: Any) -> Docked:
        """Describe ``x`` without copying it, or raise ``Refused``."""
        ...

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """New uninitialised memory of the same shape, laid out alike where that is dense; of the same dtype, or
        (host memory, real numbers) of another.
        """
        ...

    def finish(self, new: Docked, like: Docked) -> Any:
        """The array to hand to the user, around memory from ``new_like``."""
        ...

    def after_write(self, written: Sequence[Any]) -> None:
        """Tell the framework that the memory of these arrays of its has changed behind its back."""
        ...


class PlainDoor(Door, Protocol):
    """A door whose arrays may come in by ``arrays/express.py``, all at once and not one by one."""

    def plain(self, leaves: Sequence[Any]) -> bool:
        """Whether arrays of one and the same type need no more looked at than memory, dtype, shape and strides."""
        ...

    def empty_like(self, x: Any) -> Any:
        """A plain array like a plain one, not initialised, with its axes in the same order in memory."""
        ...


@dataclass(slots=True)
class Docked:
    """``strides`` are in bytes, as NumPy's. A complex array's ``dtype`` is that of its parts."""

    array: Any
    door: Door
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: DType
    is_complex: bool = False
    device: str = "cpu"
    read_only: str = ""
    """Why the memory may not be written; empty where it may."""
    owner: object = None
    """What keeps the memory alive, where that is not ``array``."""
    contiguous: bool = False
    """Known to be C-contiguous; False says nothing."""
    stream: int = 0
    """On a device: the producer's current stream, see ``Buffer``."""
    lent: bool = False
    """On a device: whether somebody has to keep it alive until queued work has run, see ``Buffer``."""

    @property
    def itemsize(self) -> int:
        """Bytes per element, a complex number being one element."""
        return self.dtype.itemsize * (2 if self.is_complex else 1)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two arrays of one framework that are the same elements in the same arrangement."""
        return id(self.door), self.read_only, self.pointer, self.shape, self.strides, self.dtype.name, self.is_complex
