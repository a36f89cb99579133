"""The shapes of gradients that are timed."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shapes = list[tuple[int, ...]]


def gpt2(width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """GPT-2 124M: 148 arrays, 124,439,808 elements (Radford et al. 2019, the published checkpoint)."""
    block: Shapes = [
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (context, width), *(layers * block), (width,), (width,)]


def small(count: int) -> Shapes:
    """Arrays of 64 to 1,024 elements, evenly spread, in an order that favours nobody."""
    return [(64 + 577 * i % 961,) for i in range(count)]


def elements(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of all of them together."""
    return sum(math.prod(shape) for shape in shapes)
