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


class DoorWithViews(Door, Protocol):
    """A door whose arrays may come in by ``arrays/express.py`` as NumPy arrays that share their memory."""

    def views(self, leaves: Sequence[Any]) -> Sequence[Any] | None:
        """NumPy arrays that share the leaves' memory; None where one of them is not ordinary."""
        ...

    def memory(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A NumPy array, not initialised, whose memory the framework may take over."""
        ...

    def make(self, values: Sequence[Any], likes: Sequence[Any]) -> list[Any]:
        """Arrays of the framework with these values, each where its like is."""
        ...


class Holder(Protocol):
    """A user's array of which the docked memory is a part: what a sparse one stores, or one process's shard."""

    @property
    def kind(self) -> str:
        """``"sparse"`` or ``"sharded"``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The user's array's own."""
        ...

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that are one array; on every process alike, whether it has elements of it or not."""
        ...

    @property
    def shared(self) -> Any:
        """Its ``sharded.Shared``, where other processes hold the rest; None for all others."""
        ...

    @property
    def lies(self) -> Docked | None:
        """Memory that the user's array still has, where the docked memory is a copy that is to replace it."""
        ...

    def refusal(self) -> Refused:
        """The "no" of a function that needs plain arrays."""
        ...

    def renewed(self) -> Holder:
        """The same for new memory, which no user's array knows of yet."""
        ...

    def around(self, values: Any) -> Any:
        """A new array of the user's kind, around new memory."""
        ...

    def after_write(self, values: Any) -> None:
        """The docked memory was written: the user's array shows it, and its framework knows it."""
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
    memory: bool = True
    """False: there is none that a backend could read, and its framework's own operations alone can work on it. Its
    device is then ``"symbolic:<framework>"`` where it has no values yet (traced, lazy), or one like ``"mps:0"``."""
    holder: Holder | None = None
    """The user's array, where the memory is a part of it: ``array`` and ``shape`` are that part's."""

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the user's array."""
        return self.shape if self.holder is None else self.holder.shape

    @property
    def look(self) -> str:
        """The dtype's name, and that not all elements are stored where that is so."""
        sparse = self.holder is not None and self.holder.kind == "sparse"
        return f"{self.dtype.name}, sparse" if sparse else self.dtype.name

    @property
    def symbolic(self) -> bool:
        """Whether it has no values yet: traced, or lazy."""
        return self.device.startswith("symbolic:")

    @property
    def immutable(self) -> bool:
        """Whether nobody ever writes it, so that it is as good as a copy of itself."""
        return bool(getattr(self.door, "immutable", False))

    @property
    def itemsize(self) -> int:
        """Bytes per element, a complex number being one element."""
        return self.dtype.itemsize * (2 if self.is_complex else 1)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two arrays of one framework that are the same elements in the same arrangement."""
        if self.holder is not None:
            return id(self.door), *self.holder.key
        return id(self.door), self.read_only, self.pointer, self.shape, self.strides, self.dtype.name, self.is_complex
