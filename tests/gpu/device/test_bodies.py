"""The tests for a device, tried over the stand-in: so that what they find on a device is the device's doing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from gradclip_core import testing
from tests.gpu.cupy.lanes import lane, on
from tests.gpu.device import with_cupy, with_torch
from tests.gpu.device.test_device import BODIES
from tests.gpu.device.with_torch import Place
from tests.gpu.standin import Machine
from tests.gpu.standin.torch_cuda import cuda_tensors


@pytest.fixture(params=[lane("cpu-forward")])
def standin(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with on(request.param) as machine:
        yield machine


@pytest.fixture(params=[lane("cpu-random")])
def late(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Work runs when somebody waits for it, and not before."""
    with on(request.param, asynchronous=True) as machine:
        yield machine


@pytest.mark.parametrize("rule", with_cupy.RULES)
def test_rules(standin: Machine, rule: str) -> None:
    with_cupy.rules("float32", rule)


@pytest.mark.parametrize("body", [*BODIES, with_cupy.other_device], ids=lambda body: str(body.__name__))
def test_bodies(standin: Machine, body: Any) -> None:
    body()


@pytest.mark.parametrize("body", [with_cupy.side_stream, with_cupy.graph], ids=lambda body: str(body.__name__))
def test_bodies_that_are_about_order(late: Machine, body: Any) -> None:
    body()


def test_the_host_does_not_wait(late: Machine) -> None:
    with_cupy.returns_at_once(64)


def test_deterministic(standin: Machine) -> None:
    with_cupy.deterministic(2)


def test_a_long_array(standin: Machine) -> None:
    with_cupy.long_array(3 * 4096 + 5)


def test_the_memory_for_checks(standin: Machine) -> None:
    backend = with_cupy.cupy_backend()
    memory = backend.memory_for_checks()
    for check in itertools.islice(testing.checks(backend, memory=memory, thorough=False), 0, None, 20):
        check.run()


def test_torch(standin: Machine) -> None:
    torch = pytest.importorskip("torch")
    with cuda_tensors(standin) as fake:
        place = Place(torch, lambda x: fake.add(x.clone()), lambda x: x.cpu())
        with_torch.rules(place, "cupy_raw")
        with_torch.subnormal_bfloat16(place)
