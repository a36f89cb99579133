"""The structs that kernels read, field by field as in cupy_raw/kernels/*.cuh, and where a record's arrays are."""

from __future__ import annotations

import numpy as np

from gradclip_core.errors import BackendError
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType

BLOCK = 4096
"""Elements that one warp sums."""
WARPS = 8
THREADS = 32 * WARPS
INLINE_ROWS = 80
"""As many rows go with a launch, in the 4096 bytes that parameters may take on every driver."""

DTYPE_CODES: dict[DType, int] = {FLOAT16: 0, BFLOAT16: 1, FLOAT32: 2, FLOAT64: 3}


def code_of(dtype: DType) -> int:
    """What kernels know the type by. Gradients were asked for beforehand; weights and loss scales come with them."""
    if dtype not in DTYPE_CODES:
        raise BackendError("a GPU backend", f"it has no {dtype}", "Convert the array to float32")
    return DTYPE_CODES[dtype]


# Every struct is laid out so that no padding is needed.
ROW = np.dtype(
    [
        ("pointer", "u8"),
        ("target", "u8"),
        ("length", "u8"),
        ("first_block", "u8"),
        ("first_segment", "u4"),
        ("rows", "u4"),
        ("dtype", "u4"),
        ("unused", "u4"),
    ]
)
ROWS_BY_VALUE = np.dtype([("rows", ROW, (INLINE_ROWS,))])
ROWS_IN_MEMORY = np.dtype([("address", "u8")])
NODES = np.dtype([("address", "u8"), ("blocks", "u8"), ("capacity", "u8")])
RECORD = np.dtype([("address", "u8"), ("segments", "u8")])
SCALE = np.dtype([("inverse", "f8"), ("address", "u8"), ("dtype", "u4"), ("unused", "u4")])
PASS = np.dtype(
    [
        ("nodes", NODES),
        ("record", RECORD),
        ("gate", "u8"),
        ("buffers", "u4"),
        ("options", "u4"),
        ("scale", SCALE),
        ("low", "f8", (4,)),
        ("high", "f8", (4,)),
    ]
)
GROUP = np.dtype(
    [("limit", "f8"), ("size", "f8"), ("start", "u4"), ("count", "u4"), ("narrow", "u4"), ("unused", "u4")]
)
RULE = np.dtype(
    [
        ("record", RECORD),
        ("scale", SCALE),
        ("order", "f8"),
        ("one", GROUP),
        ("limits", "u8"),
        ("groups", "u8"),
        ("members", "u8"),
        ("weights", "u8"),
        ("clipping", "f8"),
        ("eps", "f8"),
        ("previous", "u8"),
        ("kind", "u4"),
        ("policy", "u4"),
        ("scopes", "u4"),
        ("buffers", "u4"),
        ("symmetric", "u4"),
        ("unused", "u4"),
        ("low", "f8", (4,)),
        ("high", "f8", (4,)),
    ]
)
MOST_AXES = 32
STRIDED = np.dtype(
    [
        ("strided", "u8"),
        ("dense", "u8"),
        ("count", "u8"),
        ("shape", "i8", (MOST_AXES,)),
        ("strides", "i8", (MOST_AXES,)),
        ("axes", "u4"),
        ("itemsize", "u4"),
    ]
)

SANITIZE, BOUNDS, OWN_BOUNDS = 1, 2, 4
POLICY_CODES = {"raise": 0, "skip": 1, "zero": 2, "sanitize": 3, "propagate": 4}
ONE, EACH, GROUPS, VALUE = range(4)

STATE = np.dtype(
    [
        ("inverse", "f8"),
        ("nonfinite", "u8"),
        ("rescale", "u4"),
        ("carry", "u4"),
        ("skip", "u4"),
        ("acts", "u4"),
        ("clipped", "u4"),
        ("error", "u4"),
        ("unused", "u4", (4,)),
    ]
)
FAULTS = {0: "", 1: "loss_scale", 2: "weights"}

# An entry a segment, in this order behind the state.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("sums", "f8"),
    ("largest", "f8"),
    ("carries", "f8"),
    ("units", "f8"),
    ("exponents", "i8"),
    ("infs", "i8"),
    ("nans", "i8"),
    ("outside", "i8"),
    ("factor", "f8"),
    ("low", "f8"),
    ("high", "f8"),
    ("coarse", "f4"),
    ("fine", "f4"),
    ("op", "u1"),
)


def record_bytes(segments: int) -> int:
    """The size of a record, in whole 16 bytes."""
    return -(-(STATE.itemsize + segments * sum(np.dtype(kind).itemsize for _, kind in COLUMNS)) // 16) * 16


def column_offset(name: str, segments: int) -> int:
    """Where a record's array begins."""
    offset = STATE.itemsize
    for column, kind in COLUMNS:
        if column == name:
            return offset
        offset += segments * np.dtype(kind).itemsize
    raise KeyError(name)


def state_offset(field: str) -> int:
    """Where a field of the state is."""
    assert STATE.fields is not None
    return int(STATE.fields[field][1])


def nodes_bytes(capacity: int) -> int:
    """A counter for each node, then their sums, then their largest magnitudes or carries."""
    return 20 * capacity
