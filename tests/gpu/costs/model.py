"""What a clip would take on a GPU, by arithmetic: bytes over bandwidth, and a gap for each launch. Nothing is measured.

The launches of others are counted from their sources, which docs/gpu.md names; ours are counted in ``count.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.shapes import gpt2

GAP = 3e-6
"""Seconds a launch costs where kernels are short, the same for everybody: an assumption, see docs/gpu.md."""
CARDS = {"H100 SXM": 3.35e12, "RTX 4090": 1.008e12}
"""Bytes a second, from the data sheets."""
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
SIZES = tuple(math.prod(shape) for shape in gpt2())
CHUNK = 65536
"""Elements that one thread block of a multi-tensor launch takes, in all three."""


@dataclass(frozen=True)
class Clip:
    """One way of clipping, for given gradients. ``passes`` counts bytes in units of the gradients' bytes."""

    name: str
    launches: int
    waits: int
    unclipped: int
    clipped: int

    def seconds(self, nbytes: int, bandwidth: float, *, clipped: bool) -> float:
        """The prediction."""
        return (self.clipped if clipped else self.unclipped) * nbytes / bandwidth + self.launches * GAP


def multi_tensor_launches(sizes: Sequence[int], most_tensors: int, most_blocks: int) -> int:
    """A multi-tensor launcher launches whenever its table of tensors or of chunks is full, and at the end."""
    launches = tensors = blocks = 0
    for size in sizes:
        tensors += 1
        chunks = -(-size // CHUNK)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (tensors == most_tensors and last) or blocks == most_blocks:
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


def ours() -> Clip:
    """One clearing of a record, measure, decide, apply; gradients that have moved cost one launch more."""
    return Clip("gradclip-core, `cupy_raw`", 1 + 3, 0, 1, 3)


def foreach(sizes: Sequence[int], most_tensors: int, most_blocks: int, name: str) -> Clip:
    """PyTorch: a fill, the norms and their clean-up, stack, norm, add, reciprocal, multiply, clamp, and the product."""
    tables = multi_tensor_launches(sizes, most_tensors, most_blocks)
    stacked = -(-len(sizes) // 128)
    return Clip(name, 1 + tables + -(-len(sizes) // 400) + stacked + 1 + 1 + 2 + 1 + tables, 0, 3, 3)


def apex(sizes: Sequence[int], dtype: str) -> Clip:
    """Two fills, the norm and its clean-up, cat, norm, add, reciprocal, multiply, clamp, a wait, and the product.

    For bfloat16 a norm and a product for each tensor, and no wait.
    """
    if dtype == "bfloat16":
        return Clip("Apex", 1 + len(sizes) + -(-len(sizes) // 128) + 1 + 1 + 2 + 1 + len(sizes), 0, 3, 3)
    norms, products = multi_tensor_launches(sizes, 110, 320), multi_tensor_launches(sizes, 64, 320)
    return Clip("Apex", 2 + norms + 1 + 1 + 1 + 1 + 2 + 1 + products, 1, 3, 3)


def transformer_engine(sizes: Sequence[int]) -> Clip:
    """As Megatron-Core calls it, without its all-reduces: four fills, the norm and its clean-up, two powers, add,
    reciprocal, multiply, clamp, and the product."""
    norms, products = multi_tensor_launches(sizes, 110, 320), multi_tensor_launches(sizes, 64, 320)
    return Clip("TransformerEngine, by Megatron-Core", 4 + norms + 1 + 2 + 1 + 2 + 1 + products, 0, 3, 3)


def ways(dtype: str) -> list[Clip]:
    """All that are compared, for a GPT-2 124M."""
    return [
        ours(),
        foreach(SIZES, 110, 320, "PyTorch foreach, tables of 4 KiB"),
        foreach(SIZES, 770, 2240, "PyTorch foreach, tables of 32 KiB"),
        apex(SIZES, dtype),
        transformer_engine(SIZES),
    ]


def predictions() -> list[list[object]]:
    """Rows: who, dtype, launches, waits, bytes, and milliseconds on each card, unclipped and clipped."""
    rows: list[list[object]] = []
    for dtype, itemsize in ITEMSIZES.items():
        nbytes = itemsize * sum(SIZES)
        for way in ways(dtype):
            moved = f"{way.unclipped * nbytes / 1e6:,.0f} / {way.clipped * nbytes / 1e6:,.0f}"
            cells = [dtype, way.name, way.launches, way.waits, moved]
            for bandwidth in CARDS.values():
                both = (1e3 * way.seconds(nbytes, bandwidth, clipped=clipped) for clipped in (False, True))
                cells.append(" / ".join(f"{time:.2f}" for time in both))
            rows.append(cells)
    return rows


PREDICTED = ("dtype", "who", "launches", "waits", "MB moved", *(f"{card}, ms" for card in CARDS))
