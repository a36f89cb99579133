"""Arithmetic with one rounding, held to rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.gpu.ptx import exact
from tests.gpu.ptx.exact import FORMATS, MODES
from tests.gpu.ptx.floats import float_op, widen
from tests.gpu.ptx.launching import bits_of
from tests.gpu.ptx.types import TYPES, Array

COUNTS = {"fma": 3, "sqrt": 1, "rcp": 1}


def same(a: Array, b: Array) -> bool:
    """Equal as numbers, with the zeros' signs; every NaN is one."""
    nan = np.isnan(a)
    return bool(
        (nan == np.isnan(b)).all() and (a[~nan] == b[~nan]).all() and (np.signbit(a) == np.signbit(b))[~nan].all()
    )


ALL = ("add", "sub", "mul", "fma", "div", "sqrt", "rcp")
OPERATIONS = [(kind, name, mode) for kind in ("f32", "f64") for name in ALL for mode in MODES]
OPERATIONS += [(kind, name, "rn") for kind in ("f16", "bf16") for name in ALL[:4]]


@pytest.mark.parametrize(("kind", "name", "mode"), OPERATIONS)
def test_operations_round_once(kind: str, name: str, mode: str) -> None:
    type = TYPES[kind]
    rng = np.random.default_rng([len(kind), *name.encode()])
    count = COUNTS.get(name, 2)
    arguments = [bits_of(rng, type.width, 400).view(type.dtype) for _ in range(count)]
    # Half of them of one magnitude, where sums cancel and the last bits count.
    if kind != "bf16":
        for argument in arguments:
            argument[::2] = rng.standard_normal(200)
    compute = float_op(name, type, (mode,))
    assert compute is not None
    one_by_one = exact.each(name, FORMATS[kind], mode)
    with np.errstate(all="ignore"):
        got = widen(type, compute(*arguments))
        expected = one_by_one(*(widen(type, argument) for argument in arguments))
    assert same(got, expected)


def test_fma_f64_where_the_product_alone_would_round() -> None:
    a = np.array([1 + 2.0**-52, 2.0**600, 2.0**-600, 1e308, 5e-324, 0.1])
    b = np.array([1 - 2.0**-53, 2.0**500, 2.0**-500, 10.0, 0.5, 10.0])
    c = np.array([-1.0, -(2.0**1000), 5e-324, -math.inf, 5e-324, -1.0])
    with np.errstate(all="ignore"):
        got = exact.fma_f64(a, b, c)
    expected = [
        float(Fraction(x) * Fraction(y) + Fraction(z)) if math.isfinite(z) else z
        for x, y, z in zip(a[2:], b[2:], c[2:], strict=True)
    ]
    first = float(Fraction(a[0]) * Fraction(b[0]) - 1)
    assert got.tolist() == [first, math.inf, *expected]  # 2^1100 - 2^1000 overflows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_narrowing_a_float64(kind: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    exponents = {"f16": (-27, 17), "f32": (-152, 129)}[kind]
    wide = rng.standard_normal(600) * 2.0 ** rng.integers(*exponents, 600)
    ties = np.float64(rng.standard_normal(100).astype(TYPES[kind].dtype)) * (1 + 2.0 ** -FORMATS[kind].precision)
    wide = np.concatenate((wide, ties, [0.0, -0.0, math.inf, -math.inf, 65519.999, 65520.0, 1e300]))
    with np.errstate(all="ignore"):
        got = exact.narrow(wide, kind, mode).astype(np.float64)
    for value, result in zip(wide, got, strict=True):
        expected = value if math.isinf(value) or not value else exact.round_exact(Fraction(value), FORMATS[kind], mode)
        assert result == expected
        assert math.copysign(1, result) == math.copysign(1, value)


def test_rounding_to_nearest_is_pythons() -> None:
    rng = np.random.default_rng(4)
    for _ in range(500):
        value = Fraction(int(rng.integers(1, 1 << 62)), int(rng.integers(1, 1 << 62))) * Fraction(2) ** int(
            rng.integers(-1080, 900)
        )
        assert exact.round_exact(value, FORMATS["f64"], "rn") == float(value)
        down, up = (exact.round_exact(value, FORMATS["f64"], mode) for mode in ("rm", "rp"))
        assert Fraction(down) <= value <= Fraction(up)
        assert up == down or math.nextafter(down, math.inf) == up


def test_square_roots_are_numpys() -> None:
    values = np.abs(bits_of(np.random.default_rng(5), 8, 500).view(np.float64))
    with np.errstate(all="ignore"):
        assert same(exact.each("sqrt", FORMATS["f64"], "rn")(values), np.sqrt(values))
