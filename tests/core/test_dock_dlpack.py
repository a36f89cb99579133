"""The generic door: hand-made objects with ``__dlpack__``, well-behaved and not."""

from __future__ import annotations

import ctypes
import gc as garbage
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core.arrays import dlpack_door as door
from gradclip_core.arrays.layout import flatten_memory
from tests.refusals import check_sentence

Array = npt.NDArray[Any]
CPU, CUDA, PINNED = (1, 0), (2, 1), (3, 0)


class Versioned:
    """A writable array of an unknown framework."""

    device: tuple[int, int] = CPU

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any:
        return self.array.__dlpack__(max_version=max_version)

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(asarray=type(self))


class Legacy(Versioned):
    """One that has never heard of ``max_version``: JAX, TensorFlow and MLX export like this."""

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self.array.__dlpack__()


class Export(Versioned):
    """One whose capsule is made by hand, field by field."""

    def __init__(self, array: Array, edit: Callable[[Any], None], name: bytes = b"dltensor_versioned") -> None:
        super().__init__(array)
        self.name = name
        self.managed = door._ManagedVersioned(major=1, minor=1) if name != b"dltensor" else door._Managed()
        tensor = self.managed.tensor
        tensor.data, tensor.ndim = array.ctypes.data, array.ndim
        tensor.device.kind = 1
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = 2, 8 * array.itemsize, 1
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor.shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        edit(self.managed)

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(asarray=Versioned)

    def __dlpack__(self, **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), self.name, None)


@contextmanager
def refuses(
    error: type[gc.GradClipError], seen: str, cure: str, untouched: Sequence[Array] = (), at: str = "array '1'"
) -> Iterator[None]:
    """The class, the three parts of its sentence, and that no byte of ``untouched`` changes."""
    before = [array.tobytes() for array in untouched]
    with pytest.raises(error) as caught:
        yield
    check_sentence(caught.value, error, at, seen, cure)
    assert [array.tobytes() for array in untouched] == before


def good() -> Array:
    return np.array([30.0, 40.0], np.float32)


def edit_tensor(**fields: Any) -> Callable[[Any], None]:
    def edit(managed: Any) -> None:
        for name, value in fields.items():
            *way, last = name.split("__")
            target = managed
            for part in way:
                target = getattr(target, part)
            setattr(target, last, value)

    return edit


# -------------------------------------------------------------------------------------- served


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("index", [np.s_[:], np.s_[::2], np.s_[::-1]])
def test_versioned_capsules_are_written_in_place(dtype: str, index: Any) -> None:
    memory = np.array([3, 0, 4, 0, 12, 0], dtype)
    view, kept = memory[index], memory.copy()
    docked = door.DOOR.dock(Versioned(view))
    assert docked.pointer == view.__array_interface__["data"][0]
    assert docked.strides == view.strides
    assert (flatten_memory(docked).packed is None) == (view.strides == (view.itemsize,))
    info = gc.clip_by_global_norm_([Versioned(view)], 6.5)
    assert info.norm == 13.0
    np.testing.assert_allclose(view, kept[index] / 2, rtol=1e-3)
    np.testing.assert_array_equal(memory[1::2], kept[1::2])


def test_the_capsule_is_released_and_the_memory_with_it() -> None:
    array = good()
    alive = weakref.ref(array)
    gc.clip_by_norm_([Versioned(array)], 1.0)
    del array
    garbage.collect()
    assert alive() is None


def test_unversioned_capsules_cannot_say_that_they_may_be_written() -> None:
    first, bad = good(), good()
    with refuses(gc.ReadOnlyError, "unversioned DLPack capsule", "Use clip_by_norm,", [first, bad]):
        gc.clip_by_norm_([first, Legacy(bad)], 1.0)
    clipped, info = gc.clip_by_norm([first, Legacy(bad)], 1.0)
    assert type(clipped[1]) is Legacy
    assert info.norms == {"0": 50.0, "1": 50.0}
    np.testing.assert_array_equal(clipped[0], clipped[1].array)
    np.testing.assert_array_equal(bad, good())


def test_the_read_only_flag_is_obeyed() -> None:
    first, bad = good(), good()
    bad.flags.writeable = False
    with refuses(gc.ReadOnlyError, "flagged read-only", "Use clip_by_norm,", [first, bad]):
        gc.clip_by_norm_([first, Versioned(bad)], 1.0)
    assert gc.clip_by_norm([first, Versioned(bad)], 1.0)[1].clipped


