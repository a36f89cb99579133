"""What a backend must do, and the few words that it shares with the core.

A backend sees flat memory and per-segment numbers, nothing else: no containers, no strides, no
rules, no policies. A *segment* is what gets a sum of its own: a whole array (``rows == 1``), or
one row of it (unit-wise clipping). Everything per segment is a NumPy array with one entry per
segment, the buffers' rows laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# The three things that can happen to a segment in the write pass.
LEAVE, SCALE, ZERO = 0, 1, 2


@dataclass(frozen=True, slots=True)
class DType:
    """A storage type. ``view`` is the NumPy dtype its memory is looked at through."""

    name: str
    itemsize: int
    view: np.dtype[Any]
    largest: float
    """The largest finite value."""
    smallest: float
    """The smallest positive value, a subnormal."""
    roundoff: float
    """Half an ulp of 1."""
    has_infinity: bool = True
    """Whether what is too large becomes an infinity; NaN otherwise, and so does an infinity."""

    @property
    def coded(self) -> bool:
        """Whether NumPy has no such type: memory is then looked at as unsigned integers, its bits."""
        return self.view.kind == "u"

    def __str__(self) -> str:
        return self.name


FLOAT16 = DType("float16", 2, np.dtype(np.float16), 65504.0, 2.0**-24, 2.0**-11)
BFLOAT16 = DType("bfloat16", 2, np.dtype(np.uint16), 255.0 * 2.0**120, 2.0**-133, 2.0**-8)
FLOAT32 = DType("float32", 4, np.dtype(np.float32), (2.0**24 - 1) * 2.0**104, 2.0**-149, 2.0**-24)
FLOAT64 = DType("float64", 8, np.dtype(np.float64), float(np.finfo(np.float64).max), 5e-324, 2.0**-53)
# OCP 8-bit floating point, https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1
FLOAT8_E4M3FN = DType("float8_e4m3fn", 1, np.dtype(np.uint8), 448.0, 2.0**-9, 2.0**-4, has_infinity=False)
FLOAT8_E5M2 = DType("float8_e5m2", 1, np.dtype(np.uint8), 57344.0, 2.0**-16, 2.0**-3)
BASE_DTYPES = {dtype.name: dtype for dtype in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)}
"""The storage types that every backend serves."""
DTYPES = {**BASE_DTYPES, **{dtype.name: dtype for dtype in (FLOAT8_E4M3FN, FLOAT8_E5M2)}}
"""All storage types; a backend that does not serve one that is not in ``BASE_DTYPES`` says so."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Dense memory: ``rows`` rows of ``length`` elements, end to end, starting at ``pointer``.

    ``owner`` keeps the memory alive; a backend never looks at it, unless it ``takes_arrays``: it then
    works through ``owner.array``, and the buffer is the elements of that array with its axes in
    ``order``, in C order. Only such a backend is given memory that is not ``dense``. On a device, work on the memory
    is put on ``stream``, the producer's current one (a CUDA stream's address; 1 is the default
    stream), and ``lent`` memory has to be kept alive until that work has run, because its
    producer does not know of it (DLPack).
    """

    pointer: int
    length: int
    dtype: DType
    rows: int = 1
    device: str = "cpu"
    owner: object = None
    stream: int = 0
    lent: bool = False
    order: tuple[int, ...] = ()
    dense: bool = True
    shared: Any = None
    """Where other processes hold the rest of the array: its ``sharded.Shared``. No backend looks at it."""

    def as_numpy(self) -> npt.NDArray[Any]:
        """The memory as a writable ``(rows, length)`` view, without a copy. Host memory only."""
        if self.length * self.rows == 0:
            return np.empty((self.rows, self.length), self.dtype.view)
        return host_view(self.pointer, (self.rows, self.length), self.dtype.view, self.owner)


class Manifest(Sequence[Buffer]):
    """Dense host memory as NumPy arrays with an entry per segment: the same as a list of buffers, but for
    thousands of small ones. A backend that looks at no more than ``Sequence[Buffer]`` is served all the same.

    ``codes`` are places in ``DTYPES``; ``owners`` keep the memory alive. ``rows``: how many segments each array
    has, at least one; None: one each.
    """

    __slots__ = ("_starts", "codes", "distinct", "lengths", "owners", "pointers", "rows")

    def __init__(
        self,
        pointers: npt.NDArray[np.uint64],
        lengths: IntArray,
        codes: IntArray,
        owners: Sequence[object],
        rows: IntArray | None = None,
    ) -> None:
        self.pointers, self.lengths, self.codes, self.owners, self.rows = pointers, lengths, codes, owners, rows
        self._starts = None if rows is None else np.cumsum(rows) - rows
        of_arrays = codes if self._starts is None else codes[self._starts]
        self.distinct = [_BY_CODE[code] for code in sorted(set(of_arrays.tolist()))]
        """The storage types that there are, in the order of ``DTYPES``."""

    def __len__(self) -> int:
        return len(self.owners)

    @overload
    def __getitem__(self, i: int) -> Buffer: ...
    @overload
    def __getitem__(self, i: slice) -> list[Buffer]: ...
    def __getitem__(self, i: int | slice) -> Buffer | list[Buffer]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        rows, owner = 1, self.owners[i]
        if self.rows is not None and self._starts is not None:
            rows, i = int(self.rows[i]), int(self._starts[i])
        return Buffer(int(self.pointers[i]), int(self.lengths[i]), _BY_CODE[self.codes[i]], rows, owner=owner)

    @property
    def dtypes(self) -> list[DType]:
        """The storage type of each."""
        return [_BY_CODE[code] for code in self.codes.tolist()]


_BY_CODE = list(DTYPES.values())
_ITEMSIZES = np.array([dtype.itemsize for dtype in DTYPES.values()], np.int64)


def by_rows(
    pointers: npt.NDArray[np.uint64], lengths: IntArray, codes: IntArray, rows: IntArray
) -> tuple[npt.NDArray[np.uint64], IntArray, IntArray]:
    """Pointers, lengths and codes of segments, from those of arrays of ``rows`` rows of ``lengths`` elements each."""
    strides = (lengths * _ITEMSIZES[codes]).astype(np.uint64)
    # Numbered through, the rows of an array would be these if it began so many rows earlier.
    origins = pointers - (np.cumsum(rows) - rows).astype(np.uint64) * strides
    row = np.arange(rows.sum(), dtype=np.uint64)
    return (
        np.repeat(origins, rows) + row * np.repeat(strides, rows),
        np.repeat(lengths, rows),
        np.repeat(codes, rows),
    )


class _HostMemory:
    """NumPy's own protocol for foreign memory."""

    def __init__(self, interface: dict[str, Any], owner: object) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def host_view(
    pointer: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    owner: object,
    strides: tuple[int, ...] | None = None,
) -> npt.NDArray[Any]:
    """Host memory as a writable array that keeps ``owner`` alive. ``strides`` are in bytes."""
    interface = {"data": (pointer, False), "shape": shape, "typestr": dtype.str, "strides": strides, "version": 3}
    return np.asarray(_HostMemory(interface, owner))


