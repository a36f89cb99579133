"""``gradclip check``: hold the backends on this machine to the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.text import Text

from gradclip_core import registry, testing
from gradclip_core.cli.console import progress, say, table
from gradclip_core.cli.info import request
from gradclip_core.protocol import Backend

_SHOWN = 20


@dataclass
class Result:
    """What came of one backend's checks."""

    passed: dict[str, int] = field(default_factory=dict)
    """Topic -> how many; every topic is in both."""
    failed: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Name and sentence."""


def command(
    backend: Annotated[str | None, typer.Option(help="Check this one only, not all that can serve here.")] = None,
) -> None:
    """Hold the backends here to the conformance suite."""
    failures = 0
    for name in [backend] if backend is not None else sorted(registry.BACKENDS):
        if backend is not None:
            registry.select(backend, request(backend))  # one that was named serves or raises
        elif reasons := registry.reasons_against(name, request(name)):
            say(f"{name} cannot serve here: {'; '.join(reasons)}", "yellow")
            continue
        served = registry.load(name)
        # A backend for a device brings the device's memory along.
        memory = getattr(served, "memory_for_checks", lambda: None)()
        for kind, checks in _classes(served, memory):
            result = run(name, checks)
            _report(name, kind, result)
            failures += len(result.failures)
    if failures:
        raise typer.Exit(1)


def _classes(backend: Backend, memory: testing.Memory | None) -> Iterator[tuple[str, list[testing.Check]]]:
    """The classes of what a backend promises, and their checks: listed, so that the bar knows how many there are."""
    yield "exact: the reference's bits", list(testing.checks(backend, memory=memory))
    if (operations := getattr(backend, "operations", None)) is not None:
        kind = "approximate, where arrays have no memory: within the bounds of docs/numerics.md"
        yield kind, list(testing.approximate_checks(operations, testing.NumpyArrays()))


def run(name: str, checks: list[testing.Check]) -> Result:
    """All checks of one class of a backend; one that fails, in whatever way, stops none of the others."""
    result = Result()
    with progress() as bar:
        for check in bar.track(checks, description=name):
            topic = check.name.partition("/")[0]
            result.passed.setdefault(topic, 0)
            result.failed.setdefault(topic, 0)
            try:
                check.run()
            except testing.ConformanceError as error:
                result.failures.append((check.name, str(error)))
            except Exception as error:  # a backend under test may raise anything
                result.failures.append((check.name, f"{type(error).__name__}: {error}"))
            else:
                result.passed[topic] += 1
                continue
            result.failed[topic] += 1
    return result


def _report(name: str, kind: str, result: Result) -> None:
    rows = [
        (topic, str(passed), Text(str(result.failed[topic]), "red" if result.failed[topic] else ""))
        for topic, passed in result.passed.items()
    ]
    table(
        f"{name} ({kind.partition(',')[0].partition(':')[0]})",
        ("topic", "passed", "failed"),
        ("passed", "failed"),
        rows,
    )
    for check, sentence in result.failures[:_SHOWN]:
        say(f"{check}: {sentence}", "red")
    if len(result.failures) > _SHOWN:
        say(f"and {len(result.failures) - _SHOWN} more", "red")
    passed = sum(result.passed.values())
    if result.failures:
        say(f"{name}: {len(result.failures)} of {passed + len(result.failures)} checks failed ({kind})", "bold red")
    else:
        say(f"{name}: all {passed} checks passed ({kind})", "bold green")
