"""Arrays on simulated devices that neither backend with kernels can serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradclip_core import registry
from tests.gpu.cupy.lanes import FORGOTTEN, forgotten
from tests.gpu.standin import Machine, install
from tests.gpu.standin.python_engine import PythonEngine


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """The simulated machine, without CUDA kernels: both of the backends for them fail to be imported."""
    pytest.importorskip("array_api_compat")
    with forgotten(), install(PythonEngine(), forget=FORGOTTEN) as machine:
        for name in ("cupy_raw", "numba_cuda"):
            monkeypatch.setitem(registry._failed, name, f"ImportError: {name} is not here")
        yield machine