@dataclass(frozen=True, slots=True)
class What:
    """What ``measure`` is to sum over each segment.

    ``power`` 2 asks for the sum of x², 1 for the sum of abs(x), and any other p for the sum of
    (abs(x)/m)^p, where m is the segment's entry of ``units``. ``exponents`` (float64 only) asks
    for the sums of x·2^-e. ``sanitize`` replaces NaN by 0 and ±inf by ± the largest finite value
    before anything is summed. ``carry`` (float64, power 1 or 2) asks for what rounding took from
    the sums. ``bounds``, a low and a high for each segment, asks how many elements
    lie outside.
    """

    power: float = 2.0
    exponents: IntArray | None = None
    units: FloatArray | None = None
    sanitize: bool = False
    carry: bool = False
    bounds: tuple[FloatArray, FloatArray] | None = None


@dataclass(frozen=True, slots=True)
class Measurements:
    """What one read pass brings back, an entry per segment.

    Sums add, ``largest`` takes the maximum, counts add: measurements of shards can be merged.
    ``largest`` is the largest *finite* magnitude, 0 where there is none. ``sums`` follow IEEE
    arithmetic: infinite where an infinity, NaN where a NaN was summed. ``carries`` and ``outside``
    are zero unless ``What`` asked for them; ``sums + carries`` is the exact sum but for 2^-90.
    """

    sums: FloatArray
    largest: FloatArray
    infs: IntArray
    nans: IntArray
    outside: IntArray
    carries: FloatArray

    @classmethod
    def empty(cls, segments: int) -> Measurements:
        """Zeros for ``segments`` segments, for a backend to fill in."""
        infs, nans, outside = (np.zeros(segments, np.int64) for _ in range(3))
        return cls(np.zeros(segments), np.zeros(segments), infs, nans, outside, np.zeros(segments))


