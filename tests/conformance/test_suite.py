"""Test of the tests: the loopback passes every check, and every liar fails those that should see it."""

from __future__ import annotations

import os
from collections.abc import Collection

import numpy as np
import pytest

from gradclip_core import protocol, testing

from .liars import LIARS, Bfloat16Truncated

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="write protection is proved in a forked child")


PROJECTIONS = ("form", "moment", "tally", "gather")
"""Their liars are in test_projection_suite.py: all others have the reference's passes."""


def failing(backend: protocol.Backend, asked: Collection[str] = (), **options: object) -> set[str]:
    """The topics that fail, of those ``asked``, or of all. Of each, no check is run after the first that fails."""
    found: set[str] = set()
    for check in testing.checks(backend, **options):  # type: ignore[arg-type]
        if check.topic in PROJECTIONS or check.topic in found or (asked and check.topic not in asked):
            continue
        try:
            check.run()
        except testing.ConformanceError as error:
            found.add(check.topic if len(str(error)) > 15 else "an error without a sentence")
    return found


def test_loopback_passes_everything() -> None:
    names = set()
    for check in testing.checks(testing.Loopback()):
        check.run()
        assert check.name not in names, "a check's name is its address"
        names.add(check.name)
    assert len(names) > 2400


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_every_liar_is_seen(liar: type[testing.Loopback]) -> None:
    assert failing(liar(), LIARS[liar]) == LIARS[liar]


def test_a_liar_in_one_dtype_is_not_seen_in_the_others() -> None:
    assert failing(Bfloat16Truncated(), dtypes=["float16", "float32", "float64"]) == set()


def test_every_topic_is_needed_by_a_liar() -> None:
    """A topic that no liar fails might be one that cannot fail."""
    topics = {check.topic for check in testing.checks(testing.Loopback())} - set(PROJECTIONS)
    told_on = set().union(*LIARS.values())
    assert topics - told_on == {"apply-scale-nonfinite"}  # seen by the next test


def test_scaled_nans_stay_nan() -> None:
    class DropsNan(testing.Loopback):
        def apply(self, buffers, out, actions):  # type: ignore[no-untyped-def]
            super().apply(buffers, out, actions)
            for buffer in out:
                array = buffer.as_numpy()
                if buffer.dtype.name == "float32" and (actions.op == 1).all():
                    array[np.isnan(array)] = 0

    assert "apply-scale-nonfinite" in failing(DropsNan(), dtypes=["float32"])
