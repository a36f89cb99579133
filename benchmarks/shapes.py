"""Gradients of real models, by their shapes."""

from __future__ import annotations

import itertools

from gradclip_core.cli.bench_shapes import Shapes, elements, gpt2, small

__all__ = ["Shapes", "densenet_like", "elements", "gpt2", "llama", "resnet50", "small"]


def llama(width: int = 2048, layers: int = 16, vocabulary: int = 128256, hidden: int = 8192, keys: int = 512) -> Shapes:
    """Like Llama 3.2 1B: 146 arrays, 1,235,814,400 elements; the output shares the embedding."""
    block: Shapes = [
        (width,), (width, width), (keys, width), (keys, width), (width, width),
        (width,), (hidden, width), (hidden, width), (width, hidden),
    ]  # fmt: skip
    return [(vocabulary, width), *(layers * block), (width,)]


def resnet50(width: int = 64, classes: int = 1000) -> Shapes:
    """ResNet-50: 161 arrays, 25,557,032 elements (He et al. 2015, output first, as PyTorch stores them)."""
    shapes: Shapes = [(width, 3, 7, 7), (width,), (width,)]
    before = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(blocks):
            convolutions = [(inner, before, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            if block == 0:
                convolutions.append((4 * inner, before, 1, 1))
            for convolution in convolutions:
                shapes += [convolution, convolution[:1], convolution[:1]]
            before = 4 * inner
    return [*shapes, (classes, before), (classes,)]


def densenet_like(count: int = 10_000) -> Shapes:
    """Tiny arrays in a DenseNet's order: two norms and two convolutions a layer, the first one's input growing."""
    shapes: Shapes = []
    for channels in itertools.cycle(range(16, 65, 4)):
        if len(shapes) >= count:
            return shapes[:count]
        shapes += [(channels,), (channels,), (16, channels, 1, 1), (16,), (16,), (4, 16, 3, 3)]
    raise AssertionError("a cycle does not end")
