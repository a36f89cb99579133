"""On a device: CuPy's kernels and arrays, streams, graphs, several devices, long arrays. ``pytest -m gpu``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.device import needs, with_cupy

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy() -> Any:
    return needs.cupy_with_device()


def test_conformance(cupy: Any) -> None:
    backend = with_cupy.cupy_backend()
    assert with_cupy.conformance(backend, backend.memory_for_checks(), thorough=True) > 1000


def test_conformance_of_numba() -> None:
    backend = needs.numba_backend()
    assert with_cupy.conformance(backend, backend.memory_for_checks(), thorough=True) > 1000


@pytest.mark.parametrize("rule", with_cupy.RULES)
@pytest.mark.parametrize("dtype", with_cupy.DTYPES)
def test_rules(cupy: Any, dtype: str, rule: str) -> None:
    with_cupy.rules(dtype, rule)


BODIES = (
    with_cupy.units,
    with_cupy.many_arrays,
    with_cupy.strided_arrays,
    with_cupy.subnormals,
    with_cupy.device_loss_scale,
    with_cupy.side_stream,
    with_cupy.graph,
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body.__name__))
def test_body(cupy: Any, body: Any) -> None:
    body()


def test_the_host_does_not_wait(cupy: Any) -> None:
    with_cupy.returns_at_once(1 << 26)


def test_deterministic(cupy: Any) -> None:
    with_cupy.deterministic(100)


def test_another_device(cupy: Any) -> None:
    needs.several_devices(cupy)
    with_cupy.other_device()


def test_more_elements_than_an_int32_counts(cupy: Any) -> None:
    elements = 2**31 + 4099
    needs.memory(cupy, 3 * elements)
    try:
        with_cupy.long_array(elements)
    finally:
        cupy.get_default_memory_pool().free_all_blocks()
