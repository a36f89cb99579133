"""Whether measuring keeps pace with memory, by counts of its machine code: see ``tests/gpu/toolkit/pipes.py``."""

from __future__ import annotations

import pytest

from tests.gpu.cupy.test_compiled import needs_disassembler
from tests.gpu.toolkit import archs
from tests.gpu.toolkit.needs import needs_nvrtc
from tests.gpu.toolkit.pipes import CARDS, ITEMSIZES, LANE, Card, costs, shares

pytestmark = [needs_nvrtc, needs_disassembler]

BY_CARD = [pytest.param(card, dtype, id=f"{card.name}-{dtype}") for card in CARDS for dtype in ITEMSIZES]
# Lanes of 16 bits that cannot be summed as integers, should every warp have one: the time in times of memory's.
# The order of the summation asks for an addition an element there, and these cards have no more float64.
SPREAD = {"RTX 2080 Ti": 1.76, "RTX 3090": 2.03, "RTX 5090": 1.32}


@pytest.fixture(scope="module", autouse=True)
def _ahead() -> None:
    archs.start(("measure.cu", arch) for arch in archs.PRINCIPAL)


@pytest.mark.parametrize(("card", "dtype"), BY_CARD)
def test_no_unit_is_slower_than_memory(card: Card, dtype: str) -> None:
    share = shares(card, dtype)
    spread = share.pop("spread")
    assert max(share.values()) <= 1.0, share
    if ITEMSIZES[dtype] == 2 and card.name in SPREAD:
        assert round(spread, 2) == SPREAD[card.name]  # to be known when it changes
    else:
        assert spread <= 1.0


@pytest.mark.parametrize("arch", archs.PRINCIPAL)
@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_float64_does_no_more_than_it_has_to(arch: int, dtype: str) -> None:
    """An operation an element, two where a square has to be rounded; a lane of 16 bits takes one where it is slow."""
    cost, fast = costs(arch, dtype), arch in (80, 90, 100)
    if dtype == "float64":
        assert cost["float64"] == 2
    else:
        assert cost["float64"] == (1 if fast or dtype == "float32" else 1 / LANE)
    # Conversions to float64 are operations of float64 where that is slow.
    assert cost["converts"] == (1 if fast and dtype != "float64" else 0)
