"""ndonnx's arrays: a graph of ONNX grows by the clip, and runs within bounds elsewhere."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import testing
from gradclip_core.protocol import DType
from gradclip_core.testing.memory import Stored
from tests.refusals import check_sentence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no onnxruntime
    ndx: Any = pytest.importorskip("ndonnx")
    onnx: Any = pytest.importorskip("onnx.reference")
pytest.importorskip("array_api_compat")

NORM, ELEMENT = 2.0**-40, 2.0**-22
lazy = pytest.mark.shows("ndonnx", "new arrays", "approximate")


def values() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 50)).astype("float32"), rng.standard_normal(7)


def inputs() -> tuple[Any, Any]:
    return ndx.argument(shape=(6, 50), dtype=ndx.float32), ndx.argument(shape=(7,), dtype=ndx.float64)


def near(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-149).all())


@lazy
@pytest.mark.parametrize(
    "rule",
    [
        gc.GlobalNorm(1.0),
        gc.GlobalNorm(0.5, math.inf),
        gc.ArrayNorm(0.5),
        gc.Value((-0.1, 0.25)),
        gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_the_graph_that_is_built_clips(rule: gc.Rule) -> None:
    a, b = inputs()
    (y, z), info = gc.clip([a, b], rule, nonfinite="skip")
    assert [repr(x).count("*lazy*") for x in (y, z, info.norm, gc.global_norm([a, b]))] == [1] * 4
    assert (y.shape, y.dtype, z.dtype) == ((6, 50), ndx.float32, ndx.float64)
    outputs = {"y": y, "z": z, "norm": info.norm, "after": info.clipped_norm, "skipped": info.skipped}
    model = ndx.build({"a": a, "b": b}, outputs)
    known = dict(zip("ab", values(), strict=True))
    found = dict(zip(outputs, onnx.ReferenceEvaluator(model).run(list(outputs), known), strict=True))
    expected, told = gc.clip(list(values()), rule)
    assert near(found["y"], expected[0], 2.0**-21)
    assert near(found["z"], expected[1])
    assert near(found["norm"], told.norm, NORM)
    assert near(found["after"], told.clipped_norm)
    assert not found["skipped"]


class NdonnxArrays:
    """ndonnx's that have values, for the conformance suite."""

    wide = "float64"
    dtypes = ("float16", "float32", "float64")

    def put(self, values: Stored, dtype: DType) -> Any:
        return ndx.asarray(np.asarray(values))

    def get(self, x: Any, dtype: DType) -> Stored:
        return np.asarray(x)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return [x.unwrap_numpy() if isinstance(x, ndx.Array) else x for x in function(*arrays)]


@lazy
@pytest.mark.shows("ndonnx", "16-bit", "approximate")
def test_the_suite() -> None:
    """A sample: ONNX's reference evaluator takes its time."""
    backend: Any = importlib.import_module("gradclip_backends.array_api").BACKEND
    with np.errstate(all="ignore"):
        for check in itertools.islice(testing.approximate_checks(backend.operations, NdonnxArrays()), 5, None, 43):
            if "million" not in check.name:
                check.run()


@lazy
def test_arrays_that_have_values_are_worked_on_in_the_same_way() -> None:
    known = values()
    info: Any
    made, info = gc.clip_by_global_norm({"a": ndx.asarray(known[0]), "b": known[1]}, 1.0, nonfinite="skip")
    expected, told = gc.clip_by_global_norm({"a": known[0], "b": known[1]}, 1.0)
    assert [type(y) for y in made.values()] == [ndx.Array] * 2
    assert near(made["a"].unwrap_numpy(), expected["a"], 2.0**-21)
    assert near(info.norm.unwrap_numpy(), told.norm, NORM)


@pytest.mark.parametrize(
    ("make", "seen", "cure"),
    [
        (lambda: ndx.argument(shape=("N", 3), dtype=ndx.float32), "its shape (None, 3) is not known yet", "by reshape"),
        (lambda: ndx.argument(shape=(3,), dtype=ndx.int64), "dtype int64 is no gradient's dtype", "Convert to"),
        (lambda: ndx.argument(shape=(3,), dtype=ndx.nfloat32), "dtype nfloat32 is no gradient's dtype", "Convert to"),
    ],
    ids=["unknown length", "integers", "nullable"],
)
def test_what_is_refused(make: Callable[[], Any], seen: str, cure: str) -> None:
    """It has ``__dlpack__``, which raises."""
    with pytest.raises(gc.UnsupportedArrayError) as caught:
        gc.clip_by_norm([make()], 1.0, nonfinite="skip")
    check_sentence(caught.value, gc.UnsupportedArrayError, "array '0'", seen, cure)


@pytest.mark.shows("ndonnx", "in place", "refused")
def test_in_place_is_refused_and_so_is_raising() -> None:
    with pytest.raises(gc.ReadOnlyError, match=r"it is lazy: its values are not there yet.*Use clip_by_norm, which"):
        gc.clip_by_norm_(list(inputs()), 1.0, nonfinite="skip")
    with pytest.raises(gc.InvalidArgumentError, match="no value is there to raise on"):
        gc.clip_by_norm(list(inputs()), 1.0)
