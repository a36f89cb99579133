"""Test of the tests of projections: every liar fails the topics that should see it, and no others."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import protocol, registry, sets, testing
from gradclip_core.forms import FORMS, MOMENTS, passes_of
from gradclip_core.reference_forms import PASSES, NumpyPasses

from .conversion_liars import ByWayOfTheSourceType, ConvertsByWayOfFloat32, NanBecomesBound
from .passes_liars import PASSES_LIARS, LastElementForgotten, NeverRounded, RoundedTwice

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="write protection is proved in a forked child")
TOPICS = {"form", "moment", "tally", "gather"}


class Through(testing.Loopback):
    """The loopback, with passes of one's own."""

    name = "through"

    def __init__(self, projections: object) -> None:
        self.projections = projections


SEEN_IN: dict[type[NumpyPasses], tuple[str, ...]] = {
    RoundedTwice: ("bfloat16",),
    NeverRounded: ("bfloat16",),
    ByWayOfTheSourceType: ("float8_e5m2", "float8_e4m3fn"),
    ConvertsByWayOfFloat32: ("float8_e4m3fn", "float8_e5m2"),
    NanBecomesBound: ("float8_e5m2",),
}
"""The others in float64."""


def failing(projections: object, dtypes: tuple[str, ...]) -> set[str]:
    found = set()
    for check in testing.checks(Through(projections), dtypes=dtypes, thorough=False):
        if check.topic in TOPICS and check.topic not in found:
            try:
                check.run()
            except testing.ConformanceError as error:
                found.add(check.topic if len(str(error)) > 15 else "an error without a sentence")
    return found


@pytest.mark.parametrize("liar", PASSES_LIARS, ids=lambda liar: liar.__name__)
def test_every_liar_is_seen_and_in_its_topics_alone(liar: type[NumpyPasses]) -> None:
    assert failing(liar(), SEEN_IN.get(liar, ("float64",))) == PASSES_LIARS[liar]


def test_no_lie_is_seen_where_none_is() -> None:
    assert failing(NumpyPasses(), ("bfloat16", "float64")) == set()


def test_every_form_moment_and_dtype_is_asked() -> None:
    names = [check.name for check in testing.checks(testing.Loopback(), thorough=False)]
    for dtype in protocol.DTYPES:
        assert {f"form/{dtype}/to-{to}" for to in protocol.DTYPES if to != dtype} <= set(names)
        for kind in FORMS:
            assert sum(name.startswith(f"form/{dtype}/{kind}-") for name in names) >= 7
            for moment in MOMENTS if dtype in protocol.BASE_DTYPES else ():
                assert f"moment/{dtype}/{kind}-{moment}" in names


@pytest.mark.parametrize(
    ("projections", "seen"),
    [
        ("no_such_module:PASSES", "cannot be imported: No module named 'no_such_module'"),
        ("gradclip_core.forms:NO_SUCH", "cannot be imported: .*NO_SUCH"),
        (object(), "have no map, tally, gather"),
    ],
)
def test_passes_that_are_not_there(projections: object, seen: str) -> None:
    first = next(c for c in testing.checks(Through(projections), thorough=False) if c.topic == "form")
    assert first.name == "form/passes/there"
    with pytest.raises(testing.ConformanceError, match=seen):
        first.run()


def test_a_backend_without_projections_has_none_of_these_checks_and_is_not_asked_to_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Without:
        name = "without"
        not_supported_reasons = testing.Loopback.not_supported_reasons
        measure = testing.Loopback.measure
        apply = testing.Loopback.apply

    mine: Any = Without()
    assert not TOPICS & {check.topic for check in testing.checks(mine, thorough=False)}
    monkeypatch.setitem(registry.BACKENDS, "without", ("nowhere", "write it"))
    monkeypatch.setitem(registry._loaded, "without", mine)
    grads = np.ones(5)
    with pytest.raises(gc.BackendError, match=r"served by without.*made in host memory.*project on one of these"):
        gc.clip_by_projection_(grads, sets.L1Ball(1.0), backend="without")
    assert (grads == 1).all()
    assert gc.clip_by_projection_(grads, sets.L2Ball(1.0), backend="without").clipped


def test_an_object_serves_as_an_address_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes of the backend are those that project: a liar's result differs."""
    assert passes_of(Through("gradclip_core.reference_forms:PASSES")) is PASSES
    grads = np.array([3.0, 1.0, 2.0])
    expected = gc.clip_by_projection(grads, sets.L1Ball(1.5), backend="numpy")[0]
    for passes, same in ((NumpyPasses(), True), (LastElementForgotten(), False)):
        monkeypatch.setitem(registry.BACKENDS, "through", ("nowhere", "write it"))
        monkeypatch.setitem(registry._loaded, "through", Through(passes))
        made = gc.clip_by_projection(grads, sets.L1Ball(1.5), backend="through")[0]
        assert (made == expected).all() == same
