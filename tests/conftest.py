"""A lane that has everything installed sets GRADCLIP_NO_SKIPS=1: a skipped test fails there."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("GRADCLIP_NO_SKIPS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, in a lane that allows no skips: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if os.environ.get("GRADCLIP_NO_SKIPS") == "1" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, in a lane that allows no skips: {report.longrepr}"
    return report


@pytest.fixture(
    params=[pytest.param("numpy", marks=pytest.mark.numpy_backend), pytest.param("numba_cpu", marks=pytest.mark.jit)]
)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "numba_cpu":
        pytest.importorskip("numba")
    return name
