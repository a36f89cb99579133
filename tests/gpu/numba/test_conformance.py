"""The public conformance suite and the decisions, on the PTX of Numba's kernels."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from gradclip_core import testing
from gradclip_core.protocol import FLOAT16, FLOAT32, FLOAT64, What
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing import cases
from tests.gpu.numba.thorough import EVERYTHING
from tests.gpu.toolkit.needs import needs_numba_cuda

pytestmark = needs_numba_cuda
PART = 1 if EVERYTHING else 23


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_answer_is_the_references(dtype: str) -> None:
    from gradclip_backends.gpu.backend import GpuBackend

    from tests.gpu.numba.fake import FakeMemory
    from tests.gpu.numba.interpreted import PtxDriver

    driver = PtxDriver()
    backend = GpuBackend("numba_cuda", driver)
    seen: collections.Counter[str] = collections.Counter()
    for check in testing.checks(backend, dtypes=[dtype], memory=FakeMemory(driver), thorough=False):
        # The second of each topic, then every 23rd: the first are arrays of no elements.
        if seen[check.topic] % PART == 1 % PART or "table" in check.topic or "writes" in check.topic:
            check.run()
        seen[check.topic] += 1
    assert sum(seen.values()) > 300
    assert {kernel for kernel, _ in driver.launched} >= {"measure_squares_table", "powers_table", "apply_table"}


def test_every_decision_is_the_hosts() -> None:
    from gradclip_backends.gpu.backend import GpuBackend

    from tests.gpu.numba.decisions import questions
    from tests.gpu.numba.expected import different, expected
    from tests.gpu.numba.fake import FakeMemory
    from tests.gpu.numba.interpreted import PtxDriver

    driver = PtxDriver()
    backend = GpuBackend("numba_cuda", driver)
    wrong, asked = [], 0
    for number, question in enumerate(questions(FakeMemory(driver))):
        if number % PART == 0:
            reading = backend.decide(question.buffers, question.case).read()
            tolerance = 1e-9 if question.case.ord == 3 else 0.0
            found = different(reading.actions, expected(question.buffers, question.case), tolerance)
            wrong += [f"{question.name}: {what}" for what in found]
        asked += 1
    assert not wrong
    assert asked == 270


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_the_warps_gives_the_same(seed: int) -> None:
    from gradclip_backends.gpu.backend import GpuBackend
    from gradclip_backends.gpu.driver import Queue

    from tests.gpu.numba.fake import FakeMemory
    from tests.gpu.numba.interpreted import PtxDriver

    driver = PtxDriver(seed=seed)
    backend, memory = GpuBackend("numba_cuda", driver), FakeMemory(driver)
    arrays = [cases.random(dtype, 9 * 4096 + 5)[None] for dtype in (FLOAT64, FLOAT32, FLOAT16)]
    buffers = [memory.aligned(x, dtype) for x, dtype in zip(arrays, (FLOAT64, FLOAT32, FLOAT16), strict=True)]
    what = What(2.0, carry=True)
    found, wanted = backend.measure(buffers, what), REFERENCE.measure(buffers, what)
    assert (found.sums == wanted.sums).all()
    assert (found.carries == wanted.carries).all()
    assert (found.largest == wanted.largest).all()
    # As the next call expects them.
    workspace = backend.workspaces.on(Queue(0, 1))
    nodes = workspace.nodes_for(1)
    counters = driver.read(Queue(0, 1), int(nodes["address"][0]), 4 * int(nodes["capacity"][0]))
    assert not np.any(counters)


@pytest.mark.parametrize("blocks", [41, 4097] if EVERYTHING else [41])
def test_a_sum_of_several_levels(blocks: int) -> None:
    from gradclip_backends.gpu.backend import GpuBackend

    from tests.gpu.numba.fake import FakeMemory
    from tests.gpu.numba.interpreted import PtxDriver

    driver = PtxDriver(processors=4)
    backend, memory = GpuBackend("numba_cuda", driver), FakeMemory(driver)
    x = np.resize(cases.random(FLOAT16, 99_991), 4096 * blocks + 1)[None]
    buffer = memory.aligned(x, FLOAT16)
    assert backend.measure([buffer], What(2.0)).sums == REFERENCE.measure([buffer], What(2.0)).sums
