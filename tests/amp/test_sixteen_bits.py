"""Every value of 16 and 8 bits times every interesting factor, in place, against the arithmetic as it is stated.

``x·coarse·fine`` in float32, rounded after each, clamped, and one rounding to the storage type; ``coarse``
and ``fine`` are two float32 numbers whose product is the factor, the second a power of two, 1 unless the factor
is outside float32's normal range. The rounding to storage is by a table of the type's values, see ``test_to_half``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.amp.test_to_half import BITS, HUGE, NARROW, TABLES, every_code, nearest

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
SCALES = (
    *(2.0**e for e in (-1000, -140, -127, -20, -3, -1, 1, 5, 15, 24, 40, 126, 127, 130, 149, 160, 250, 280, 1000)),
    *(3.0, 1000.0, 65504.0, 0.3, 1 / 3, 1e-5, 1e30, 1e-30, 1.7e38, 1e40, 1e-40, 1e45),
    *(1 + 2.0**-10, 1 + 2.0**-23, 1 - 2.0**-24, 1 + 2.0**-40),
)


def multiplied(values: Floats, factor: float) -> Floats:
    """In float32, as it is stated. ``factor`` has 24 bits."""
    exponent = 0
    if not 2.0**-126 <= factor < 2.0**127:
        exponent = min(max(math.frexp(factor)[1], -149), 127)
    with np.errstate(all="ignore"):
        coarse = np.float32(min(math.ldexp(factor, -exponent), float(np.finfo(np.float32).max)))
        product: Array = values.astype(np.float32) * coarse * np.float32(2.0**exponent)
        return product.astype(np.float64)


def check(found: Array, v: Floats, name: str) -> None:
    """``found`` is ``v``, rounded without saturation: what is too large is infinite, or NaN in a type without."""
    bits, table = BITS[name], TABLES[name]
    end = table[-1] + (table[-1] - table[-2]) / 2
    beyond = np.abs(v) >= end if bits.top % 2 else np.abs(v) > end  # a tie goes to the even one of the two
    codes = found.view(bits.code)
    here = np.isfinite(v) & ~beyond
    assert (codes == nearest(v, name))[here].all()
    with np.errstate(invalid="ignore"):
        wide = found.astype(np.float64)
    assert np.isnan(wide[np.isnan(v)]).all()
    assert (wide[beyond] == np.copysign(np.inf, v[beyond])).all() if bits.infinite else np.isnan(wide[beyond]).all()


def alone(x: Array, rule: Rule, **how: Any) -> gc.ClipInfo:
    return gc.clip_({"x": x}, rule, nonfinite="propagate", **how)


@NARROW
def test_unscaling_every_code(source: str, backend: str) -> None:
    for scale in SCALES:
        x, values = every_code(source)
        info = alone(x, HUGE, loss_scale=scale, backend=backend)
        factor = info.scale
        assert 1 / scale * (1 - 2.0**-23) <= factor <= 1 / scale
        assert math.frexp(factor)[0] * 2.0**24 % 1 == 0
        check(x, multiplied(values, factor), source)


@NARROW
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_clipping_every_finite_code(source: str, ord: float, backend: str) -> None:
    x, values = every_code(source)
    x, values = x[np.isfinite(values)], values[np.isfinite(values)]
    norm = gc.global_norm(x, ord)
    for ratio in (1 - 2.0**-20, 0.75, 0.5, 1 / 3, 1e-2, 2.0**-10, 1e-4, 1e-8, 1e-20, 1e-39, 1e-44):
        for scale in (1.0, 2.0**12, 3.0):
            y = x.copy()
            info = alone(y, gc.GlobalNorm(norm * ratio / scale, ord), loss_scale=scale, backend=backend)
            if info.scale:
                check(y, multiplied(values, info.scale), source)
            else:
                assert y.tobytes() == bytes(y.nbytes)


@NARROW
@pytest.mark.parametrize("limit", [1.5, 0.0, 2.0**-12, 300.0, (-0.3, 0.7), (-math.inf, -0.25), (0.1, math.inf)])
def test_clamping_every_code(source: str, limit: Any, backend: str) -> None:
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    for scale in (1.0, 2.0**10, 1000.0, 0.25, 0.3):
        x, values = every_code(source)
        table = np.concatenate([-TABLES[source], TABLES[source]])
        stored = [v if math.isinf(v) else table[codes(nearest(np.array([v]), source), source)] for v in (low, high)]
        info = alone(x, gc.Value(limit), loss_scale=scale, backend=backend)
        y = multiplied(values, info.scale)
        y = np.where(y < stored[0], stored[0], y)
        check(x, np.where(y > stored[1], stored[1], y), source)


def codes(code: Array, name: str) -> int:
    """Where in the table of ``-values`` and then ``values`` a code is."""
    size = TABLES[name].size
    half = 2 ** (8 * code.itemsize - 1)
    return int(code[0]) - half if code[0] >= half else int(code[0]) + size


@pytest.mark.jit
@NARROW
def test_both_backends_write_the_same_bits(source: str) -> None:
    """NaNs included, and the zeros' signs."""
    pytest.importorskip("numba")
    for scale in SCALES:
        for rule in (HUGE, gc.Value((-0.3, 0.7)), gc.GlobalNorm(1e-3)):
            x, y = (every_code(source)[0] for _ in range(2))
            if isinstance(rule, gc.GlobalNorm):
                x, y = (np.where(np.isfinite(every_code(source)[1]), v, v.dtype.type(1)) for v in (x, y))
            one, two = (alone(v, rule, loss_scale=scale, backend=b) for v, b in ((x, "numpy"), (y, "numba_cpu")))
            nan = np.isnan(every_code(source)[1])
            assert (x.view(BITS[source].code)[~nan] == y.view(BITS[source].code)[~nan]).all()
            assert (one.norm, one.scale, one.clipped) == (two.norm, two.scale, two.clipped) or math.isnan(one.norm)
