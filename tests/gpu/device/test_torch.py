"""On a device: PyTorch's CUDA tensors, by both backends; its streams, its graphs, its watch over synchronisations."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.device import needs, with_torch
from tests.gpu.device.with_torch import Place

pytestmark = pytest.mark.gpu


@pytest.fixture
def place() -> Place:
    torch = needs.torch_with_device()
    return Place(torch, lambda x: x.cuda(), lambda x: x.cpu())


@pytest.fixture(params=["cupy_raw", "numba_cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cupy_raw":
        needs.cupy_with_device()
    else:
        needs.numba_backend()
    return str(request.param)


def test_rules(place: Place, backend: str) -> None:
    with_torch.rules(place, backend)


BODIES = (with_torch.queued_work, with_torch.no_synchronisation, with_torch.graph, with_torch.subnormal_bfloat16)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body.__name__))
def test_body(place: Place, body: Any) -> None:
    body(place)
