"""The order of additions, against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradclip_core.reference import tree_sum
from tests.core.promises import FIXED


@FIXED
@given(st.integers(1, 3 * 4096 + 1), st.integers(0, 2**32 - 1))
def test_tree_sum_is_its_definition(n: int, seed: int) -> None:
    """Spelled out with Python floats: 16 rows in order, then halves folded, block by block."""
    v = np.random.default_rng(seed).standard_normal(n) ** 2
    level = v.tolist()
    while True:
        sums = []
        for start in range(0, len(level), 4096):
            block = level[start : start + 4096]
            block += [0.0] * (4096 - len(block))
            lanes = block[:256]
            for row in range(256, 4096, 256):
                lanes = [a + b for a, b in zip(lanes, block[row : row + 256], strict=True)]
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
            sums.append(lanes[0])
        level = sums
        if len(level) == 1:
            break
    assert tree_sum(v) == level[0]
