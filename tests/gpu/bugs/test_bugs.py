"""Every bug is caught by the lane that is named for it, and the kernels as they are pass all lanes.

Trials are processes, two at a time: a bug may end one, and the sanitizers need their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.gpu.bugs.matrix import BUGS, EQUIVALENT
from tests.gpu.bugs.mutant import Bug
from tests.gpu.bugs.trial import start
from tests.gpu.cpu.needs import needs_gxx, needs_sanitizer
from tests.gpu.toolkit.needs import needs_nvrtc

# It takes minutes: it is for those who have all of its tools.
pytestmark = needs_nvrtc

LANES = ("bits", "order", "asan", "tsan", "ptx", "compiled")
_NEEDS = {
    "bits": needs_gxx,
    "order": needs_gxx,
    "asan": needs_sanitizer("asan"),
    "tsan": needs_sanitizer("tsan"),
    "ptx": needs_nvrtc,
    "compiled": needs_nvrtc,
}
_AT_A_TIME = 2


def _names(lane: str) -> str:
    """What the lane's bugs are looked for with: units where nothing runs, otherwise scenarios."""
    bugs = [bug for bug in BUGS if bug.lane == lane]
    words = [bug.unit if lane == "compiled" else bug.scenarios for bug in bugs]
    return " ".join(sorted({name for names in words for name in names.split()}))


def _bug(bug: Bug) -> object:
    return pytest.param(bug.lane, bug.name, bug, id=bug.name.replace(" ", "_"), marks=_NEEDS[bug.lane])


# Under the sanitizers the kernels as they are run in tests/gpu/cupy/test_sanitizers.py.
_HERE = ("bits", "order", "ptx", "compiled")
CLEAN = [pytest.param(lane, "none", None, id=f"no_bug_{lane}", marks=_NEEDS[lane]) for lane in _HERE]
TRIALS = [*CLEAN, *map(_bug, BUGS), *map(_bug, EQUIVALENT)]


@pytest.fixture(scope="module")
def trials(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[str]]]:
    """All that were asked for, under way."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        futures = {}
        for item in request.session.items:
            wanted = isinstance(item, pytest.Function) and item.originalname == test_a_lane_says.__name__
            if wanted and not any(mark.args[0] for mark in item.iter_markers("skipif")):
                given: Any = item
                lane, name = given.callspec.params["lane"], given.callspec.params["name"]
                futures[f"{lane} {name}"] = pool.submit(start, lane, name, _names(lane) if name == "none" else "")
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("lane", "name", "bug"), TRIALS)
def test_a_lane_says(trials: dict[str, Future[str]], lane: str, name: str, bug: Bug | None) -> None:
    said = trials[f"{lane} {name}"].result()
    print(f"{lane}: {said}")
    if bug is None or bug in EQUIVALENT:
        assert said == "CLEAN"
    else:
        assert said.startswith("CAUGHT ")
        assert re.search(bug.says, said), said


@pytest.mark.parametrize("bug", [*BUGS, *EQUIVALENT], ids=lambda bug: bug.name.replace(" ", "_"))
def test_no_bug_is_stale(bug: Bug) -> None:
    assert not bug.stale()


def test_the_matrix_is_as_large_as_it_says() -> None:
    assert len({bug.name for bug in (*BUGS, *EQUIVALENT)}) == len(BUGS) + len(EQUIVALENT)
    assert len(BUGS) >= 50
    assert {bug.lane for bug in BUGS} == set(LANES)
