"""Where things are: rows in a table, columns in a record, and the block of 4096 elements that a warp is to sum."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradclip_backends.gpu.layout import COLUMNS, ROW, STATE, state_offset
from gradclip_backends.numba_cuda.elements import load_32, load_64
from gradclip_backends.numba_cuda.jit import device

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(4)
LEAVE, SCALE, ZERO = range(3)

# Numba compiles what is a number when it is read: so every offset has a name of its own here.
_NUMBERS = [name for name, kind in COLUMNS if kind[1:] == "8"]
SUMS, LARGEST, CARRIES, UNITS, EXPONENTS, INFS, NANS, OUTSIDE, FACTOR, LOW, HIGH = (
    _NUMBERS.index(name)
    for name in (
        *("sums", "largest", "carries", "units", "exponents", "infs", "nans", "outside"),
        *("factor", "low", "high"),
    )
)
_STATE_BYTES = STATE.itemsize
_COARSE = 8 * len(_NUMBERS)
_FINE, _OP = _COARSE + 4, _COARSE + 8
assert [name for name, _ in COLUMNS[len(_NUMBERS) :]] == ["coarse", "fine", "op"]

AT_INVERSE = state_offset("inverse")
AT_NONFINITE = state_offset("nonfinite")
AT_RESCALE = state_offset("rescale")
AT_CARRY = state_offset("carry")
AT_SKIP = state_offset("skip")
AT_ACTS = state_offset("acts")
AT_CLIPPED = state_offset("clipped")
AT_ERROR = state_offset("error")

assert ROW.fields is not None
_ROW_BYTES = ROW.itemsize
_POINTER, _TARGET, _LENGTH, _FIRST_BLOCK, _FIRST_SEGMENT, _ROWS, _DTYPE = (
    int(ROW.fields[name][1])
    for name in ("pointer", "target", "length", "first_block", "first_segment", "rows", "dtype")
)


# ---- records -------------------------------------------------------------------------------------


@device
def at(record: Any, column: Any, segment: Any) -> Any:
    """The address of a segment's entry in a column of numbers or counts."""
    return record.address + _STATE_BYTES + 8 * (column * record.segments + segment)


@device
def at_coarse(record: Any, segment: Any) -> Any:
    """The address of a segment's first multiplier."""
    return record.address + _STATE_BYTES + _COARSE * record.segments + 4 * segment


@device
def at_fine(record: Any, segment: Any) -> Any:
    """The address of a segment's second multiplier."""
    return record.address + _STATE_BYTES + _FINE * record.segments + 4 * segment


@device
def at_op(record: Any, segment: Any) -> Any:
    """The address of what is done to a segment."""
    return record.address + _STATE_BYTES + _OP * record.segments + segment


@device
def closed(gate: Any) -> Any:
    """Whether a pass has nothing to do: ``gate`` is the address of a flag that has to be set, or 0."""
    return gate != 0 and load_32(gate) == 0


# ---- rows ----------------------------------------------------------------------------------------


@device
def find_row_of_block(rows: Any, count: Any, block: Any) -> Any:
    """The address of the last row that begins at or before a block.

    Rows without elements begin where the next one does, so they are never the last.
    """
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) >> 1
        if load_64(rows.address + middle * _ROW_BYTES + _FIRST_BLOCK) <= block:
            low = middle
        else:
            high = middle
    return rows.address + low * _ROW_BYTES


@device
def find_row_of_segment(rows: Any, count: Any, segment: Any) -> Any:
    """The address of the last row that begins at or before a segment."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) >> 1
        if load_32(rows.address + middle * _ROW_BYTES + _FIRST_SEGMENT) <= segment:
            low = middle
        else:
            high = middle
    return rows.address + low * _ROW_BYTES


@device
def dtype_of_row(row: Any) -> Any:
    """The code of a row's storage type."""
    return load_32(row + _DTYPE)


@device
def length_of_row(row: Any) -> Any:
    """How many elements each of a row's segments has."""
    return load_64(row + _LENGTH)


class Place(NamedTuple):
    """Where a block of 4096 elements belongs."""

    pointer: Any
    """Of its first element."""
    target: Any
    segment: Any
    first: Any
    """The segment's first block, among those of all buffers."""
    number: Any
    """This block, among those of its segment."""
    blocks: Any
    """The segment's."""
    n: Any
    """Elements here."""
    dtype: Any


@device
def size_shift(dtype: Any) -> Any:
    """2^shift bytes are an element."""
    if dtype == FLOAT64:
        return 3
    return 2 if dtype == FLOAT32 else 1


@device
def find_block(rows: Any, count: Any, block: Any) -> Any:
    """Where it belongs, of the blocks of all buffers."""
    row = find_row_of_block(rows, count, block)
    length = load_64(row + _LENGTH)
    blocks = (length + 4095) >> 12
    within = block - load_64(row + _FIRST_BLOCK)
    which = within
    # A 64-bit division takes a hundred instructions, and is needed for rows of a matrix alone.
    if load_32(row + _ROWS) == 1:
        which = 0
    elif blocks != 1:
        which = within // blocks
    number = within - which * blocks
    dtype = load_32(row + _DTYPE)
    done = number << 12
    offset = (which * length + done) << size_shift(dtype)
    return Place(
        load_64(row + _POINTER) + offset,
        load_64(row + _TARGET) + offset,
        load_32(row + _FIRST_SEGMENT) + which,
        block - number,
        number,
        blocks,
        min(length - done, 4096),
        dtype,
    )
