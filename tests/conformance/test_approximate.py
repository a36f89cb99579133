"""The class ``approximate``: operations on arrays without memory, through NumPy, and what must fail its suite."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradclip_core import testing

pytest.importorskip("array_api_compat")
operations: Any = importlib.import_module("gradclip_backends.array_api.operations")
decided: Any = importlib.import_module("gradclip_backends.array_api.decided")
segments: Any = importlib.import_module("gradclip_backends.array_api.segments")
languages: Any = importlib.import_module("gradclip_backends.array_api.languages")
compat: Any = importlib.import_module("array_api_compat.numpy")


class Narrow(languages.Language):  # type: ignore[misc]
    """NumPy, used as a framework that has nothing wider than float32: as PyTorch on mps, or MLX."""

    wide_name = "float32"


class NarrowArrays(testing.NumpyArrays):
    wide = "float32"
    dtypes = ("float16", "float32")


def failing(arrays: testing.Arrays, topics: tuple[str, ...] = ()) -> set[str]:
    """The topics that fail. Of each, no check is run after the first that fails."""
    found: set[str] = set()
    for check in testing.approximate_checks(operations.OPERATIONS, arrays):
        if check.topic in found or (topics and check.topic not in topics):
            continue
        try:
            check.run()
        except testing.ConformanceError as error:
            found.add(check.topic if len(str(error)) > 15 else "an error without a sentence")
    return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "language_of", lambda array, wide: Narrow(compat))


def test_through_numpy_in_float64() -> None:
    assert failing(testing.NumpyArrays()) == set()


@pytest.mark.usefixtures("narrow")
def test_through_numpy_in_float32() -> None:
    assert failing(NarrowArrays()) == set()


def test_checks_have_names_of_their_own() -> None:
    names = [check.name for check in testing.approximate_checks(operations.OPERATIONS, testing.NumpyArrays())]
    assert len(set(names)) == len(names) > 200


right_sums = languages.Language.summed

# ---- liars: one thing wrong, and the suite tells ---------------------------------------------------------


def plain_sums(self: Any, terms: Any, axes: tuple[int, ...]) -> Any:
    """One after the other in float32, as a loop would."""
    if axes != (0,):
        return right_sums(self, terms, axes)
    total = np.cumsum(terms, dtype=np.float32)[-1]
    return total, np.zeros_like(total)


def unscaled(language: Any, largest: Any) -> Any:
    return np.ones_like(largest)


def unshaved(scene: Any) -> float:
    return 0.0


def wrong(right: Callable[..., Any], **changes: Any) -> Callable[..., Any]:
    """A decision with some of its parts replaced."""

    def decide(*args: Any, **kwargs: Any) -> Any:
        decision, *rest = right(*args, **kwargs)
        return (replace(decision, **{name: change(decision) for name, change in changes.items()}), *rest)

    return decide


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("where", "name", "lie", "topic"),
    [
        (languages.Language, "summed", plain_sums, "approximate-long"),
        (languages, "power_of_two", unscaled, "approximate-size"),
        (decided, "_shave", unshaved, "approximate-norms"),
        (segments, "sanitized", lambda language, v, dtype: np.nan_to_num(v, nan=1.0), "approximate-policies"),
        (operations._Call, "_overflow", lambda self, made, count: np.zeros_like(count), "approximate-overflow"),
    ],
    ids=["plain sums", "no scaling", "no shave", "another sanitize", "overflow not seen"],
)
def test_a_liar_in_float32_fails(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, lie: Any, topic: str) -> None:
    monkeypatch.setattr(where, name, lie)
    assert failing(NarrowArrays(), (topic,)) == {topic}


@pytest.mark.parametrize(
    ("changes", "topic"),
    [
        ({"zero": lambda d: np.zeros_like(d.zero)}, "approximate-norms"),
        ({"touched": lambda d: np.zeros_like(d.touched)}, "approximate-norms"),
        ({"second": lambda d: np.ones_like(d.second)}, "approximate-size"),
        ({"first": lambda d: d.first * (1 + 2.0**-20)}, "approximate-norms"),
    ],
    ids=["no zeros", "nothing done", "one step", "a factor too large"],
)
def test_a_decision_that_lies_fails(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Callable[[Any], Any]], topic: str
) -> None:
    monkeypatch.setattr(operations, "decide_norms", wrong(operations.decide_norms, **changes))
    assert failing(testing.NumpyArrays(), (topic,)) == {topic}
