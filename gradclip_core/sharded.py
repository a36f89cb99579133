"""Arrays of which every process holds a shard: measured where they are, decided alike everywhere.

``Together`` stands in front of a backend. Its ``measure`` makes the backend's read pass over what is here and adds
to it what the other processes have found: some numbers for each array, no elements. All that follows, decisions,
guards and policies, sees the whole arrays' measurements and takes the same way on every process, so that all of
them make the same calls in the same order and none waits for another in vain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradclip_core.errors import GradClipError
from gradclip_core.protocol import FLOAT64, Actions, Backend, BoolArray, Buffer, FloatArray, Measurements, Request, What
from gradclip_core.reference import add_pairs, tree_sum_carried

_LANES = 256
"""Up to as many numbers, the tree of ``reference.tree_sum`` does nothing but fold halves."""


class Line(Protocol):
    """The processes along one axis of a mesh, this one among them, in an order that all of them know."""

    @property
    def key(self) -> object:
        """Equal for the same processes."""
        ...

    def gather(self, numbers: FloatArray) -> FloatArray:
        """What each of them passes, along a new first axis. All have to call, with arrays of one shape."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What is known of an array that is spread over processes, beside the shard that is here."""

    elements: int
    """Of the whole array; a complex number is two."""
    lines: tuple[Line, ...]
    """Along each of them its shards are other elements, in the order of the mesh's axes. Along all others they are the
    same.
    """
    look: str
    """Where it is, in words that are the same on every process."""


def lines_of(shares: Sequence[Shared | None]) -> list[Line]:
    """All lines of some arrays, in the order in which they name them: the same on every process."""
    found: dict[object, Line] = {}
    for shared in shares:
        for line in () if shared is None else shared.lines:
            found.setdefault(line.key, line)
    return list(found.values())


class Together:
    """A backend for what is here, that measures whole arrays. It decides on the host, on every process the same."""

    def __init__(self, inner: Backend, lines: Sequence[Line]) -> None:
        self._inner, self._lines, self.name = inner, lines, inner.name
        self.takes_arrays: bool = getattr(inner, "takes_arrays", False)
        if hasattr(inner, "projections"):
            # Their passes write an element at a time, which no other process has to know of.
            self.projections: object = inner.projections

    def not_supported_reasons(self, request: Request) -> list[str]:
        """See ``Backend.not_supported_reasons``."""
        return self._inner.not_supported_reasons(request)

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """See ``Backend.apply``. Each process writes its own shards."""
        self._inner.apply(buffers, out, actions)

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """See ``Backend.measure``: of the whole arrays, the same bits on every process."""
        found = self._inner.measure(buffers, what)
        shares: list[Shared | None] = [buffer.shared for buffer in buffers for _ in range(buffer.rows)]
        carried = np.array([what.carry and buffer.dtype is FLOAT64 for buffer in buffers for _ in range(buffer.rows)])
        numbers = np.array([found.sums, found.carries, found.largest, found.infs, found.nans, found.outside])
        if not numbers.size:
            return found
        for line, added, here in _rounds(shares, self._lines):
            everywhere = line.gather(np.ascontiguousarray(numbers[:, here]))
            with np.errstate(all="ignore"):
                summed, one = _added(everywhere, carried[here]), _one_of(everywhere)
            numbers[:, here] = np.where(added[here], summed, one)
        sums, carries, largest = numbers[:3]
        infs, nans, outside = numbers[3:].astype(np.int64)
        return Measurements(sums, largest, infs, nans, outside, carries)

    def compare(self, asked: str, said: str) -> None:
        """Raise, on every process, unless all of them ask for the same."""
        digest = hashlib.blake2b(said.encode(), digest_size=12).digest()
        # Two numbers of 48 bits, which float64 holds, and whether this process knows of others that differ.
        ours = np.array([float(int.from_bytes(part, "big")) for part in (digest[:6], digest[6:], b"")])
        for line in self._lines:
            everywhere = line.gather(ours)
            ours[2] = bool((everywhere[:, :2] != ours[:2]).any() or everywhere[:, 2].any())
        if ours[2]:
            raise GradClipError(
                asked,
                "not every process of the mesh passes the same arrays and arguments: paths, shapes, placements, limits",
                "Make the same call everywhere, with the same arrays in the same order. No gradient was touched",
            )


def _rounds(shares: Sequence[Shared | None], lines: Sequence[Line]) -> list[tuple[Line, BoolArray, BoolArray]]:
    """The exchanges that make whole measurements: along which line, which segments are added, which take part.

    First each array is added along its own lines, in their order. Then it is the same along them, and has to be made
    so along the lines of other arrays too: what every process holds may differ in its last bits, and decisions may
    not. Mostly there is one line, and one exchange.
    """
    to_add = [[line.key for line in shared.lines] if shared is not None else [] for shared in shares]
    to_take = [[line.key for line in lines if line.key not in own] for own in to_add]
    found: list[tuple[Line, BoolArray, BoolArray]] = []
    while any(to_add) or any(to_take):
        for line in lines:
            added, here = (np.zeros(len(shares), np.bool_) for _ in range(2))
            for i, (own, rest) in enumerate(zip(to_add, to_take, strict=True)):
                if own and own[0] == line.key:
                    own.pop(0)
                    added[i] = here[i] = True
                elif not own and line.key in rest:
                    rest.remove(line.key)
                    here[i] = True
            if here.any():
                found.append((line, added, here))
    return found


def _added(everywhere: FloatArray, carried: BoolArray) -> FloatArray:
    """The numbers of arrays whose parts are on these processes: sums add in ``tree_sum``'s order, counts add."""
    sums, carries, largest = everywhere[:, 0], everywhere[:, 1], everywhere[:, 2]
    total, lost = _tree_sums(sums, carries)
    counts = everywhere[:, 3:].sum(axis=0)
    return np.concatenate([[total, np.where(carried, lost, 0.0), largest.max(axis=0)], counts])


def _tree_sums(sums: FloatArray, carries: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``tree_sum_carried`` along the first axis, all arrays at once."""
    count = sums.shape[0]
    if count > _LANES:
        pairs = [tree_sum_carried(sums[:, i], carries[:, i]) for i in range(sums.shape[1])]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    width = 1 << (count - 1).bit_length()
    padding = np.zeros((width - count, sums.shape[1]))
    lanes = np.concatenate([sums, padding]), np.concatenate([carries, padding])
    while width > 1:
        width //= 2
        lanes = add_pairs((lanes[0][:width], lanes[1][:width]), (lanes[0][width:], lanes[1][width:]))
    return lanes[0][0], lanes[1][0]


def _one_of(everywhere: FloatArray) -> FloatArray:
    """The numbers of arrays that every process holds: of those with the largest sum, so that a bound holds for all."""
    first = np.argmax(everywhere[:, 0], axis=0)  # NaN counts as the largest
    found: FloatArray = np.take_along_axis(everywhere, first[None, None, :], axis=0)[0]
    return found
