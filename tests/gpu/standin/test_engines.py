"""CUDA source through the stand-in, by each engine that is there."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.gpu.standin import install

SOURCE = """
struct Entry { float* x; unsigned long long n; };
struct Table { Entry entry[300]; unsigned count; };

extern "C" __global__ void scale(const Table table, float by) {
    const Entry entry = table.entry[blockIdx.x];
    for (unsigned long long i = threadIdx.x; i < entry.n; i += blockDim.x) entry.x[i] *= by;
}
"""
TABLE = np.dtype([("entry", [("x", "u8"), ("n", "u8")], 300), ("count", "u4"), ("pad", "u4")])


@pytest.fixture(params=["cpu.engine:CpuEngine", "ptx.engine:PtxEngine"])
def engine(request: pytest.FixtureRequest) -> Any:
    module, name = request.param.split(":")
    made = getattr(pytest.importorskip(f"tests.gpu.{module}"), name)()
    try:
        made.compile('extern "C" __global__ void nothing() {}', ())
    except (ImportError, OSError) as error:  # no compiler here
        pytest.skip(str(error))
    return made


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_table_by_value(engine: Any, asynchronous: bool) -> None:
    with install(engine, asynchronous=asynchronous) as standin:
        cp = importlib.import_module("cupy")
        scale = cp.RawModule(code=SOURCE, options=("-std=c++17",)).get_function("scale")
        arrays = [cp.full(n, n, np.float32) for n in (1, 33, 70)]
        table = np.zeros(1, TABLE)
        table["count"] = 3
        table["entry"]["x"][0, :3] = [x.data.ptr for x in arrays]
        table["entry"]["n"][0, :3] = [x.size for x in arrays]
        scale((3,), (32,), (table, np.float32(2)))
        assert [x.get().tolist() for x in arrays] == [[2 * n] * n for n in (1, 33, 70)]
        (entry,) = [e for e in standin.log.of("launch") if e.kernel == "scale"]
        assert (len(entry.args[0]), entry.ran) == (TABLE.itemsize, 1)
        standin.faults.driver_version = 12000
        with pytest.raises(cp.cuda.driver.CUDADriverError):
            scale((3,), (32,), (table, np.float32(2)))
        with pytest.raises(cp.cuda.compiler.CompileException):
            cp.RawModule(code="nonsense").get_function("scale")
