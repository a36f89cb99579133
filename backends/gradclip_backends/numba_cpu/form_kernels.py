"""The kernels of the projections' passes: a block is loaded as float64, made into y, and summed.

It is done a tile at a time: ``u``, ``w``, ``y`` and the terms of a tile fit into a first-level cache
of 32 KB, so that each moment is a short loop of its own over them that vectorises. The codes are
the places in ``FORMS`` and ``MOMENTS``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import narrow_once, view, widen
from gradclip_backends.numba_cpu.folds import LANES, fold
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import BLOCK, find_segment, tree
from gradclip_core.forms import EXTREMES, FORMS, MOMENTS
from gradclip_core.protocol import DTYPES

_SOFT, _SHIFT, _SCALE, _CLAMP, _FIT, _SECULAR, _POWER, _ALONG, _GIVEN = (
    list(FORMS).index(name) for name in ("soft", "shift", "scale", "clamp", "fit", "secular", "power", "along", "given")
)
(
    _Y2, _DY, _D2, _ABS, _SUM, _COUNT, _MAX_Y, _LOW_Y, _MAX_D, _TOP_D,
    _MAX_E, _WY, _W2, _WY2, _SLOPE, _D2_W, _POW_Y, _POW_D, _STEEP,
    _ABS_WY, _REST2, _ABS_D,
) = range(len(MOMENTS))  # fmt: skip
_FLOAT16, _BFLOAT16, _FLOAT32, _E4M3FN, _E5M2 = (
    list(DTYPES).index(name) for name in ("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2")
)
TILE = 4 * LANES
START = np.array([EXTREMES.get(name, 0.0) for name in MOMENTS])
_SMALLEST = np.array([EXTREMES.get(name) == np.inf for name in MOMENTS])
_EXTREME = np.array([name in EXTREMES for name in MOMENTS])


@jit
def load_block(x: Any, n: Any, inverse: Any, exponent: Any, sanitize: Any, top: Any, u: Any) -> Any:
    """``u = x · inverse · 2^-exponent``."""
    for i in range(n):
        u[i] = np.float64(widen(x[i])) * inverse
    if sanitize:
        for i in range(n):
            v: Any = np.float64(widen(x[i]))
            if not abs(v) < math.inf:
                v = 0.0 if v != v else math.copysign(top, v)
                u[i] = v * inverse
    if exponent != 0:
        for i in range(n):
            u[i] = math.ldexp(u[i], -exponent)


@jit
def round_to(y: Any, n: Any, exponent: Any, tag: Any) -> Any:
    """Round y to what the storage type will hold."""
    if exponent != 0:
        for i in range(n):
            y[i] = math.ldexp(np.float64(widen(narrow_once(math.ldexp(y[i], exponent), tag))), -exponent)
    else:
        for i in range(n):
            y[i] = np.float64(widen(narrow_once(y[i], tag)))


@jit
def round_block(y: Any, n: Any, exponent: Any, code: Any) -> Any:
    """``round_to``, by the type's place in ``DTYPES``: y's type is chosen as the kernel runs, u's as it is compiled."""
    if code == _FLOAT16:
        round_to(y, n, exponent, np.uint16(0))
    elif code == _BFLOAT16:
        round_to(y, n, exponent, np.int16(0))
    elif code == _FLOAT32:
        round_to(y, n, exponent, np.float32(0))
    elif code == _E4M3FN:
        round_to(y, n, exponent, np.uint8(0))
    elif code == _E5M2:
        round_to(y, n, exponent, np.int8(0))
    else:
        round_to(y, n, exponent, np.float64(0))


@jit
def store_to(y: Any, n: Any, exponent: Any, target: Any, tag: Any) -> Any:
    """Write y, which is rounded already, to memory."""
    if exponent != 0:
        for i in range(n):
            target[i] = narrow_once(math.ldexp(y[i], exponent), tag)
    else:
        for i in range(n):
            target[i] = narrow_once(y[i], tag)


@jit
def store_block(y: Any, n: Any, exponent: Any, address: Any, code: Any) -> Any:
    """``store_to``, by the type's place in ``DTYPES``."""
    if code == _FLOAT16:
        store_to(y, n, exponent, view(address, n, np.uint16(0)), np.uint16(0))
    elif code == _BFLOAT16:
        store_to(y, n, exponent, view(address, n, np.int16(0)), np.int16(0))
    elif code == _FLOAT32:
        store_to(y, n, exponent, view(address, n, np.float32(0)), np.float32(0))
    elif code == _E4M3FN:
        store_to(y, n, exponent, view(address, n, np.uint8(0)), np.uint8(0))
    elif code == _E5M2:
        store_to(y, n, exponent, view(address, n, np.int8(0)), np.int8(0))
    else:
        store_to(y, n, exponent, view(address, n, np.float64(0)), np.float64(0))


