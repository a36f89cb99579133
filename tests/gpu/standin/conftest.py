"""The stand-in, installed, with kernels in Python; ``late`` is the asynchronous one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gpu.standin import Machine, install
from tests.gpu.standin.python_engine import PythonEngine


@pytest.fixture
def standin() -> Iterator[Machine]:
    with install(PythonEngine()) as machine:
        yield machine


@pytest.fixture
def late() -> Iterator[Machine]:
    with install(PythonEngine(), asynchronous=True) as machine:
        yield machine


@pytest.fixture
def cp(request: pytest.FixtureRequest) -> Any:
    """``import cupy``, of the stand-in that the test asked for."""
    if "late" not in request.fixturenames:
        request.getfixturevalue("standin")
    return importlib.import_module("cupy")