@pytest.mark.parametrize("name", [b"dltensor", b"dltensor_versioned"])
def test_strides_may_be_null_and_the_offset_counts(name: bytes) -> None:
    memory = np.arange(8, dtype=np.float32)

    def edit(managed: Any) -> None:
        managed.tensor.byte_offset = 8

    x = Export(memory[:6].reshape(3, 2), edit, name)
    assert gc.global_norm([x]) == np.sqrt(np.sum(memory[2:].astype(np.float64) ** 2))
    clipped, _ = gc.clip_by_value([x], 4.0)
    np.testing.assert_array_equal(clipped[0].array, [[2, 3], [4, 4], [4, 4]])
    np.testing.assert_array_equal(memory, np.arange(8))


def test_bfloat16_by_its_type_code() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    memory = np.array([3, 4], ml_dtypes.bfloat16)
    x = Export(memory.view(np.uint16), edit_tensor(tensor__dtype__code=4))
    clipped, info = gc.clip_by_norm([x], 1.0)
    assert info.norm == 5.0
    assert clipped[0].array.dtype == memory.dtype
    gc.clip_by_norm_([x], 1.0)
    assert memory.tobytes() == clipped[0].array.tobytes()
    np.testing.assert_allclose(memory.astype(float), [0.6, 0.8], rtol=2**-8)


@pytest.mark.parametrize(("name", "code"), [("float8_e4m3fn", 10), ("float8_e5m2", 12)])
def test_float8_by_its_type_code(name: str, code: int) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    memory = np.array([3, 4], getattr(ml_dtypes, name))
    x = Export(memory.view(np.uint8), edit_tensor(tensor__dtype__code=code))
    clipped, info = gc.clip_by_norm([x], 2.5)
    assert info.norm == 5.0
    assert clipped[0].array.dtype == memory.dtype
    gc.clip_by_norm_([x], 2.5)
    assert memory.tobytes() == clipped[0].array.tobytes()
    np.testing.assert_array_equal(memory.astype(float), [1.5, 2.0])


def test_pinned_host_memory_is_host_memory() -> None:
    array = good()
    x = Versioned(array)
    x.device = PINNED
    gc.clip_by_norm_([x], 1.0)
    assert np.linalg.norm(array) <= 1


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_null_data_without_elements_is_no_hazard(shape: tuple[int, ...]) -> None:
    x = Export(np.empty(shape, np.float32), edit_tensor(tensor__data=None))
    clipped, info = gc.clip_by_norm([x], 1.0)
    assert (info.norm, clipped[0].array.shape) == (0.0, shape)
    assert gc.clip_by_norm_([x], 1.0).clipped is False


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_results_are_made_by_the_namespace_of_the_array(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.full(shape, 3, dtype)
    expected, _ = gc.clip_by_norm([array], 1.0, backend="numpy")
    clipped, _ = gc.clip_by_norm([Legacy(array)], 1.0)
    assert type(clipped[0]) is Legacy
    assert (clipped[0].array.shape, clipped[0].array.dtype) == (shape, array.dtype)
    assert clipped[0].array.tobytes() == expected[0].tobytes()
    assert not np.shares_memory(clipped[0].array, array)


def test_without_a_namespace_there_is_no_new_array_and_in_place_still_works() -> None:
    class Plain(Versioned):
        __array_namespace__ = property()

    first, array = good(), good()
    with refuses(gc.UnsupportedArrayError, "no __array_namespace__", "with an underscore", [first, array], "a new"):
        gc.clip_by_norm([first, Plain(array)], 1.0)
    gc.clip_by_norm_([first, Plain(array)], 1.0)
    np.testing.assert_array_equal(first, array)


def test_a_tied_array_is_known_by_its_memory() -> None:
    array = np.array([3.0, 4.0])
    info = gc.clip_by_global_norm_([Versioned(array), Versioned(array)], 1.0)
    assert info.norms == {"0": 5.0, "1": 5.0}
    assert info.norm == 5.0
    np.testing.assert_allclose(array, [0.6, 0.8], rtol=1e-15)
    with refuses(gc.UnsafeMemoryError, "they share memory", "or copies", [array], at="arrays '0' and '1'"):
        gc.clip_by_global_norm_([array, Versioned(array[1:])], 0.5)


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_norm_"])
def test_one_memory_by_two_doors_is_refused(name: str) -> None:
    """One result cannot be of two frameworks, and only one of them would hear of a write."""
    array = good()
    with refuses(gc.UnsafeMemoryError, "they share memory", "or copies", [array], at="arrays '0' and '1'"):
        getattr(gc, name)([array, Versioned(array)], 1.0)


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", [b"dltensor", b"dltensor_versioned"])
@pytest.mark.parametrize("function", ["clip_by_norm", "clip_by_norm_", "global_norm"])
def test_null_data_with_elements_is_refused(name: bytes, function: str) -> None:
    """NumPy's own from_dlpack makes up memory here; DTensor and FSDP's freed storage export it."""
    first = good()
    arguments = () if function == "global_norm" else (1.0,)
    with refuses(gc.UnsafeMemoryError, "exports a NULL data pointer", "gather or materialise", [first]):
        getattr(gc, function)([first, Export(good(), edit_tensor(tensor__data=None), name)], *arguments)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"tensor__dtype__lanes": 4}, "dtype float32 x 4 lanes is no gradient's dtype"),
        ({"tensor__dtype__code": 0}, "dtype int32"),
        ({"tensor__dtype__code": 1}, "dtype uint32"),
        ({"tensor__dtype__code": 6, "tensor__dtype__bits": 8}, "dtype bool8"),
        ({"tensor__dtype__code": 3}, "dtype DLPack type code 3 of 32"),
        ({"tensor__dtype__code": 10, "tensor__dtype__bits": 4}, "dtype DLPack type code 10 of 4"),
        ({"tensor__dtype__code": 12, "tensor__dtype__lanes": 2, "tensor__dtype__bits": 8}, "float8_e5m2 x 2 lanes"),
        ({"tensor__dtype__code": 7, "tensor__dtype__bits": 8}, "dtype float8_e3m4 is not served"),
        ({"tensor__dtype__code": 14, "tensor__dtype__bits": 8}, "dtype float8_e8m0fnu is not served"),
        ({"tensor__dtype__code": 17, "tensor__dtype__bits": 4}, "dtype DLPack type code 17 of 4"),
        ({"tensor__dtype__bits": 128}, "dtype float128"),
        ({"major": 2}, "it exports DLPack 2.1, and 1.x is understood"),
    ],
)
def test_what_the_capsule_says_is_not_understood(fields: dict[str, Any], seen: str) -> None:
    first, memory = good(), good()
    with refuses(gc.UnsupportedArrayError, seen, "", [first, memory]):
        gc.clip_by_norm_([first, Export(memory, edit_tensor(**fields))], 1.0)