@jit
def solve_power(magnitude: Any, a: Any, p: Any) -> Any:
    """The ``z >= 0`` with ``z + a·z^(p-1) = magnitude``, as in the reference."""
    if a == 0.0 or magnitude == 0.0:
        return magnitude
    z = min(magnitude, (magnitude / a) ** (1.0 / (p - 1.0)))
    if not z > 0.0:  # it is less than any float64
        return z
    for _ in range(100):
        power = a * z ** (p - 1.0)
        off = math.log1p(((z - magnitude) + power) / magnitude)
        new = z * math.exp(-off * ((z + power) / (z + (p - 1.0) * power)))
        if not new < z:
            return z
        z = new
    return z


@jit
def make_block(kind: Any, u: Any, w: Any, n: Any, a: Any, b: Any, c: Any, y: Any) -> Any:
    """``FORMS``, but for ``given``."""
    if kind == _SOFT:
        for i in range(n):
            z = (abs(u[i]) - a) - b
            z = z * c if z > 0.0 else 0.0
            y[i] = -z if u[i] < 0.0 else z
    elif kind == _SHIFT:
        for i in range(n):
            z = (u[i] - a) - b
            y[i] = z if z > 0.0 else 0.0
    elif kind == _SCALE:
        for i in range(n):
            y[i] = u[i] * a
    elif kind == _CLAMP:
        for i in range(n):
            z = u[i]
            z = -a if z < -a else z
            y[i] = a if z > a else z
    elif kind == _FIT:
        for i in range(n):
            z = u[i] * a
            z = b if z < b else z
            y[i] = c if z > c else z
    elif kind == _SECULAR:
        for i in range(n):
            y[i] = u[i] / (1.0 + a * w[i])
    elif kind == _POWER:
        for i in range(n):
            z = solve_power(abs(u[i]), a, b)
            y[i] = -z if u[i] < 0.0 else z
    elif kind == _ALONG:
        for i in range(n):
            y[i] = u[i] - a * w[i]
    else:
        for i in range(n):
            y[i] = u[i]


@jit
def terms_block(moment: Any, u: Any, y: Any, w: Any, n: Any, a: Any, b: Any, e: Any, t: Any) -> Any:
    """The summands of one moment, ``MOMENTS``."""
    if moment == _Y2:
        for i in range(n):
            t[i] = y[i] * y[i]
    elif moment == _DY:
        for i in range(n):
            t[i] = (u[i] - y[i]) * y[i]
    elif moment == _D2:
        for i in range(n):
            t[i] = (u[i] - y[i]) * (u[i] - y[i])
    elif moment in (_ABS, _MAX_Y):
        for i in range(n):
            t[i] = abs(y[i])
    elif moment in (_SUM, _LOW_Y):
        for i in range(n):
            t[i] = y[i]
    elif moment == _COUNT:
        for i in range(n):
            t[i] = 1.0 if y[i] != 0.0 else 0.0
    elif moment in (_MAX_D, _ABS_D):
        for i in range(n):
            t[i] = abs(u[i] - y[i])
    elif moment == _TOP_D:
        for i in range(n):
            t[i] = u[i] - y[i]
    elif moment == _MAX_E:
        for i in range(n):
            t[i] = abs(u[i] - e * y[i])
    elif moment == _WY:
        for i in range(n):
            t[i] = w[i] * y[i]
    elif moment == _W2:
        for i in range(n):
            t[i] = w[i] * w[i]
    elif moment == _WY2:
        for i in range(n):
            t[i] = w[i] * (y[i] * y[i])
    elif moment == _SLOPE:
        for i in range(n):
            t[i] = (w[i] * y[i]) * (w[i] * y[i]) / (1.0 + a * w[i])
    elif moment == _D2_W:
        for i in range(n):
            t[i] = (u[i] - y[i]) * (u[i] - y[i]) / w[i]
    elif moment == _POW_Y:
        for i in range(n):
            t[i] = abs(y[i]) ** e
    elif moment == _POW_D:
        for i in range(n):
            t[i] = abs(u[i] - y[i]) ** (e / (e - 1.0))
    elif moment == _STEEP:
        for i in range(n):
            z = abs(y[i])
            t[i] = z ** (2 * b - 2) / (1.0 + a * (b - 1) * z ** (b - 2)) if z > 0.0 else 0.0
    elif moment == _ABS_WY:
        for i in range(n):
            t[i] = abs(w[i] * y[i])
    elif moment == _REST2:
        for i in range(n):
            z = (u[i] - y[i]) - a * w[i]
            t[i] = z * z


