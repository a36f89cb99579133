"""What the kernels do not do: read twice, write what is left alone, or launch once more. And strided arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradclip_core.device import Case, Strided
from gradclip_core.protocol import FLOAT16, FLOAT32, FLOAT64, LEAVE, SCALE, Buffer, DType, Scopes, What
from gradclip_core.testing import cases
from tests.gpu.toolkit.needs import needs_numba_cuda

pytestmark = needs_numba_cuda


def _made() -> tuple[Any, Any, Any]:
    from gradclip_backends.gpu.backend import GpuBackend

    from tests.gpu.numba.fake import FakeMemory
    from tests.gpu.numba.interpreted import PtxDriver

    driver = PtxDriver()
    return GpuBackend("numba_cuda", driver), driver, FakeMemory(driver)


def _bytes(table: dict[tuple[int, int], int], buffer: Buffer) -> int:
    found = [count for (start, size), count in table.items() if start <= buffer.pointer < start + size]
    return sum(found)


def _limit(value: float) -> Case:
    return Case(2.0, "propagate", 1.0, scopes=Scopes(np.zeros(1, np.int64), np.array([value])))


@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT32, FLOAT64], ids=str)
def test_an_unclipped_step_reads_each_byte_once_and_writes_none(dtype: DType) -> None:
    backend, driver, memory = _made()
    x = cases.random(dtype, 3 * 4096 + 1)[None]
    buffer = memory.aligned(x, dtype)
    answer = backend.decide([buffer], _limit(1e9))
    backend.act([buffer], [buffer], answer)
    names = [name for name, _ in driver.launched]
    float64 = ["rescale_table", "ask_for_carries_table", "carries_table"] if dtype is FLOAT64 else []
    assert names == ["measure_squares_table", *float64, "decide_norms_table", "apply_table"]
    assert _bytes(driver.traffic[0].read, buffer) == x.nbytes
    assert all(_bytes(traffic.read, buffer) == 0 for traffic in driver.traffic[1:])
    assert all(_bytes(traffic.written, buffer) == 0 for traffic in driver.traffic)
    # The write pass ends after one load of its flag, and reads no row.
    assert sum(driver.traffic[-1].read.values()) == 4 * 256 * driver.launched[-1][1]


def test_a_clipped_step_reads_twice_and_writes_once() -> None:
    backend, driver, memory = _made()
    x = cases.random(FLOAT32, 2 * 4096)[None]
    buffer = memory.aligned(x, FLOAT32)
    answer = backend.decide([buffer], _limit(1e-3))
    backend.act([buffer], [buffer], answer)
    assert _bytes(driver.traffic[-1].read, buffer) == x.nbytes
    assert _bytes(driver.traffic[-1].written, buffer) == x.nbytes
    assert driver.traffic[-1].sectors["st"] == x.nbytes // 32


@pytest.mark.parametrize(("itemsize", "shift"), [(2, 0), (4, 0), (8, 0), (16, 0), (4, 1), (8, 6)])
def test_strided_memory_is_packed_and_put_back(itemsize: int, shift: int) -> None:
    backend, driver, _ = _made()
    room = np.arange(4 * 10 * 6 * itemsize + shift, dtype=np.int64).astype(np.uint8)
    driver.register(room)
    items = np.frombuffer(room.data, f"V{itemsize}", 4 * 10 * 6, shift).reshape(4, 10, 6)
    view = items[::2, ::-3, 1:5].transpose(2, 0, 1)
    address = view.__array_interface__["data"][0]
    like = Buffer(0, view.size * itemsize // 2, FLOAT16, 1, "cuda:0")
    strided = Strided(address, view.shape, view.strides, itemsize, like)
    packed = backend.pack(strided)
    assert driver.read(None, packed.pointer, view.nbytes).tobytes() == view.tobytes()
    before = items.copy()
    driver.clear(None, packed.pointer, view.nbytes)
    backend.unpack(packed, strided, None, 0)
    assert not np.frombuffer(view.tobytes(), np.uint8).any()
    outside = np.ones((4, 10, 6), bool)
    outside[::2, ::-3, 1:5] = False
    assert items[outside].tobytes() == before[outside].tobytes()


@pytest.mark.parametrize(("limit", "op"), [(1e9, LEAVE), (1e-3, SCALE)])
def test_strided_memory_that_is_left_alone_is_not_written(limit: float, op: int) -> None:
    backend, driver, _ = _made()
    room = cases.random(FLOAT32, 600).reshape(20, 30).copy()
    driver.register(room)
    view = room[:, ::2]
    like = Buffer(0, view.size, FLOAT32, 1, "cuda:0")
    strided = Strided(view.__array_interface__["data"][0], view.shape, view.strides, 4, like)
    packed = backend.pack(strided)
    answer = backend.decide([packed], _limit(limit))
    backend.act([packed], [packed], answer)
    backend.unpack(packed, strided, answer, 0)
    assert answer.read().actions.op.tolist() == [op]
    assert (sum(driver.traffic[-1].written.values()) > 0) == (op == SCALE)
    expected = driver.read(None, packed.pointer, view.size * 4).view(np.float32).reshape(view.shape)
    assert (view == expected).all()


def test_in_a_capture_tables_go_with_launches() -> None:
    backend, driver, memory = _made()
    driver.captures = True
    arrays = [cases.random(FLOAT32, 5 + i)[None] for i in range(40)]
    buffers = [memory.put(x, FLOAT32) for x in arrays]
    answer = backend.decide(buffers, Case(2.0, "skip", 1.0, scopes=Scopes(np.zeros(40, np.int64), np.ones(1))))
    assert [name for name, _ in driver.launched].count("store_words") == -(-40 * 48 // (8 * 128))
    driver.captures = False
    assert (answer.read().found.sums == backend.measure(buffers, What(2.0)).sums).all()
