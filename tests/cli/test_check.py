"""``gradclip check``, on suites of our own making: the real one has its own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from gradclip_core import registry, testing
from tests.cli.helpers import refused, run


@dataclass
class Question:
    """All that the command needs of a check."""

    name: str
    run: Callable[[], None]


def good() -> None:
    pass


def wrong() -> None:
    raise testing.ConformanceError("sums[0] is 1.0, and the reference says 2.0")


def broken() -> None:
    raise ZeroDivisionError("by zero")


def suite(monkeypatch: pytest.MonkeyPatch, *checks: Question) -> None:
    def yield_them(_: object, memory: object) -> Iterator[Question]:
        assert memory is None, "the backends here are the host's"
        yield from checks

    monkeypatch.setattr(testing, "checks", yield_them)


def test_all_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, Question("measure/float32/a", good), Question("apply/x", good), Question("apply/y", good))
    result = run("check", "--backend", "numpy")
    assert result.code == 0, result.err
    assert "numpy: all 3 checks passed" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["measure", "1", "0"] in rows
    assert ["apply", "2", "0"] in rows


def test_failures_are_named_and_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, Question("a/1", wrong), Question("a/2", broken), Question("b/1", good))
    result = run("check")
    assert result.code == 1
    assert "a/1: sums[0] is 1.0, and the reference says 2.0" in result.out
    assert "a/2: ZeroDivisionError: by zero" in result.out
    assert "numpy: 2 of 3 checks failed" in result.out
    assert ["a", "0", "2"] in [line.split() for line in result.out.splitlines()]


def test_many_failures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, *(Question(f"a/{i}", wrong) for i in range(50)))
    assert "and 30 more" in run("check", "--backend", "numpy").out


def test_a_name_that_is_not_there() -> None:
    assert "there is no such backend" in refused(run("check", "--backend", "cuda9"))


def test_one_that_cannot_serve_is_passed_over_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, Question("a/1", good))
    monkeypatch.setitem(registry.BACKENDS, "elsewhere", ("no_such_module_anywhere:BACKEND", "pip install elsewhere"))
    result = run("check")
    assert result.code == 0
    assert "elsewhere cannot serve here: it cannot be imported" in result.out
    assert "pip install elsewhere" in refused(run("check", "--backend", "elsewhere"))


def test_the_real_suite_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real checks have what the command asks of them."""
    real = testing.checks

    def some(backend: object, memory: object) -> Iterator[testing.Check]:
        yield from (check for check, _ in zip(real(backend), range(20), strict=False))  # type: ignore[arg-type]

    monkeypatch.setattr(testing, "checks", some)
    result = run("check", "--backend", "numpy")
    assert result.code == 0, result.out
    assert "all 20 checks passed" in result.out
