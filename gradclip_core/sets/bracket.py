"""Two numbers between which a threshold should lie, from a sample; and whether it does, exactly.

A threshold found among some thousand elements is off by a few ranks. Between the two ranks around it
lie a few elements in a hundred: one pass copies them out and adds up what is above. Its sums are exact
where every element above is a multiple of one power of two and none is too large for that: so they
are wherever the elements are narrower than float64 and within 2^17 of the threshold. Where they are
not, or where the sample misled, the histograms of ``threshold.py`` find the same bits more slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradclip_core.forms import Passes, Reading, keys
from gradclip_core.protocol import FLOAT64, Buffer, FloatArray
from gradclip_core.reference_forms import load
from gradclip_core.sets.exact import exact_sum

WORTH = 1 << 19
"""Elements below which a histogram is as fast."""
_SAMPLE = 1 << 15
_SPREAD = 4.0
"""Standard deviations to either side."""
_SURE = 2.0**-30
"""More than float64 sums of as many elements as fit into memory are off by, relatively."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """The elements around the threshold, and the exact sum of those above, in units of ``exact.UNIT``."""

    values: FloatArray
    above: int
    total: int


def find_bracket(
    passes: Passes, buffers: Sequence[Buffer], reading: Reading, radius: float, largest: float, *, signed: bool
) -> Bracket | None:
    """What surrounds the τ with ``Σ max(u - τ, 0) = radius``, or None where a histogram has to tell."""
    size = sum(buffer.length * buffer.rows for buffer in buffers)
    if size < WORTH or any(buffer.dtype is FLOAT64 for buffer in buffers) or not _keeps_significands(reading):
        return None
    sample = _sampled(buffers, reading, size, signed)
    low, high = _guess(sample, radius * (sample.size / size))
    # What is above a normal number is a multiple of its last place as a float32; no 4096 of them reach 2^53 of these.
    if not (low > 0.0 and high > 2.0**-900 and (high == math.inf or largest <= high * 2.0**17)):
        return None
    first, last = keys(np.array([low, high])).tolist()
    found = passes.gather(buffers, reading, signed=signed, low=first, high=last)
    total = exact_sum(found.sums)
    top = float(np.sum(found.sums))
    all_ = top + float(np.sum(found.values))
    # Σ max(u - high, 0) and Σ max(u - low, 0): the radius is between them if τ is.
    least = top * (1 + _SURE) - found.above * high if found.above else 0.0
    most = all_ * (1 - _SURE) - (found.above + found.values.size) * low
    if least < radius < most:
        return Bracket(found.values, found.above, total)
    return None  # the sample misled


def _keeps_significands(reading: Reading) -> bool:
    return math.frexp(reading.inverse)[0] == 0.5 and reading.exponent == 0


def _sampled(buffers: Sequence[Buffer], reading: Reading, size: int, signed: bool) -> FloatArray:
    """Every k-th element of each row, falling."""
    step = size // _SAMPLE
    parts = [load(row[::step], buffer.dtype, reading) for buffer in buffers for row in buffer.as_numpy()]
    u = np.concatenate(parts)
    return np.sort(u if signed else np.abs(u))[::-1]


def _guess(sample: FloatArray, radius: float) -> tuple[float, float]:
    """The sample's own threshold, less and more what it can be off by: in value, and in rank.

    Its derivative by the sum above it is one over their number, and that sum and that number are
    those of a Poisson process.
    """
    sums, ranks = np.cumsum(sample), np.arange(1, sample.size + 1)
    above = max(1, int(np.count_nonzero(sums - ranks * sample < radius)))
    tau = (float(sums[above - 1]) - radius) / above
    off = _SPREAD * float(np.sqrt(np.sum((sample[:above] - tau) ** 2))) / above
    places = int(_SPREAD * math.sqrt(above)) + 16
    low = min(tau - off, float(sample[min(above + places, sample.size - 1)]))
    high = max(tau + off, float(sample[above - places])) if above > places else math.inf
    return low, high