@dataclass(frozen=True, slots=True)
class Actions:
    """What ``apply`` is to do to each segment: ``y = clamp(x·factor, low, high)``.

    ``op``: LEAVE (in place: touch nothing; out of place: copy), SCALE, or ZERO (assign +0).
    float64 memory takes ``factor``; all other memory takes ``coarse`` and then ``fine``, two
    float32 multipliers whose product is exactly ``factor``, and rounds to float32 after each.
    ``low`` and ``high`` are values of the segment's own dtype, or infinite. NaN stays NaN.
    ``sanitize``: as in ``What``, before the multiplication.
    """

    op: npt.NDArray[np.uint8]
    factor: FloatArray
    coarse: npt.NDArray[np.float32]
    fine: npt.NDArray[np.float32]
    low: FloatArray
    high: FloatArray
    sanitize: bool = False


@dataclass(frozen=True, slots=True)
class Scopes:
    """Who shares a threshold: ``ids[segment]`` is a scope, ``limits[scope]`` its max_norm."""

    ids: IntArray
    limits: FloatArray


@dataclass(frozen=True, slots=True)
class Request:
    """What a call needs of a backend, for ``not_supported_reasons``.

    ``frameworks`` are the top-level modules of the arrays' types, told where the arrays are on a device.
    """

    devices: frozenset[str]
    dtypes: frozenset[str]
    frameworks: frozenset[str] = frozenset()


@runtime_checkable
class Backend(Protocol):
    """A backend serves one kind of memory. It never decides anything.

    A backend for host memory that also makes projections has an attribute ``projections``: the
    address ``"package.module:OBJECT"`` of its ``gradclip_core.forms.Passes``, imported when the
    first projection asks for them, or that object itself. One that also makes optimizers' updates has in
    the same way ``optimizers``, of its ``gradclip_core.updates.Updates``.

    One whose compiled code can look at many arrays at once has ``read_arrays``: a list of arrays of one type ->
    their ``Manifest``, or None where one of them is not plain dense host memory (``arrays/express.py``), or is
    read-only, unless they are ``only_read``.

    One that also works on arrays without memory, by their framework's own operations, has ``operations``, a
    ``gradclip_core.operations.Operations``.
    """

    name: str

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why this backend cannot serve the request, each a sentence. Empty: it can."""
        ...

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """One read pass."""
        ...

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """One write pass, from ``buffers`` to ``out``; ``out[i]`` may be the memory of ``buffers[i]``."""
        ...


def segments(buffers: Sequence[Buffer]) -> int:
    """How many segments the buffers have together."""
    return buffers.lengths.size if isinstance(buffers, Manifest) else sum(buffer.rows for buffer in buffers)
