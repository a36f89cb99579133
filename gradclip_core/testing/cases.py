"""The test vectors: values that tell a right sum from one that is nearly right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradclip_core.protocol import BFLOAT16, FLOAT64, DType, FloatArray
from gradclip_core.reference import BLOCK, narrow, widen
from gradclip_core.testing.memory import Stored

EDGES = (0, 1, 2, 3, 17, 255, 256, 257, 4095, 4096, 4097)
"""Lengths around the lanes and the block of the sum."""
DEEP = (3 * BLOCK + 5, 40 * BLOCK + 1)
"""Lengths whose sum has a second level."""
EDGES_OF_CODES = (0, 1, 17, 257, 4096, 4097)
"""Lengths for types of 8 bits, whose 256 values are soon asked for, and whose sums are as those of the others."""


def stored(values: Any, dtype: DType) -> Stored:
    """Float64 values in a storage type, rounded to nearest."""
    wide = np.asarray(values, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return narrow(wide if dtype is FLOAT64 else wide.astype(np.float32), dtype)


def generator(dtype: DType, salt: int = 0) -> np.random.Generator:
    """The same numbers for everybody, everywhere, always."""
    return np.random.Generator(np.random.PCG64([salt, sum(map(ord, dtype.name))]))


def random(dtype: DType, length: int, salt: int = 0) -> Stored:
    """Normal numbers: their squares use all the bits of a float64, so that the order of adding shows."""
    return stored(generator(dtype, salt).standard_normal(length), dtype)


def finite(dtype: DType, *, deep: bool) -> Iterator[tuple[str, Stored]]:
    """Named vectors of finite values."""
    tiny = dtype.itemsize == 1
    for length in (EDGES_OF_CODES if tiny else EDGES) + (DEEP[: 1 if tiny else 2] if deep else ()):
        yield f"normal-{length}", random(dtype, length)
    rng = generator(dtype, 1)
    lowest, highest = math.log2(dtype.smallest), math.log2(dtype.largest)
    if dtype is FLOAT64:
        lowest, highest = -390.0, 390.0  # beyond, the core asks for exponents
    signs = rng.choice([-1.0, 1.0], 5000)
    yield "all-magnitudes", stored(signs * 2.0 ** rng.uniform(lowest, highest - 1e-6, 5000), dtype)
    yield "subnormals", stored(rng.integers(-100, 100, 700) * dtype.smallest, dtype)
    yield "one-subnormal", stored([0.0, -dtype.smallest, 0.0], dtype)
    if dtype is not FLOAT64:
        yield "largest", stored(rng.choice([-dtype.largest, dtype.largest], 4500), dtype)
    yield "zeros", stored([0.0, -0.0] * 300, dtype)
    if tiny:
        yield "every-code", halfway(dtype)
        return
    needle = np.full(5000, 2.0**-12)
    needle[4321] = 1.0
    yield "one-large-among-small", stored(needle, dtype)
    # A lane of 1 and 15 squares just under half an ulp: any other order of adding keeps them.
    lost = np.zeros((16, 256))
    lost[0], lost[1:] = 1.0, 2.0**-27
    yield "lost-in-order", stored(lost.reshape(-1), dtype)
    # Sums of values that are close together are exact, in any order and in integers; of wider ones not.
    for width in (10, 12, 13, 15, 16, 18):
        spread = signs[:4096] * 2.0 ** rng.uniform(-width, 0.0, 4096)
        yield f"spread-over-{width}-bits", stored(np.where(signs[904:] > 0, spread, 0.0), dtype)
    yield "last-element-alone", stored([0.0] * 4096 + [3.0], dtype)


def nonfinite(dtype: DType) -> Iterator[tuple[str, Stored]]:
    """Named vectors with infinities and NaNs, at the places that loops forget."""
    for length in (300, 4099) if dtype.itemsize == 1 else (1, 300, 4096, 4099):
        for place in sorted({0, length // 2, length - 1}):
            for name, value in (("inf", math.inf), ("-inf", -math.inf), ("nan", math.nan)):
                v = random(dtype, length, salt=2)
                v[place] = stored([value], dtype)[0]
                yield f"{name}-at-{place}-of-{length}", v
    mixed = random(dtype, 9000, salt=3)
    mixed[::7] = stored([math.inf], dtype)[0]
    mixed[3::11] = stored([-math.inf], dtype)[0]
    mixed[5::13] = stored([math.nan], dtype)[0]
    yield "many-of-each", mixed
    yield "all-nan", stored([math.nan] * 20, dtype)


def bits(x: Stored, dtype: DType) -> Stored:
    """The elements' bits, all NaNs being one."""
    unsigned = x.view(f"u{dtype.itemsize}").copy()
    with np.errstate(invalid="ignore"):  # signalling NaNs
        unsigned[np.isnan(widen(x, dtype))] = np.array(-1, f"i{dtype.itemsize}").view(unsigned.dtype)
    return unsigned


def between(dtype: DType) -> FloatArray:
    """Half way between two stored values, the last one and infinity among them, and what is no number."""
    rng = generator(dtype, 4)
    lowest, highest = max(-390.0, math.log2(dtype.smallest)), min(390.0, math.log2(dtype.largest))
    low = stored(2.0 ** rng.uniform(lowest, highest - 1e-6, 400), dtype)
    high = (low.view(f"u{dtype.itemsize}") + 1).astype(f"u{dtype.itemsize}").view(dtype.view)
    with np.errstate(invalid="ignore"):
        middle = 0.5 * widen(low, dtype).astype(np.float64) + 0.5 * widen(high, dtype).astype(np.float64)
    past = math.ldexp(dtype.roundoff, math.frexp(dtype.largest)[1] - 1)
    ends = [dtype.largest, dtype.largest + past, dtype.largest + 2 * past, dtype.smallest / 2, 0.0, math.inf, math.nan]
    every = np.concatenate([middle[np.isfinite(middle)], ends])
    signed: FloatArray = np.concatenate([every, -every])
    return signed


def halfway(dtype: DType) -> Stored:
    """Values that times 1 + 2^-11, and others, fall half way between two stored ones. Of 8 bits, all there are."""
    if dtype.itemsize == 1:
        every: Stored = np.arange(256, dtype=np.uint8)
        finite: Stored = every[np.isfinite(widen(every, dtype))]
        return finite
    if dtype is BFLOAT16:
        return np.arange(0x3F00, 0x4100, dtype=np.uint16)
    return stored(1.0 + np.arange(2048) / 2048.0, dtype)
