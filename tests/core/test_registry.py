"""Who serves: a named backend serves or raises, an unnamed one is chosen, and no fallback is silent."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import registry, testing
from gradclip_core.protocol import Request


class Stranger(testing.Loopback):
    """A backend from outside, which serves float32 alone."""

    name = "stranger"

    def not_supported_reasons(self, request: Request) -> list[str]:
        reasons = super().not_supported_reasons(request)
        if other := request.dtypes - {"float32"}:
            reasons.append(f"it serves float32 alone, not {', '.join(sorted(other))}")
        return reasons


BACKEND = Stranger()


@pytest.fixture
def stranger() -> Iterator[str]:
    preference = dict(registry.PREFERENCE)
    registry.register("stranger", f"{__name__}:BACKEND", "pip install stranger", devices=("cpu",))
    registry._loaded["stranger"] = BACKEND  # the module's name differs with how the tests are run
    yield "stranger"
    del registry.BACKENDS["stranger"]
    registry._loaded.pop("stranger", None)
    registry.PREFERENCE.clear()
    registry.PREFERENCE.update(preference)


def test_a_registered_backend_is_preferred_and_gives_the_same_bits(stranger: str) -> None:
    grads = [np.random.default_rng(0).standard_normal(9000).astype(np.float32)]
    clipped, info = gc.clip_by_global_norm(grads, 1.0)
    same, reference = gc.clip_by_global_norm(grads, 1.0, backend="numpy")
    assert (info.backend, info.passed_over) == ("stranger", {})
    assert clipped[0].tobytes() == same[0].tobytes()
    assert info.norm == reference.norm


def test_who_is_passed_over_is_recorded_with_the_reason(stranger: str) -> None:
    _, info = gc.clip_by_global_norm([np.ones(3)], 1.0)
    assert info.backend != "stranger"
    assert info.passed_over["stranger"] == ["it serves float32 alone, not float64"]


def test_a_named_backend_serves_or_raises(stranger: str) -> None:
    grads = [np.full(3, 7.0)]
    with pytest.raises(gc.BackendError, match="it serves float32 alone, not float64") as caught:
        gc.clip_by_global_norm_(grads, 1.0, backend="stranger")
    assert caught.value.cure == "Leave backend=None to have one chosen"
    assert grads[0].tolist() == [7.0, 7.0, 7.0]
    assert gc.clip_by_global_norm(grads, 1.0, backend="numpy")[1].backend == "numpy"


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(
        gc.BackendError, match=r"there is no such backend\. There are array_api, cupy_raw, numba_cpu, numba_cuda, numpy"
    ):
        gc.global_norm([np.ones(1)], backend="cupy")


def test_a_backend_that_cannot_be_imported() -> None:
    registry.register("broken", "no_such_module_anywhere:BACKEND", "pip install broken")
    try:
        with pytest.raises(
            gc.BackendError, match=r"it cannot be imported \(ModuleNotFoundError.*Try: pip install broken"
        ):
            gc.global_norm([np.ones(1)], backend="broken")
        assert "pip install broken" in registry.reasons_against("broken", Request(frozenset(), frozenset()))[0]
    finally:
        del registry.BACKENDS["broken"]


def test_memory_that_nobody_serves() -> None:
    request = Request(frozenset({"moon:0"}), frozenset({"float32"}))
    with pytest.raises(gc.BackendError, match="no backend serves memory on moon:0"):
        registry.select(None, request)


def test_every_order_of_norm_reaches_a_registered_backend(stranger: str) -> None:
    x = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    for ord in (1, 2, math.inf, 2.5):  # the loopback is the reference: the same bits for 2.5 too
        assert gc.global_norm([x], ord) == gc.global_norm([x], ord, backend="numpy")


def test_what_has_no_passes_is_no_backend(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry._loaded.pop("stranger")
    monkeypatch.setitem(registry.BACKENDS, "stranger", ("math:pi", "pip install stranger"))
    with pytest.raises(gc.BackendError, match="math:pi has no name, not_supported_reasons, measure, apply"):
        gc.clip_by_global_norm([np.ones(3)], 1.0, backend="stranger")