def test_a_capsule_of_another_kind() -> None:
    first, memory = good(), good()
    with refuses(gc.UnsupportedArrayError, "its capsule is named b'used_dltensor'", "NumPy array", [first, memory]):
        gc.clip_by_norm_([first, Export(memory, edit_tensor(), b"used_dltensor")], 1.0)


class OnDevice(Versioned):
    """One that says it is on a device. What its capsule points to is host memory, and nobody may look there."""

    device = CUDA

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None, stream: int | None = None) -> Any:
        assert stream == 1, "CUDA's default stream, for which the producer has to wait"
        return super().__dlpack__(max_version=max_version)


def test_memory_of_a_device_is_for_the_backends_of_that_device() -> None:
    first, memory = good(), good()
    x = OnDevice(memory)
    with refuses(gc.BackendError, "it reads host memory, and these arrays are on cuda:1", "", [memory], at="numpy"):
        gc.clip_by_norm([x], 1.0, backend="numpy")
    with refuses(gc.BackendError, "one call works on one device", "Move them", [first, memory], at="cpu, cuda:1"):
        gc.clip_by_norm([first, x], 1.0)


def test_a_write_to_a_device_by_dlpack_would_be_ordered_by_nobody() -> None:
    memory = good()
    with refuses(gc.ReadOnlyError, "make its framework wait for a write", "Use clip_by_norm", [memory], at="array '0'"):
        gc.clip_by_norm_([OnDevice(memory)], 1.0)


def test_a_device_without_a_backend() -> None:
    x = OnDevice(good())
    x.device = (10, 0)
    seen = "no backend serves memory on rocm:0"
    with refuses(gc.BackendError, seen, "in host memory or on a CUDA device", at="arrays on rocm:0"):
        gc.clip_by_norm([x], 1.0)


@pytest.mark.parametrize("where", ["__dlpack__", "__dlpack_device__"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Array has been deleted"),
        BufferError("sharded\nover two devices"),
        AttributeError("tracer"),
        KeyError(),
    ],
)
def test_an_exporter_that_raises(where: str, error: Exception) -> None:
    """JAX tracers, deleted and sharded arrays, ndonnx: each fails in a way of its own."""

    def fail(self: object, **_: object) -> None:
        raise error

    first = good()
    kind = type("Tracer", (Versioned,), {where: fail})
    seen = f"does not export its memory by DLPack ({type(error).__name__}"
    with refuses(gc.UnsupportedArrayError, seen, "outside jit, grad and vmap", [first]):
        gc.clip_by_norm_([first, kind(good())], 1.0)


def test_overlapping_strides_are_refused_in_place() -> None:
    first, memory = good(), np.full(4, 3, np.float32)
    x = Versioned(np.lib.stride_tricks.as_strided(memory, (3, 2), (4, 4)))
    with refuses(
        gc.UnsafeMemoryError, "are the same memory (strides (4, 4) bytes)", "Use clip_by_norm", [first, memory]
    ):
        gc.clip_by_norm_([first, x], 1.0)
    assert gc.clip_by_norm([x], 1.0)[1].norm == np.sqrt(54.0)