@jit
def add_tile(t: Any, n: Any, lanes: Any) -> Any:
    """Add a tile's rows to the lanes, in ``tree_sum``'s order."""
    if n == TILE:
        for k in range(LANES):
            lanes[k] = (((lanes[k] + t[k]) + t[k + 256]) + t[k + 512]) + t[k + 768]
    else:
        for row in range((n + LANES - 1) // LANES):
            start = row * LANES
            for k in range(min(LANES, n - start)):
                lanes[k] += t[start + k]


@jit
def beyond(best: Any, v: Any, smallest: Any) -> Any:
    """The lesser or the larger of two; NaN if one is."""
    return v if (v < best if smallest else v > best) or v != v else best


@jit
def extend_tile(t: Any, n: Any, smallest: Any, lanes: Any) -> Any:
    """``add_tile`` for an extreme: 256 of them, so that it vectorises."""
    if n < TILE:
        for row in range((n + LANES - 1) // LANES):
            start = row * LANES
            for k in range(min(LANES, n - start)):
                lanes[k] = beyond(lanes[k], t[start + k], smallest)
    elif smallest:
        for k in range(LANES):
            best = beyond(beyond(lanes[k], t[k], True), t[k + 256], True)
            lanes[k] = beyond(beyond(best, t[k + 512], True), t[k + 768], True)
    else:
        for k in range(LANES):
            best = beyond(beyond(lanes[k], t[k], False), t[k + 256], False)
            lanes[k] = beyond(beyond(best, t[k + 512], False), t[k + 768], False)


@jit
def extreme(t: Any, n: Any, smallest: Any, start: Any) -> Any:
    """The least or the largest of a few; NaN if there is one."""
    best = start
    for i in range(n):
        best = beyond(best, t[i], smallest)
    return best


@jit
def fold_extreme(lanes: Any, smallest: Any) -> Any:
    """The extreme of the lanes."""
    width = LANES // 2
    while width >= 8:
        for k in range(width):
            lanes[k] = beyond(lanes[k], lanes[k + width], smallest)
        width //= 2
    return extreme(lanes, 2 * width, smallest, lanes[0])


@jit
def map_range(
    tag: Any, itemsize: Any, top: Any, w_tag: Any, w_itemsize: Any, y_code: Any, y_itemsize: Any,
    sources: Any, targets: Any, companions: Any, values: Any, lengths: Any, first: Any,
    inverse: Any, exponent: Any, sanitize: Any,
    kind: Any, a: Any, b: Any, c: Any, e: Any, moments: Any, rounded: Any, start: Any, stop: Any, out: Any,
) -> Any:  # fmt: skip
    """Make a range of blocks, write them where ``targets`` is not empty, fill ``out[moment, block]``."""
    u, y, w, t = np.empty(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE)
    lanes = np.empty((moments.size, LANES))
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        from_, to = (block - first[s]) * BLOCK, min((block - first[s] + 1) * BLOCK, lengths[s])
        for m in range(moments.size):
            lanes[m, :] = START[moments[m]]
        for done in range(from_, to, TILE):
            n = min(TILE, to - done)
            load_block(view(sources[s] + np.uint64(done * itemsize), n, tag), n, inverse, exponent, sanitize, top, u)
            if companions.size:
                load_block(view(companions[s] + np.uint64(done * w_itemsize), n, w_tag), n, 1.0, 0, False, top, w)
            if kind == _GIVEN:
                load_block(view(values[s] + np.uint64(done * 8), n, np.float64(0.0)), n, 1.0, 0, False, top, y)
            else:
                make_block(kind, u, w, n, a[s], b[s], c[s], y)
            if rounded:
                round_block(y, n, exponent, y_code)
            if targets.size:
                store_block(y, n, exponent, targets[s] + np.uint64(done * y_itemsize), y_code)
            for m in range(moments.size):
                moment = moments[m]
                terms_block(moment, u, y, w, n, a[s], b[s], e, t)
                if _EXTREME[moment]:
                    extend_tile(t, n, _SMALLEST[moment], lanes[m])
                else:
                    add_tile(t, n, lanes[m])
        for m in range(moments.size):
            moment = moments[m]
            out[m, block] = fold_extreme(lanes[m], _SMALLEST[moment]) if _EXTREME[moment] else fold(lanes[m])


@jit
def finish_moments(first: Any, moments: Any, blocks: Any, found: Any) -> Any:
    """From the moments of blocks to those of segments."""
    lanes = np.empty(LANES)
    level = np.empty(max(1, blocks.shape[1]))
    for m in range(moments.size):
        moment = moments[m]
        for s in range(first.size - 1):
            count = first[s + 1] - first[s]
            for i in range(count):
                level[i] = blocks[m, first[s] + i]
            if _EXTREME[moment]:
                found[m, s] = extreme(level, count, _SMALLEST[moment], START[moment])
            elif count:
                found[m, s] = tree(level, count, lanes)
