"""The backend over a stand-in for CuPy, on the lane that a test is parametrised with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu.cupy.lanes import lane, on
from tests.gpu.standin import Machine


@pytest.fixture(params=[lane("cpu-forward")])
def standin(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The simulated machine; ``import cupy`` gives its CuPy. Other lanes: ``indirect=True``."""
    with on(request.param) as machine:
        yield machine


@pytest.fixture(params=[lane("cpu-forward")])
def late(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The same, but work runs only when somebody waits for it: what nobody ordered comes out wrong."""
    with on(request.param, asynchronous=True) as machine:
        yield machine
