"""docs/gpu.md says what is counted, and what is counted keeps the promises that a call on a device makes."""

from __future__ import annotations

import pytest

from gradclip_core.protocol import BFLOAT16, FLOAT16
from tests.gpu.costs import spread
from tests.gpu.costs.count import DTYPES, RULES, Cost, costs
from tests.gpu.costs.model import SIZES, multi_tensor_launches, ours
from tests.gpu.costs.table import TABLES, documented
from tests.gpu.toolkit import pipes
from tests.gpu.toolkit.needs import needs_nvrtc

pytestmark = needs_nvrtc


@pytest.mark.parametrize("name", TABLES)
def test_the_document_has_the_table_that_is_made(name: str) -> None:
    assert TABLES[name]() == documented(name), "run python -m tests.gpu.costs --write"


def test_the_promises() -> None:
    found = costs()
    for rule in RULES:
        for dtype in DTYPES:
            unclipped, clipped = found[rule, dtype, False], found[rule, dtype, True]
            for cost in (unclipped, clipped):
                assert cost.waits == 0, "the host waits, and nothing asked it to"
                assert cost.allocations == 0, "a warm call allocates"
            assert unclipped.written == 0, "a step that clips nothing writes"
            assert unclipped.read == rule.count(",") + 1, "a step that clips nothing reads more than once"
            assert clipped.kernels == unclipped.kernels, "the launches depend on values, which the host cannot know"


def test_the_model_takes_what_is_counted() -> None:
    found = costs()
    for dtype in DTYPES[:3]:
        unclipped, clipped = found["global", dtype, False], found["global", dtype, True]
        assert ours().launches == unclipped.launches + unclipped.memsets
        assert (ours().unclipped, ours().clipped) == tuple(map(_moved, (unclipped, clipped)))


def _moved(cost: Cost) -> float:
    return cost.read + cost.written


def test_who_is_bound_by_float64() -> None:
    """The prose below the table: nobody with ordinary data, and whom with spread lanes."""
    spread = set()
    for card in pipes.CARDS:
        for dtype in pipes.ITEMSIZES:
            busy = pipes.shares(card, dtype)
            worst = busy.pop("spread")
            assert max(busy.values()) < 1, f"{card.name} is not bound by memory, for {dtype}"
            spread |= {card.name} if worst > 1 else set()
    assert spread == {"RTX 2080 Ti", "RTX 3090", "RTX 5090"}


def test_the_launches_of_a_multi_tensor_launcher() -> None:
    assert sum(SIZES) == 124_439_808
    assert multi_tensor_launches([10] * 110, 110, 320) == 1
    assert multi_tensor_launches([10] * 111, 110, 320) == 2
    assert multi_tensor_launches([65536 * 320], 110, 320) == 1
    assert multi_tensor_launches([65536 * 320 + 1], 110, 320) == 2
    assert multi_tensor_launches([], 110, 320) == 0


def test_ordinary_values_are_seldom_spread() -> None:
    """docs/gpu.md says 14% and 2% of a warp's groups, and none for small float16."""
    assert round(spread.shares(FLOAT16)[1], 2) == 0.14
    assert round(spread.shares(BFLOAT16)[1], 2) == 0.02
    assert spread.shares(FLOAT16, 2.0**-10)[1] == 0.0
