"""The oracle itself: the exact arithmetic that the other tests compare with."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import exact
from tests.core.promises import FIXED

U = 2.0**-53
NARROW_BOUND = 2.0**-46


def test_the_oracle_knows_what_everyone_knows() -> None:
    assert exact.norm([np.array([3.0, 4.0])]) == 5
    assert exact.norm([np.array([3.0], np.float32), np.array([4 + 12j], np.complex64)]) == 13
    assert exact.norm([np.ones(3)]) == math.sqrt(3)
    assert exact.norm([np.array([-2.0, 1.0])], 1) == 3
    assert exact.norm([np.array([-2.0, 1.0])], math.inf) == 2
    assert exact.norm([np.array([1e308, 1e308])], 1) == math.inf
    assert exact.norm([np.array([3.0, 4.0, 5.0])], 3) == 6
    assert exact.norm([]) == exact.norm([np.zeros(4)], 1) == exact.norm([np.array([])], math.inf) == 0
    # sqrt(2) and sqrt(3) quanta are 1.41 and 1.73 quanta: 1 and 2, once rounded
    assert exact.norm([np.full(2, 5e-324)]) == 5e-324
    assert exact.norm([np.full(3, 5e-324)]) == 2 * 5e-324


@FIXED
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_the_oracle_agrees_with_fractions_one_by_one(values: list[float]) -> None:
    x = np.array(values, np.float64)
    assert exact.power_sum([x], 2) == sum((Fraction(v) ** 2 for v in values), Fraction(0))
    assert exact.power_sum([x], 1) == sum((abs(Fraction(v)) for v in values), Fraction(0))
    assert exact.largest([x]) == max((abs(Fraction(v)) for v in values), default=0)


@FIXED
@given(st.fractions(min_value=0, max_value=10**30))
def test_the_oracles_root_is_the_nearest(square: Fraction) -> None:
    found = exact.root(square)
    here = Fraction(found)
    below, above = (Fraction(float(np.nextafter(found, side))) for side in (-np.inf, np.inf))
    assert max(Fraction(0), (here + below) / 2) ** 2 <= square <= ((here + above) / 2) ** 2


def test_the_oracle_compares_exactly() -> None:
    ones = [np.ones(3)]  # math.sqrt(3) is below the root of 3
    assert not exact.norm_at_most(ones, math.sqrt(3))
    assert exact.norm_at_least(ones, math.sqrt(3))
    assert exact.norm_at_most(ones, math.nextafter(math.sqrt(3), 2))
    assert exact.within(math.sqrt(3), ones, U)
    assert not exact.within(math.sqrt(3), ones, 0)
    assert not exact.within(math.sqrt(3) * (1 + 2.0**-45), ones, NARROW_BOUND)
    with pytest.raises(ValueError, match="no infinities"):
        exact.norm([np.array([np.inf])])
