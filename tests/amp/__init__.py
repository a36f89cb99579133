"""Mixed precision: the loss scale, the Clipper, and half precision."""

import importlib.util

import pytest

HALVES = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_NO_ML_DTYPES = pytest.mark.skipif(
    importlib.util.find_spec("ml_dtypes") is None, reason="new NumPy arrays of these types need ml_dtypes"
)
INTO = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=() if name == "float16" else _NO_ML_DTYPES) for name in HALVES]
)
