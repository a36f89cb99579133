"""The dock, NumPy: every way in which an ndarray's memory can be something else than it seems."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import gradclip_core as gc
from gradclip_core.arrays.layout import flatten_memory
from gradclip_core.arrays.numpy_door import DOOR
from tests.refusals import check_sentence

Array = npt.NDArray[Any]
DTYPES = ["float16", "float32", "float64", "complex64", "complex128"]


@contextmanager
def refuses(
    error: type[gc.GradClipError], seen: str, cure: str, *, at: str = "array '1'", untouched: Sequence[Array] = ()
) -> Iterator[None]:
    """The class, the three parts of its sentence, and that no byte of ``untouched`` changes."""
    before = [array.tobytes() for array in untouched]
    with pytest.raises(error) as caught:
        yield
    check_sentence(caught.value, error, at, seen, cure)
    assert [array.tobytes() for array in untouched] == before


def good() -> Array:
    """An array that a clip to 1 would certainly write."""
    return np.array([30.0, 40.0], np.float32)


def numbered(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    values = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float64).reshape(shape)
    return (values * (1 + 2j) if dtype.startswith("complex") else values).astype(dtype)


# ------------------------------------------------------------------------------- memory in place


def test_read_only_memory_is_refused_in_place_and_served_out_of_place() -> None:
    first, bad = good(), good()
    bad.flags.writeable = False
    with refuses(gc.ReadOnlyError, "its writeable flag is off", "Use clip_by_norm,", untouched=[first, bad]):
        gc.clip_by_norm_([first, bad], 1.0)
    clipped, _ = gc.clip_by_norm([first, bad], 1.0)
    assert np.linalg.norm(clipped[1]) <= 1
    assert clipped[1].flags.writeable
    assert gc.global_norm([first, bad]) == np.sqrt(5000.0)


@pytest.mark.parametrize(
    "view",
    [
        lambda base: as_strided(base, (4, 2), (0, 0)), lambda base: as_strided(base, (4, 2), (0, 4)),
        lambda base: as_strided(base, (4, 2), (4, 4)), lambda base: sliding_window_view(base, 2, writeable=True),
        lambda base: as_strided(base[4:], (4, 2), (-4, 4)), lambda base: as_strided(base, (9,), (2,)),
    ],
    ids=["scalar", "row", "overlapping-rows", "sliding-window", "backwards", "half-an-element"],
)  # fmt: skip
def test_an_array_that_overlaps_itself(view: Any) -> None:
    first, base = good(), np.full(8, 3, np.float32)
    bad = view(base)
    with refuses(gc.UnsafeMemoryError, "are the same memory", "which returns new arrays", untouched=[first, base]):
        gc.clip_by_norm_([first, bad], 1.0)
    (_, clipped), info = gc.clip_by_norm([first, bad], 1.0)
    assert info.norms["1"] == pytest.approx(np.linalg.norm(bad.astype(np.float64)), rel=1e-15)
    assert not np.shares_memory(clipped, base)
    assert np.linalg.norm(clipped.astype(np.float64)) <= 1
    np.testing.assert_array_equal(base, np.full(8, 3, np.float32))


def test_a_read_only_broadcast_is_read_only_first() -> None:
    bad = np.broadcast_to(np.float32(3), (4,))
    with refuses(gc.ReadOnlyError, "writeable flag", "clip_by_value,", at="array '0'"):
        gc.clip_by_value_([bad], 1.0)
    clipped, _ = gc.clip_by_value([bad], 1.0)
    np.testing.assert_array_equal(clipped[0], np.ones(4, np.float32))


# ------------------------------------------------------------------- strided memory, written back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "index",
    [np.s_[::2, :], np.s_[:, 1:3], np.s_[::-1, ::-1], np.s_[1:4:2, ::3], np.s_[2, ::-1], np.s_[:, 1]],
    ids=["rows", "columns", "reversed", "both", "backwards", "column"],
)
def test_strided_views_are_written_back_and_their_neighbours_are_not(dtype: str, index: Any) -> None:
    whole = numbered((5, 4), dtype)
    untouched = whole.copy()
    view = whole[index]
    expected, _ = gc.clip_by_global_norm([view.copy()], 1.0, backend="numpy")
    packed = flatten_memory(DOOR.dock(view))
    assert packed.packed is not None
    assert not np.shares_memory(packed.packed, whole)

    info = gc.clip_by_global_norm_([view], 1.0)
    assert info.clipped
    np.testing.assert_array_equal(view, expected[0])
    outside = np.ones(whole.shape, bool)
    outside[index] = False
    np.testing.assert_array_equal(whole[outside], untouched[outside])
    assert outside.sum() == whole.size - view.size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda a: a, lambda a: a.T, np.asfortranarray, lambda a: a.transpose(1, 2, 0), lambda a: np.moveaxis(a, 0, 1),
        lambda a: a[:, None], lambda a: a.reshape(-1),
    ],
    ids=["C", "T", "F", "permuted", "moved", "new-axis", "flat"],
)  # fmt: skip
def test_dense_memory_in_any_order_of_axes_goes_through_without_a_copy(dtype: str, make: Any) -> None:
    array = make(numbered((2, 3, 4), dtype))
    flat = flatten_memory(DOOR.dock(array))
    assert flat.packed is None
    assert flat.buffer.pointer == array.__array_interface__["data"][0]
    assert flat.buffer.length * flat.buffer.dtype.itemsize == array.nbytes
    before = array.copy(order="K")
    clipped, _ = gc.clip_by_global_norm([array], 1.0)
    assert clipped[0].strides == np.empty_like(array).strides
    np.testing.assert_array_equal(array, before)
    gc.clip_by_global_norm_([array], 1.0)
    np.testing.assert_array_equal(array, clipped[0])
    assert 0.99 < np.linalg.norm(array.astype(np.complex128)) <= 1 + 2.0**-11


# ------------------------------------------------------------------------------ two arrays, one memory


def test_interleaved_views_share_an_extent_but_no_element() -> None:
    a = np.array([3.0, 30.0, 4.0, 40.0], np.float32)
    info = gc.clip_by_norm_([a[::2], a[1::2]], 5.0)
    assert info.norms == {"0": 5.0, "1": 50.0}
    assert a[0] == 3.0
    assert a[2] == 4.0
    np.testing.assert_allclose(a[1::2], [3.0, 4.0], rtol=1e-6)


def test_columns_of_one_matrix_are_arrays_of_their_own() -> None:
    matrix = numbered((6, 5))
    whole = matrix.copy()
    expected, info = gc.clip_by_global_norm(whole, 1.0, backend="numpy")
    parts = [matrix[:, :2], matrix[:, 2:4], matrix[:, 4:]]
    assert gc.clip_by_global_norm_(parts, 1.0).norm == pytest.approx(info.norm, rel=1e-15)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)


def test_a_tied_array_is_measured_and_scaled_once_and_stays_one() -> None:
    tied, other = np.array([3.0, 4.0]), np.array([12.0])
    again = tied[:]  # another object, the same elements
    clipped, info = gc.clip_by_global_norm({"in": tied, "mid": other, "out": tied, "again": again}, 6.5)
    assert info.norm == 13.0
    assert clipped["in"] is clipped["out"] is clipped["again"]
    assert info.norms == {"in": 5.0, "mid": 12.0, "out": 5.0, "again": 5.0}
    np.testing.assert_array_equal(tied, [3.0, 4.0])
    assert gc.clip_by_global_norm_({"in": tied, "mid": other, "out": tied, "again": again}, 6.5).norm == 13.0
    np.testing.assert_array_equal(tied, clipped["in"])
    np.testing.assert_allclose(tied, [1.5, 2.0], rtol=1e-15)


@pytest.mark.parametrize("swap", [False, True])
def test_a_read_only_view_of_a_writable_array_is_refused_in_either_order(swap: bool) -> None:
    array = good()
    view = array[:]
    view.flags.writeable = False
    before = array.tobytes()
    with pytest.raises((gc.ReadOnlyError, gc.UnsafeMemoryError)):
        gc.clip_by_norm_([view, array] if swap else [array, view], 1.0)
    assert array.tobytes() == before


@pytest.mark.parametrize(
    "views",
    [
        lambda a: (a, a[1:]), lambda a: (a[:3], a[2:]), lambda a: (a, a.reshape(2, 3)), lambda a: (a, a[::-1]),
        lambda a: (a.reshape(2, 3), a.reshape(2, 3).T), lambda a: (a[::2], a[::3]), lambda a: (a, a.view(np.complex64)),
        lambda a: (a, a.view(np.float16)), lambda a: (a[:4], a.view(np.uint8)[3:7].view(np.float32)),
    ],
    ids=["tail", "middle", "shape", "reversed", "transposed", "every-other", "complex", "half", "unaligned"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_the_same_memory_through_different_views_is_refused(views: Any, name: str) -> None:
    base, first = numbered((6,)), good()
    one, two = views(base)
    with refuses(
        gc.UnsafeMemoryError,
        "they share memory without being the same array",
        "Pass the array that holds both, or copies",
        at="arrays '1' and '2'",
        untouched=[first, base],
    ):
        getattr(gc, name)([first, one, two], 1.0)


# ---------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint64", "bool", "object", "f4,f4", "U3", "S4", "M8[s]", "V4"])
@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_dtypes_that_are_no_gradients(dtype: str, name: str) -> None:
    first, bad = good(), np.zeros(3, dtype)
    untouched = [first] if dtype == "object" else [first, bad]
    with refuses(
        gc.UnsupportedArrayError,
        f"dtype {bad.dtype.name} is no gradient's dtype",
        "Convert to one of",
        untouched=untouched,
    ):
        getattr(gc, name)([first, bad], 1.0)


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_long_double_is_refused_where_it_is_longer(dtype: Any) -> None:
    if np.dtype(dtype).itemsize == np.dtype(dtype(0).real).itemsize == 8:
        pytest.skip("long double is double here")
    first, bad = good(), np.ones(3, dtype)
    with refuses(gc.UnsupportedArrayError, "is no gradient's dtype", "float64", untouched=[first, bad]):
        gc.clip_by_norm_([first, bad], 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_foreign_byte_order_is_refused(dtype: str) -> None:
    first, bad = good(), np.full(3, 3.0, dtype).astype(np.dtype(dtype).newbyteorder("S"))
    with refuses(gc.UnsupportedArrayError, "not in this machine's byte order", "newbyteorder", untouched=[first, bad]):
        gc.clip_by_norm_([first, bad], 1.0)
    native = bad.astype(bad.dtype.newbyteorder("="))  # the cure works
    assert gc.clip_by_norm_([first, native], 1.0).clipped


def test_bfloat16_of_ml_dtypes_is_served() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.array([3.0, 4.0, 0.0], ml_dtypes.bfloat16)
    clipped, info = gc.clip_by_norm([a, a.reshape(3, 1)[:, 0].copy()[::-1]], 1.0)
    assert info.norms == {"0": 5.0, "1": 5.0}
    assert clipped[0].dtype == a.dtype
    np.testing.assert_allclose(clipped[0].astype(float), [0.6, 0.8, 0.0], rtol=2**-8)
    np.testing.assert_array_equal(a.astype(float), [3.0, 4.0, 0.0])
    gc.clip_by_norm_([a], 1.0)
    assert a.tobytes() == clipped[0].tobytes()


@pytest.mark.parametrize("name", ["float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e5m2fnuz"])
def test_other_types_of_8_bits_are_refused(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    first, bad = good(), np.ones(3, getattr(ml_dtypes, name))
    seen = f"dtype {name} is not served: of the types of 8 bits float8_e4m3fn and float8_e5m2 are"
    with refuses(gc.UnsupportedArrayError, seen, "Convert to float32", untouched=[first]):
        gc.clip_by_norm_([first, bad], 1.0)
    np.testing.assert_array_equal(bad.astype(float), np.ones(3))


# ------------------------------------------------------------------------------- kinds of ndarray


class Diagonal(np.ndarray[Any, Any]):
    """A subclass whose memory could mean anything."""


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_masked_arrays_are_refused(name: str) -> None:
    first, bad = good(), np.ma.MaskedArray(good(), mask=[False, True])
    with refuses(gc.UnsupportedArrayError, "it is a masked array", "x.filled(0)", untouched=[first, bad.data]):
        getattr(gc, name)([first, bad], 1.0)
    assert gc.clip_by_norm([first, bad.filled(0)], 1.0)[1].norms["1"] == 30.0


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("make", [lambda a: a.view(Diagonal), lambda a: np.matrix(a), lambda a: a.view(np.recarray)])
def test_subclasses_are_refused_and_the_cure_shares_their_memory(make: Any) -> None:
    first, bad = good(), make(good())
    with refuses(
        gc.UnsupportedArrayError, f"it is a {type(bad).__name__}", "Pass np.asarray(x)", untouched=[first, bad]
    ):
        gc.clip_by_norm_([first, bad], 1.0)
    gc.clip_by_norm_([np.asarray(bad)], 1.0)
    assert np.linalg.norm(np.asarray(bad)) <= 1


def test_memory_maps_are_written_through(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gradients"
    mapped = np.memmap(path, np.float32, "w+", shape=(4,))
    mapped[:] = [3, 4, 0, 0]
    gc.clip_by_norm_([mapped[:2], mapped[2:]], 1.0)
    mapped.flush()
    np.testing.assert_allclose(np.fromfile(path, np.float32), [0.6, 0.8, 0, 0], rtol=1e-6)
    frozen = np.memmap(path, np.float32, "r")
    with refuses(gc.ReadOnlyError, "writeable flag", "Use clip_by_norm,", at="array '0'", untouched=[frozen]):
        gc.clip_by_norm_([frozen], 0.1)
    assert type(gc.clip_by_norm([frozen], 0.1)[0][0]) is np.ndarray


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory_is_packed_and_written_back(dtype: str) -> None:
    itemsize = np.dtype(dtype).itemsize
    memory = bytearray(b"\x7f" * (2 * itemsize + 2))
    view = np.frombuffer(memory, dtype, 2, offset=1)
    view[:] = [3, 4]
    assert flatten_memory(DOOR.dock(view)).packed is not None
    info = gc.clip_by_norm_([view], 1.0)
    assert info.norm == 5.0
    np.testing.assert_allclose(view, [0.6, 0.8], rtol=1e-3)
    assert memory[0] == memory[-1] == 0x7F


def test_arrays_without_axes_and_without_elements() -> None:
    point, none = np.array(-5.0, np.float32), np.empty((0, 3), np.float64)
    clipped, info = gc.clip_by_norm([point, none, none[:, :1]], 1.0)
    assert [a.shape for a in clipped] == [(), (0, 3), (0, 1)]
    assert type(clipped[0]) is np.ndarray
    assert info.norms == {"0": 5.0, "1": 0.0, "2": 0.0}
    gc.clip_by_norm_([point, none], 1.0)
    assert -1 <= point < -0.9999
    assert gc.clip_by_norm_([none], 1.0).clipped is False
    assert gc.clip_by_norm_([], 1.0).norm == 0.0


def test_numpy_scalars_are_served_out_of_place_alone() -> None:
    first = good()
    clipped, _ = gc.clip_by_norm([first, np.float32(-5)], 1.0)
    assert type(clipped[1]) is np.float32
    assert -1 <= clipped[1] < -0.9999
    with refuses(gc.ReadOnlyError, "a NumPy scalar is immutable", "Use clip_by_norm,", untouched=[first]):
        gc.clip_by_norm_([first, np.float32(-5)], 1.0)


def test_out_of_place_results_share_no_memory_with_the_gradients() -> None:
    arrays = [good(), good()[::-1], np.zeros(3), numbered((2, 3)).T, np.asfortranarray(numbered((2, 3)))]
    for limit in (1e9, 1.0, 0.0):
        clipped, _ = gc.clip_by_global_norm(arrays, limit)
        for new, old in zip(clipped, arrays, strict=True):
            assert not np.shares_memory(new, old)
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            if limit == 1e9:
                np.testing.assert_array_equal(new, old)
