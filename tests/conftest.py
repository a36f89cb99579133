"""A lane that has everything installed sets GRADCLIP_NO_SKIPS=1: a skipped test fails there.

GRADCLIP_SHOWN=FILE writes what the tests of frameworks have shown, for the table in docs/frameworks.md: a test says
with ``@pytest.mark.shows("jax", "new arrays", "exact")`` which cell of it stands and falls with that test.

GRADCLIP_SKIPPED=FILE appends the name of each test, or file, that is skipped, for a lane that can run it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_PACKAGES = {"cupy": "cupy-cuda13x", "tensorflow": "tensorflow-cpu", "paddle": "paddlepaddle"}
_shown: dict[tuple[str, str, str, str], bool] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("GRADCLIP_NO_SKIPS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, in a lane that allows no skips: {report.longrepr}"
    return report


def _note_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    where = os.environ.get("GRADCLIP_SKIPPED")
    if where and report.skipped and not hasattr(report, "wasxfail"):
        with Path(where).open("a", encoding="utf-8") as file:
            file.write(report.nodeid + "\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if os.environ.get("GRADCLIP_NO_SKIPS") == "1" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, in a lane that allows no skips: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("shows"):
        framework, column, state = mark.args
        package = _PACKAGES.get(framework, framework)
        item.user_properties.append(("shows", (framework, column, state, _version(package))))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skipped(report)
    for name, value in report.user_properties:
        if name == "shows" and report.when == "call":
            assert isinstance(value, (tuple, list))  # xdist makes lists of tuples
            key = (str(value[0]), str(value[1]), str(value[2]), str(value[3]))
            _shown[key] = _shown.get(key, True) and report.passed


def pytest_sessionfinish(session: pytest.Session) -> None:
    where = os.environ.get("GRADCLIP_SHOWN")
    if where and not hasattr(session.config, "workerinput"):
        rows = [list(key) for key, passed in sorted(_shown.items()) if passed]
        Path(where).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(
    params=[pytest.param("numpy", marks=pytest.mark.numpy_backend), pytest.param("numba_cpu", marks=pytest.mark.jit)]
)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "numba_cpu":
        pytest.importorskip("numba")
    return name
