"""The reference of the passes that projections are made of. See ``forms.py`` for the formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.forms import BINS, EXTREMES, Form, Gathered, Reading, Tally, keys
from gradclip_core.protocol import FLOAT64, Buffer, DType, FloatArray, segments
from gradclip_core.reference import block_sums, narrow, rows_of, sanitized, tree_sum, widen

_CHUNK = 64 * 4096


# ---- elements -----------------------------------------------------------------------------------


def load(x: npt.NDArray[Any], dtype: DType, reading: Reading) -> FloatArray:
    """Stored elements as u: ``x · inverse``, rounded once, and then ``· 2^-exponent``."""
    v = widen(x, dtype)
    if reading.sanitize:
        v = sanitized(v, dtype)
    u: FloatArray = v.astype(np.float64) * reading.inverse
    return np.ldexp(u, -reading.exponent) if reading.exponent else u


def store(y: FloatArray, dtype: DType, reading: Reading) -> npt.NDArray[Any]:
    """``y · 2^exponent`` in the storage type, rounded once, to nearest, ties to even."""
    if reading.exponent:
        y = np.ldexp(y, reading.exponent)
    if not dtype.coded:
        return y.astype(dtype.view)
    # Rounded to odd at 24 bits first: the second rounding then is as if it were the only one.
    nearest = y.astype(np.float32)
    bits = nearest.view(np.uint32)
    back = nearest.astype(np.float64)
    bits = bits - (np.abs(back) > np.abs(y))
    bits = bits | (back != y)
    bits = np.where(np.isfinite(y), bits, nearest.view(np.uint32)).astype(np.uint32)
    return narrow(bits.view(np.float32), dtype)


# ---- forms --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of one segment."""

    a: float
    b: float
    c: float
    e: float


def solve_power(magnitude: FloatArray, a: float, p: float) -> FloatArray:
    """The ``z >= 0`` with ``z + a·z^(p-1) = magnitude``, to ``2^-50·max(1, 1/(p-1))``: Newton's method on logarithms.

    ``log(z + a·z^(p-1))`` over ``log z`` is convex and rises, by 1 or p-1 at most, so that the steps
    from above never pass the solution, and are few however far apart the two terms are.
    """
    if a == 0:
        return magnitude.copy()
    # Both terms are at most the sum: z <= magnitude, and z <= (magnitude/a)^(1/(p-1)).
    z = np.minimum(magnitude, (magnitude / a) ** (1.0 / (p - 1.0)))
    going = z > 0
    for _ in range(100):
        power = a * z ** (p - 1.0)
        off = np.log1p(((z - magnitude) + power) / magnitude)
        new = z * np.exp(-off * ((z + power) / (z + (p - 1.0) * power)))
        # What does not fall any more is there, but for rounding.
        going = going & (new < z)
        if not bool(going.any()):
            return z
        z = np.where(going, new, z)
    return z


def make(kind: str, u: FloatArray, w: FloatArray, numbers: Numbers) -> FloatArray:
    """``FORMS``, but for ``given``."""
    a, b, c = numbers.a, numbers.b, numbers.c
    if kind == "same":
        return u
    if kind == "soft":
        z = (np.abs(u) - a) - b
        z = np.where(z > 0, z * c, 0.0)  # +0, where ``np.maximum`` gives either zero
        return np.where(u < 0, -z, z)
    if kind == "shift":
        z = (u - a) - b
        return np.where(z > 0, z, 0.0)
    if kind == "scale":
        return u * a
    if kind == "clamp":
        z = np.where(u < -a, -a, u)
        return np.where(z > a, a, z)
    if kind == "fit":
        z = u * a
        z = np.where(z < b, b, z)  # NaN is neither, and stays
        return np.where(z > c, c, z)
    if kind == "secular":
        return u / (1.0 + a * w)
    if kind == "power":
        z = solve_power(np.abs(u), a, b)
        return np.where(u < 0, -z, z)
    if kind == "along":
        return u - a * w
    raise KeyError(kind)


# ---- moments ------------------------------------------------------------------------------------

Moment = Callable[[FloatArray, FloatArray, FloatArray, Numbers], FloatArray]


def _steep(u: FloatArray, y: FloatArray, w: FloatArray, n: Numbers) -> FloatArray:
    z = np.abs(y)
    safe = np.where(z > 0, z, 1.0)
    return np.where(z > 0, safe ** (2 * n.b - 2) / (1.0 + n.a * (n.b - 1) * safe ** (n.b - 2)), 0.0)


