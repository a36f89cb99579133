"""Gradients of real models, by their shapes."""

from __future__ import annotations


def gpt2(width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024) -> list[tuple[int, ...]]:
    """GPT-2 124M: 148 arrays, 124,439,808 elements (Radford et al. 2019, the published checkpoint)."""
    block: list[tuple[int, ...]] = [
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (context, width), *(layers * block), (width,), (width,)]
