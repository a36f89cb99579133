"""Every backend of ours, held to the reference by the public suite."""

from __future__ import annotations

import os

import pytest

from gradclip_core import protocol, registry, testing

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
# Those of a device are held to the same suite in tests/gpu. ``array_api`` serves the host by name.
ON_HOST = sorted((*registry.PREFERENCE["cpu"], "array_api"))
EVERY = registry.PREFERENCE["cpu"]
"""Those of all storage types; the others say that they have no float8."""
NEEDS = {"numba_cpu": "numba", "array_api": "array_api_compat"}
HOST = protocol.Request(frozenset({"cpu"}), frozenset(protocol.BASE_DTYPES))
SERVED = [
    (name, dtype) for dtype in protocol.DTYPES for name in ON_HOST if dtype in protocol.BASE_DTYPES or name in EVERY
]


@pytest.mark.parametrize(("name", "dtype"), SERVED)
def test_conformance(name: str, dtype: str) -> None:
    """All checks of one dtype; without the JIT those that plain Python gets through in time."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    asked = protocol.Request(HOST.devices, frozenset(protocol.DTYPES))
    assert registry.reasons_against(name, asked if name in EVERY else HOST) == []
    backend = registry.load(name)
    slow = WITHOUT_JIT and name == "numba_cpu"
    ran = 0
    for number, check in enumerate(testing.checks(backend, dtypes=[dtype], thorough=not slow)):
        if slow and number % 7:
            continue
        check.run()
        ran += 1
    assert ran > (30 if slow else 250)


@pytest.mark.parametrize("name", ON_HOST)
def test_conformance_of_mixed_tables(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for check in testing.checks(registry.load(name), thorough=False):
        if "-table" in check.topic:
            check.run()


@pytest.mark.parametrize("name", EVERY)
def test_conversions(name: str) -> None:
    """From each storage type to each other: the test above asks about one at a time."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    slow = WITHOUT_JIT and name == "numba_cpu"
    ran = 0
    for number, check in enumerate(testing.checks(registry.load(name), thorough=False)):
        if check.topic == "form" and "/to-" in check.name and not (slow and number % 5):
            check.run()
            ran += 1
    assert ran > (5 if slow else 34)