TERMS: dict[str, Moment] = {
    "y2": lambda u, y, w, n: y * y,
    "dy": lambda u, y, w, n: (u - y) * y,
    "d2": lambda u, y, w, n: (u - y) * (u - y),
    "abs": lambda u, y, w, n: np.abs(y),
    "sum": lambda u, y, w, n: y,
    "count": lambda u, y, w, n: (y != 0).astype(np.float64),
    "max_y": lambda u, y, w, n: np.abs(y),
    "low_y": lambda u, y, w, n: y,
    "max_d": lambda u, y, w, n: np.abs(u - y),
    "top_d": lambda u, y, w, n: u - y,
    "max_e": lambda u, y, w, n: np.abs(u - n.e * y),
    "wy": lambda u, y, w, n: w * y,
    "w2": lambda u, y, w, n: w * w,
    "wy2": lambda u, y, w, n: w * (y * y),
    "slope": lambda u, y, w, n: (w * y) * (w * y) / (1.0 + n.a * w),
    "d2_w": lambda u, y, w, n: (u - y) * (u - y) / w,
    "pow_y": lambda u, y, w, n: np.abs(y) ** n.e,
    "pow_d": lambda u, y, w, n: np.abs(u - y) ** (n.e / (n.e - 1.0)),
    "steep": _steep,
    "abs_wy": lambda u, y, w, n: np.abs(w * y),
    "rest2": lambda u, y, w, n: ((u - y) - n.a * w) * ((u - y) - n.a * w),
    "abs_d": lambda u, y, w, n: np.abs(u - y),
}
# NaN is the extreme of anything that holds one.
_EXTREME: dict[str, Callable[[FloatArray], float]] = {
    name: (np.min if start == np.inf else np.max) for name, start in EXTREMES.items()
}


class NumpyPasses:
    """See ``Passes``."""

    def map(
        self,
        buffers: Sequence[Buffer],
        out: Sequence[Buffer] | None,
        reading: Reading,
        form: Form,
        moments: Sequence[str],
        *,
        rounded: bool = True,
    ) -> FloatArray:
        """See ``Passes.map``."""
        found = np.zeros((len(moments), segments(buffers)))
        sources = rows_of(buffers)
        targets = rows_of(out) if out is not None else None
        companions = rows_of(form.companions) if form.companions else None
        values = (row for array in form.values for row in array) if form.kind == "given" else None
        with np.errstate(all="ignore"):
            for segment, (x, dtype) in enumerate(sources):
                target, stored_as = next(targets) if targets is not None else (None, dtype)
                w, w_dtype = next(companions) if companions is not None else (x[:0], FLOAT64)
                numbers = Numbers(form.a[segment], form.b[segment], form.c[segment], form.e)
                given = next(values) if values is not None else None
                parts: list[list[Any]] = [[] for _ in moments]
                for start in range(0, x.size, _CHUNK):
                    here = slice(start, start + _CHUNK)
                    u = load(x[here], dtype, reading)
                    weights = widen(w[here], w_dtype).astype(np.float64)
                    y = given[here] if given is not None else make(form.kind, u, weights, numbers)
                    if rounded:
                        stored = store(y, stored_as, reading)
                        if target is not None:
                            target[here] = stored
                        y = load(stored, stored_as, Reading(exponent=reading.exponent))
                    for part, name in zip(parts, moments, strict=True):
                        term = TERMS[name](u, y, weights, numbers)
                        part.append(_EXTREME[name](term) if name in EXTREMES else block_sums(term))
                for row, name, part in zip(found, moments, parts, strict=True):
                    row[segment] = _total(name, part)
        return found

    def tally(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, prefix: int, used: int) -> Tally:
        """See ``Passes.tally``."""
        tally = Tally(*(np.zeros(BINS, np.int64) for _ in range(3)))
        for u in _chunks(buffers, reading, signed):
            key = keys(u)
            if used:
                here = key >> np.uint64(64 - used) == np.uint64(prefix)
                u, key = u[here], key[here]
            bins = ((key >> np.uint64(48 - used)) & np.uint64(BINS - 1)).astype(np.int64)
            significand = (np.abs(np.frexp(u)[0]) * 2.0**53).astype(np.int64)
            subnormal = np.abs(u) < 2.0**-1022  # one exponent for all of them, as it is stored
            significand = np.where(subnormal, u.view(np.int64) & ((1 << 52) - 1), significand)
            # Sums of 2^18 integers of 27 bits are exact in float64, which is what bincount adds in.
            tally.counts[:] += np.bincount(bins, minlength=BINS)
            tally.high[:] += np.bincount(bins, significand >> 26, BINS).astype(np.int64)
            tally.low[:] += np.bincount(bins, significand & ((1 << 26) - 1), BINS).astype(np.int64)
        return tally

    def gather(self, buffers: Sequence[Buffer], reading: Reading, *, signed: bool, low: int, high: int) -> Gathered:
        """See ``Passes.gather``."""
        values, sums, count = [np.zeros(0)], [np.zeros(0)], 0
        for u in _chunks(buffers, reading, signed):
            key = keys(u)
            values.append(u[(key >= np.uint64(low)) & (key <= np.uint64(high))])
            above = key > np.uint64(high)
            count += int(np.count_nonzero(above))
            with np.errstate(all="ignore"):
                sums.append(block_sums(np.where(above, u, 0.0)))
        return Gathered(np.concatenate(values), count, np.concatenate(sums))


def _total(name: str, parts: list[Any]) -> float:
    if name in EXTREMES:
        return float(_EXTREME[name](np.array([*parts, EXTREMES[name]])))
    return tree_sum(np.concatenate(parts)) if parts else 0.0


def _chunks(buffers: Sequence[Buffer], reading: Reading, signed: bool) -> Iterator[FloatArray]:
    for x, dtype in rows_of(buffers):
        for start in range(0, x.size, _CHUNK):
            u = load(x[start : start + _CHUNK], dtype, reading)
            yield u if signed else np.abs(u)


PASSES = NumpyPasses()
