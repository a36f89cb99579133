"""The ways of running the kernels without a GPU, by name, and the backend on one of them.

A lane is an engine for the stand-in: ``cpu-*`` is the source built by g++, in three orders of blocks and
threads; ``ptx-*`` is NVRTC's own PTX, interpreted. A machine with a device runs the same tests on it: ``device``.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gradclip_core import registry
from tests.gpu.engine import Engine
from tests.gpu.standin import Machine, install
from tests.gpu.toolkit.needs import needs_nvrtc

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++")


def _cpu(order: Any) -> Callable[[], Engine]:
    def make() -> Engine:
        from tests.gpu.cpu.engine import CpuEngine

        return CpuEngine(order=order, seed=7)

    return make


def _ptx(arch: int, seed: int | None = None) -> Callable[[], Engine]:
    def make() -> Engine:
        from tests.gpu.ptx.engine import PtxEngine

        return PtxEngine(arch, seed)

    return make


LANES: dict[str, Callable[[], Engine]] = {
    "cpu-forward": _cpu("forward"),
    "cpu-reverse": _cpu("reverse"),
    "cpu-random": _cpu("random"),
    "ptx-75": _ptx(75),
    "ptx-90": _ptx(90),
    "ptx-120": _ptx(120),
    "ptx-90-random": _ptx(90, 5),
}
FORGOTTEN = ["gradclip_backends.cupy_raw", "gradclip_core.arrays.cupy_door"]


def lane(name: str) -> Any:
    """A lane as a parameter, skipped where its tool is missing."""
    return pytest.param(name, marks=needs_nvrtc if name.startswith("ptx") else needs_gxx)


@contextmanager
def on(name: str, *, devices: int = 2, asynchronous: bool = False) -> Iterator[Machine]:
    """The stand-in as ``cupy``, and the backend imported afresh over it."""
    with forgotten(), install(LANES[name](), devices=devices, asynchronous=asynchronous, forget=FORGOTTEN) as machine:
        yield machine


@contextmanager
def forgotten() -> Iterator[None]:
    """Forget what the registry and the dock know of another ``cupy``, before and after."""
    dock: Any = importlib.import_module("gradclip_core.arrays.dock")

    def forget() -> None:
        for name in ("cupy_raw", "numba_cuda"):
            registry._loaded.pop(name, None)
            registry._failed.pop(name, None)
        for kind in [kind for kind in dock._doors if kind.__module__.partition(".")[0] not in ("numpy", "torch")]:
            del dock._doors[kind]

    forget()
    try:
        yield
    finally:
        forget()
