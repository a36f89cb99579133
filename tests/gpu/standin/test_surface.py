"""The stand-in offers nothing that CuPy lacks, and its constants and errors are CuPy's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.gpu.standin import Machine, runtime
from tests.gpu.standin.modules import VERSION, build
from tests.gpu.standin.surface import invented, missing, names_used

SAMPLE = """
import cupy as cp
import cupy.cuda.runtime
from cupy.cuda import driver, Stream as S
from cupy.cuda.compiler import CompileException

def launch(x: cp.ndarray) -> None:
    with cp.cuda.Device(0) as device:
        cp.cuda.runtime.memsetAsync(x.data.ptr, 0, 4, S.null.ptr)
        cp.cuda.Graph.teleport, driver.CUDADriverError, cp.no_such_function()
"""


@pytest.fixture(scope="module")
def real() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing libraries
        return pytest.importorskip("cupy")


def test_nothing_is_invented(real: Any) -> None:
    assert list(invented(build()["cupy"], real)) == []


def test_inventions_are_found(real: Any) -> None:
    standin = build()["cupy"]
    standin.teleport = standin.cuda.teleport = 1  # type: ignore[attr-defined]
    assert list(invented(standin, real)) == ["cupy.cuda.teleport", "cupy.teleport"]


def test_constants_and_flags(real: Any) -> None:
    ours = {name: value for name, value in vars(runtime).items() if isinstance(value, int) and name[0] not in "_H"}
    assert len(ours) > 25
    assert {name: getattr(real.cuda.runtime, name) for name in ours} == ours


def test_device_attributes_have_their_numbers(real: Any, standin: Machine) -> None:
    for name, value in runtime.attributes(standin).items():
        assert runtime.deviceGetAttribute(getattr(real.cuda.runtime, f"cudaDevAttr{name}"), 1) == value


def test_errors_speak_as_the_real_ones(real: Any) -> None:
    from tests.gpu.standin.errors import _NAMES, CompileException, CUDARuntimeError, OutOfMemoryError

    for status in _NAMES:
        theirs = real.cuda.runtime.CUDARuntimeError(status)
        assert (theirs.args, theirs.status) == (CUDARuntimeError(status).args, status)
    assert real.cuda.memory.OutOfMemoryError(10, 2000, 30).args == OutOfMemoryError(10, 2000, 30).args
    assert real.cuda.memory.OutOfMemoryError(10, 2000).args == OutOfMemoryError(10, 2000).args
    theirs = real.cuda.compiler.CompileException("log", "src", "name", ("-a",))
    assert str(theirs) == str(CompileException("log", "src", "name", ("-a",))) == "log"


def test_instances_invent_nothing(real: Any, standin: Machine) -> None:
    cupy = build()["cupy"]
    module = cupy.RawModule(code="scale")
    x = cupy.empty(3)
    for ours, theirs in [
        (x, real.ndarray),
        (x.data, real.cuda.MemoryPointer),
        (x.data.mem, real.cuda.Memory),
        (x.device, real.cuda.Device),
        (module, real.RawModule),
        (module.get_function("scale"), real.RawKernel),
        (cupy.cuda.Stream.null, real.cuda.Stream.null),
    ]:
        known = {*dir(theirs), *getattr(theirs, "__dict__", {})}
        assert [name for name in vars(ours) if name[0] != "_" and name not in known] == []
    assert set(vars(x.flags)) <= set(dir(real._core.flags.Flags))


def test_version(real: Any) -> None:
    assert real.__version__.partition(".")[0] == VERSION.partition(".")[0]


def test_names_of_a_source(real: Any) -> None:
    names = names_used(SAMPLE)
    assert {
        "cuda.Device",
        "cuda.runtime.memsetAsync",
        "cuda.compiler.CompileException",
        "cuda.Stream.null.ptr",
    } <= names
    wrong = ["cuda.Graph.teleport", "no_such_function"]
    assert missing(names, real) == wrong
    assert missing(names, build()["cupy"]) == wrong
