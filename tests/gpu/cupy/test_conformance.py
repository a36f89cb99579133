"""The public conformance suite, on the kernels as g++ builds them and as NVRTC's PTX says, interpreted."""

from __future__ import annotations

import importlib
import zlib
from collections import Counter
from typing import Any

import pytest

from gradclip_core import testing
from gradclip_core.protocol import BASE_DTYPES
from tests.gpu.cupy.compare import cp
from tests.gpu.cupy.lanes import lane, on
from tests.gpu.memory import CupyMemory
from tests.gpu.standin import Machine

CPU_LANES = [lane(f"cpu-{order}") for order in ("forward", "reverse", "random")]
PTX_LANES = ("ptx-75", "ptx-90", "ptx-120")


HOST_ALONE = {"form", "moment", "tally", "gather"}
"""Topics of projections, which are made in host memory."""


def every(**how: Any) -> Counter[str]:
    """How many checks there are, by topic; the loopback is asked them all too, and those of float8 besides."""
    how.setdefault("dtypes", tuple(BASE_DTYPES))
    topics = (check.topic for check in testing.checks(testing.DeviceLoopback(), thorough=False, **how))
    return Counter(topic for topic in topics if topic not in HOST_ALONE)


def backend() -> Any:
    return importlib.import_module("gradclip_backends.cupy_raw").BACKEND


@pytest.mark.parametrize("standin", CPU_LANES, indirect=True)
def test_every_check(standin: Machine) -> None:
    """All dtypes; memory that is not to be written is write-protected, which the host's memory can be."""
    ran: Counter[str] = Counter()
    for check in testing.checks(backend(), memory=CupyMemory(cp(), on_host=True), thorough=False):
        check.run()
        ran[check.topic] += 1
    assert ran == every()
    assert (ran.total(), len(ran)) >= (1600, 29)
    assert sum(count for topic, count in ran.items() if topic.startswith("decide-")) >= 341


@pytest.mark.parametrize("standin", [lane("cpu-forward")], indirect=True)
def test_the_backends_own_memory(standin: Machine) -> None:
    """What a user passes where there is a device: ``BACKEND.memory_for_checks()``."""
    ran = 0
    for check in testing.checks(backend(), memory=backend().memory_for_checks(1), dtypes=["bfloat16"], thorough=False):
        check.run()
        ran += 1
    assert ran == every(dtypes=["bfloat16"]).total() > 380
    assert {entry.device for entry in standin.log.of("launch")} == {1}


@pytest.mark.parametrize("standin", [lane("cpu-forward")], indirect=True)
def test_three_levels_of_the_tree(standin: Machine) -> None:
    names = []
    for check in testing.checks(backend(), dtypes=["float16"], memory=CupyMemory(cp(), on_host=True), thorough=True):
        if check.name.endswith("/three-levels") or check.topic == "repeatable":
            check.run()
            names.append(check.name)
    assert names == ["repeatable/float16/16-runs", "measure-squares/float16/three-levels"]


def _share(name: str, here: int) -> bool:
    """The three architectures share the decisions among them; of the rest each takes some.

    What they interpret differs little, and every check runs on the source's own build.
    """
    number = zlib.crc32(name.encode())
    return number % (3 if name.startswith("decide-") else 90) == here


@pytest.mark.parametrize("name", [lane(name) for name in PTX_LANES])
def test_ptx(name: str) -> None:
    here = PTX_LANES.index(name)
    with on(name):
        ran: Counter[str] = Counter()
        last: dict[str, testing.Check] = {}
        for check in testing.checks(backend(), memory=CupyMemory(cp(), on_host=True), thorough=False):
            last[check.topic] = check
            if _share(check.name, here):
                check.run()
                ran[check.topic] += 1
        for topic in last.keys() - ran.keys():
            last[topic].run()
            ran[topic] += 1
    assert ran.keys() == every().keys()
    assert ran.total() > 130


def test_the_architectures_have_every_decision_among_them() -> None:
    checks = testing.checks(testing.DeviceLoopback(), dtypes=tuple(BASE_DTYPES), thorough=False)
    names = [c.name for c in checks if c.topic.startswith("decide-")]
    assert sum(any(_share(name, here) for here in range(3)) for name in names) == len(names) >= 341
