"""The kernels under ASan with UBSan, and under TSan: no access outside of an array, none misaligned, no race."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import pytest

from tests.gpu.bugs.trial import start
from tests.gpu.cpu.needs import needs_sanitizer

# With as many launches as each can do in some seconds; a launch costs TSan a quarter of one.
SCENARIOS = {
    "asan": "every_kernel halves tails subnormals rows carried strides limits",
    "tsan": "every_kernel two_culprits siblings",
}


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future[str]]]:
    """Both under way at a time."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {lane: pool.submit(start, lane, "none", names) for lane, names in SCENARIOS.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lane", [pytest.param("asan", marks=needs_sanitizer("asan")), pytest.param("tsan", marks=needs_sanitizer("tsan"))]
)
def test_the_kernels_are_clean(runs: dict[str, Future[str]], lane: Literal["asan", "tsan"]) -> None:
    assert runs[lane].result() == "CLEAN"
