"""Modules, kernels and arguments: right ones run, wrong ones are refused with a sentence."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from tests.gpu.engine import KernelFault
from tests.gpu.standin import Machine, install
from tests.gpu.standin.python_engine import ALL, ZEROS, PythonEngine, kernel


def test_a_launch_and_its_log(standin: Machine, cp: Any) -> None:
    scale = kernel(cp, "scale")
    x = cp.asarray(np.arange(4, dtype=np.float32))
    standin.log.clear()
    scale((2,), (32,), (x, np.uint32(3), np.float32(2)))
    assert standin.log.counts() == {**ZEROS, "launch": 1}
    (entry,) = standin.log.entries
    assert (entry.kernel, entry.grid, entry.block, entry.ran) == ("scale", (2, 1, 1), (32, 1, 1), 1)
    assert entry.traffic is not None
    assert entry.traffic.read == {(x.data.ptr, 16): 12}
    assert standin.log.kernels() == ["scale"]
    assert x.get().tolist() == [0, 2, 4, 3]
    assert standin.log.counts() == {**ZEROS, "launch": 1, "d2h": 1, "sync": 1}


@pytest.mark.parametrize("scalar", [True, False])
def test_a_struct_is_passed_by_value(cp: Any, scalar: bool) -> None:
    x = cp.ones(3, np.float32)
    record = np.zeros(1, [("x", "u8"), ("n", "u4"), ("by", "f4")])
    record[0] = (x.data.ptr, 3, 5)
    kernel(cp, "table")((1,), (1,), (record[0] if scalar else record,))
    record[0] = (0, 0, 0)
    assert x.get().tolist() == [5, 5, 5]


def test_pointers(cp: Any) -> None:
    x = cp.ones((2, 3), np.float32)
    scale = kernel(cp, "scale")
    scale((1,), (1,), (x[1].data, np.uint32(3), np.float32(2)))
    scale((1,), (1,), (np.uint64(x[1, 1:].data.ptr), np.uint32(1), np.float32(2)))
    assert x.get().tolist() == [[1, 1, 1], [2, 4, 2]]


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ((np.uint32(1), np.float32(2)), TypeError, "scale: 2 arguments given, the kernel declares 3"),
        ((1, np.float32(2.0)), TypeError, "argument 1 is a Python int, .*pass a NumPy scalar"),
        ((np.uint32(1), 2.0), TypeError, "argument 2 is a Python float"),
        ((np.uint32(1), np.float64(2)), TypeError, "argument 2 has 8 bytes, and the kernel declares 4"),
        ((np.uint32(1), np.ones(2, np.float32)), TypeError, "Only numpy.ndarrays of size one"),
        ((np.uint32(1), "2"), TypeError, "Unsupported type"),
    ],
)
def test_wrong_arguments(
    standin: Machine, cp: Any, args: tuple[Any, ...], error: type[Exception], sentence: str
) -> None:
    x, scale = cp.ones(4, np.float32), kernel(cp, "scale")
    standin.log.clear()
    with pytest.raises(error, match=sentence):
        scale((1,), (32,), args if "2 arguments" in sentence else (x, *args))
    assert standin.log.counts() == ZEROS


def test_wrong_shapes_of_a_launch(cp: Any) -> None:
    scale, args = kernel(cp, "scale"), (cp.ones(4, np.float32), np.uint32(1), np.float32(2))
    with pytest.raises(TypeError, match="tuples"):
        scale([1], (32,), args)
    for grid, block in [((1,), (1025,)), ((1, 65536), (1,)), ((1,), (1, 1, 65)), ((2**31,), (1,))]:
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="invalid argument"):
            scale(grid, block, args)
    with pytest.raises(TypeError, match="expected tuple, got list"):
        cp.RawModule(code=ALL, options=["-a"])


def test_compiling(standin: Machine, cp: Any) -> None:
    engine: Any = standin.engine
    module = cp.RawModule(code="scale nonsense")
    with pytest.raises(cp.cuda.compiler.CompileException, match="'nonsense' is undefined"):
        module.get_function("scale")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND"):
        kernel(cp, "nothing")
    before = engine.compiled
    scale = kernel(cp, "scale")
    kernel(cp, "add")
    assert engine.compiled == before  # the same source and options
    assert len(standin.log.of("load")) == 1
    with cp.cuda.Device(1):
        scale((1,), (1,), (cp.ones(1, np.float32), np.uint32(1), np.float32(2)))
    assert len(standin.log.of("load")) == 2  # a module is loaded on each device
    standin.faults.compile_log = "kernel.cu(7): error: no"
    with pytest.raises(cp.cuda.compiler.CompileException, match=r"kernel.cu\(7\)"):
        cp.RawModule(code="scale").get_function("scale")


def test_large_parameters(standin: Machine, cp: Any) -> None:
    big = np.zeros(1, "V5000")
    kernel(cp, "wide")((1,), (1,), (big,))
    standin.faults.driver_version = 12000
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        kernel(cp, "wide")((1,), (1,), (big,))
    standin.faults.driver_version = 12010
    kernel(cp, "wide")((1,), (1,), (big,))
    with pytest.raises(cp.cuda.compiler.CompileException, match="33000 bytes of parameters"):
        kernel(cp, "too_wide")


def test_devices_are_apart(cp: Any) -> None:
    scale, x = kernel(cp, "scale"), cp.ones(1, np.float32)
    rest = (np.uint32(1), np.float32(2))
    with cp.cuda.Device(1):
        assert cp.cuda.runtime.getDevice() == 1
        with pytest.raises(ValueError, match="argument 0 is on device 0, and the launch on device 1"):
            scale((1,), (1,), (x, *rest))
        with pytest.raises(KernelFault, match="no memory of this device"):
            scale((1,), (1,), (np.uint64(x.data.ptr), *rest))
        with pytest.raises(ValueError, match="must be same as the current device"):
            x + 1
    stream = cp.cuda.Stream()
    scale((1,), (1,), (x, *rest), stream=stream)
    with cp.cuda.Device(1):
        y = cp.ones(1, np.float32)
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="invalid resource handle"):
            scale((1,), (1,), (y, *rest), stream=stream)
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="invalid resource handle") as caught:
            cp.cuda.Event().record(stream)
    assert caught.value.status == 400
    assert (x.device.id, y.device.id, y.device == cp.cuda.Device(1)) == (0, 1, True)


def test_writes_outside_are_found(cp: Any) -> None:
    x = cp.ones(5, np.float32)
    with pytest.raises(KernelFault, match="overrun wrote outside of the 20 bytes"):
        kernel(cp, "overrun")((1,), (1,), (x, np.uint32(5)))


def test_modules_come_and_go() -> None:
    before = {name for name in sys.modules if name.startswith("cupy")}
    mine = "tests.gpu.standin.surface"
    old = importlib.import_module(mine)
    with install(PythonEngine(), forget=[mine]):
        run = importlib.import_module("cupy.cuda.runtime")
        assert run is importlib.import_module("cupy").cuda.runtime
        assert importlib.import_module(mine) is not old
        with pytest.raises(ImportError):
            importlib.import_module("cupy.cuda.nccl")
    assert importlib.import_module(mine) is old
    assert {name for name in sys.modules if name.startswith("cupy")} == before
    with pytest.raises(RuntimeError, match="after it was taken out"):
        run.getDevice()
