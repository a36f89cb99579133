"""Test of the tests: the loopback for devices passes every check, and every liar that decides is seen."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from gradclip_core import testing

from .device_liars import DEVICE_LIARS

DTYPES = ("float16", "float64")
"""One whose factors are float32's, and the one with carries; that no dtype is forgotten is the loopback's test."""


def failing(backend: testing.DeviceLoopback, asked: Collection[str] = ()) -> set[str]:
    """The topics that fail, of those ``asked``, or of all. Of each, no check is run after the first that fails."""
    found: set[str] = set()
    for check in testing.checks(backend, dtypes=DTYPES, thorough=False):
        if check.topic in found or (asked and check.topic not in asked):
            continue
        if check.topic.startswith(("decide-", "device-")):
            try:
                check.run()
            except testing.ConformanceError as error:
                found.add(check.topic if len(str(error)) > 15 else "an error without a sentence")
    return found


def test_loopback_passes_every_decision() -> None:
    names = set()
    for check in testing.checks(testing.DeviceLoopback(), thorough=False):
        if check.topic.startswith(("decide-", "device-")):
            check.run()
            assert check.name not in names, "a check's name is its address"
            names.add(check.name)
    assert len(names) > 300


@pytest.mark.parametrize("liar", DEVICE_LIARS, ids=lambda liar: liar.__name__)
def test_every_liar_that_decides_is_seen(liar: type[testing.DeviceLoopback]) -> None:
    assert failing(liar(), DEVICE_LIARS[liar]) == DEVICE_LIARS[liar]


def test_every_topic_of_decisions_is_needed_by_a_liar() -> None:
    checks = testing.checks(testing.DeviceLoopback(), thorough=False)
    topics = {check.topic for check in checks if check.topic.startswith(("decide-", "device-"))}
    assert topics - set().union(*DEVICE_LIARS.values()) == {"decide-general"}  # seen by the next test


def test_half_a_device_backend_is_taken_for_none_and_told_so() -> None:
    class Half(testing.Loopback):
        def decide(self, buffers, case, after=None):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    first = next(testing.checks(Half()))
    with pytest.raises(testing.ConformanceError, match="it has decide, and not all"):
        first.run()


def test_a_general_order_may_differ_by_its_tolerance_alone() -> None:
    class Off(testing.DeviceLoopback):
        def decide(self, buffers, case, after=None):  # type: ignore[no-untyped-def]
            answer = super().decide(buffers, case, after)
            if case.ord == 3.5:
                answer.reading.actions.factor[:] *= 1 - 2.0**-20
            return answer

    assert failing(Off()) == {"decide-general"}
