"""dask's arrays: never computed here, whatever is asked; within bounds where somebody computes them."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets, testing
from gradclip_core.protocol import DType
from gradclip_core.testing.memory import Stored
from tests.refusals import check_sentence

dask: Any = pytest.importorskip("dask")
da: Any = pytest.importorskip("dask.array")
pytest.importorskip("array_api_compat")

NORM, ELEMENT = 2.0**-40, 2.0**-22
lazy = pytest.mark.shows("dask", "new arrays", "approximate")
RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(3.0, 1),
    gc.GlobalNorm(0.5, math.inf),
    gc.GlobalNorm(1.0, 3),
    gc.ArrayNorm(0.5),
    gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "w" else "b"),
    gc.Value((-0.1, 0.25)),
    gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
    gc.Project(sets.L2Ball(1.0)),
]


@pytest.fixture(autouse=True)
def computes() -> Iterator[list[str]]:
    """Who computes, and that a test which does not say so does not."""
    asked: list[str] = []

    def spy(graph: Any, keys: Any, **options: Any) -> Any:
        asked.append(str(keys))
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=spy), np.errstate(all="ignore"):
        yield asked


def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((30, 50)).astype("float32"), "b": [rng.standard_normal(7), None]}


def grads() -> dict[str, Any]:
    known = values()
    return {"w": da.from_array(known["w"], chunks=(8, 20)), "b": [da.from_array(known["b"][0], chunks=3), None]}


def near(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-149).all())


@lazy
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_and_nothing_is_computed(rule: gc.Rule, computes: list[str]) -> None:
    made, info = gc.clip(grads(), rule, nonfinite="skip", loss_scale=2.0)
    norm = gc.global_norm(grads())
    assert computes == []
    assert isinstance(made["b"][0], da.Array)
    assert (made["b"][1], made["w"].dtype, made["w"].chunks) == (None, np.float32, grads()["w"].chunks)
    expected, known = gc.clip(values(), rule, loss_scale=2.0)
    w, b, *numbers = dask.compute(made["w"], made["b"][0], info.norm, info.clipped_norm, info.skipped, norm)
    assert len(computes) == 1
    assert near(w, expected["w"], 2.0**-21)
    assert near(b, expected["b"][0])
    off = 2.0**-38 if rule == gc.GlobalNorm(1.0, 3) else NORM
    assert near(numbers[0], known.norm, off)
    assert near(numbers[1], known.clipped_norm)
    assert not numbers[2]
    assert near(numbers[3], gc.global_norm(values()), NORM)
    assert {path: near(n, known.norms[path], off) for path, n in info.norms.items()} == {"w": True, "b.0": True}


@lazy
def test_units_of_weights(computes: list[str]) -> None:
    given, known = [grads()["w"]], [values()["w"]]
    made, _ = gc.adaptive_clip(given, given, 0.5, axis="all_but_first", nonfinite="skip")
    assert computes == []
    assert near(made[0], gc.adaptive_clip(known, known, 0.5, axis="all_but_first")[0][0])


class DaskArrays:
    """dask's, in pieces, for the conformance suite."""

    wide = "float64"
    dtypes = ("float16", "float32", "float64")

    def put(self, values: Stored, dtype: DType) -> Any:
        values = np.asarray(values)
        return da.from_array(values, chunks=-1 if values.ndim != 1 else max(1, values.size // 3))

    def get(self, x: Any, dtype: DType) -> Stored:
        return np.asarray(x)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return dask.compute(*function(*arrays))


@lazy
def test_the_suite() -> None:
    """A sample: each check is a graph of hundreds of pieces."""
    backend: Any = importlib.import_module("gradclip_backends.array_api").BACKEND
    for check in itertools.islice(testing.approximate_checks(backend.operations, DaskArrays()), 3, None, 29):
        check.run()


@lazy
@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
def test_policies(policy: str) -> None:
    bad = np.array([1.0, math.inf, math.nan, -3.0], np.float32)
    made, info = gc.clip_by_global_norm([da.from_array(bad, chunks=2)], 1.0, nonfinite=policy)
    expected, known = gc.clip_by_global_norm([bad], 1.0, nonfinite=policy)
    np.testing.assert_allclose(made[0].compute(), expected[0], rtol=ELEMENT)
    assert (int(info.infs), int(info.nans), bool(info.skipped)) == (known.infs, known.nans, known.skipped)
    assert [int(n) for n in info.counts["0"]] == [1, 1]


@pytest.mark.shows("dask", "16-bit", "approximate")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = values()["w"].astype(dtype)
    made, _ = gc.clip_by_global_norm([da.from_array(x, chunks=9)], 1.0, nonfinite="skip")
    assert made[0].dtype == x.dtype
    found, expected = made[0].compute(), gc.clip_by_global_norm([x], 1.0)[0][0]
    assert near(found, expected, 2.0**-10 if dtype == "float16" else 2.0**-7)


def test_complex_numbers_keep_their_infinities() -> None:
    x = np.array([3 + 4j, complex(1, math.inf), 2j])
    made, _ = gc.clip_by_global_norm([da.from_array(x, chunks=2)], 1.0, nonfinite="sanitize")
    expected, _ = gc.clip_by_global_norm([x], 1.0, nonfinite="sanitize")
    np.testing.assert_allclose(made[0].compute(), expected[0], rtol=1e-12)


def test_numpy_s_arrays_beside_them_become_lazy_too(computes: list[str]) -> None:
    made, info = gc.clip_by_global_norm(
        [da.from_array(np.array([3.0]), chunks=1), np.array([4.0])], 1.0, nonfinite="skip"
    )
    assert (computes, [type(y) for y in made]) == ([], [da.Array] * 2)
    assert near(info.norm, 5.0, NORM)
    empty, info = gc.clip_by_global_norm([da.ones((0, 3))], 1.0, nonfinite="skip")
    assert (empty[0].shape, info.norm, gc.global_norm([da.ones(0)])) == ((0, 3), 0.0, 0.0)


def unknown() -> Any:
    x = grads()["w"]
    return x[x > 0]


def of_masked() -> Any:
    return da.ma.masked_greater(grads()["w"], 1.0)


@pytest.mark.parametrize(
    ("make", "seen", "cure"),
    [
        (unknown, "its shape (nan,) is not known yet: it has chunks of unknown size", "x.compute_chunk_sizes()"),
        (lambda: da.ones(3, dtype="int64"), "dtype int64 is no gradient's dtype", "Convert to one of"),
        (of_masked, "its pieces are of numpy.ma.MaskedArray", "dask.array.ma.filled(x, 0)"),
    ],
    ids=["chunks of unknown size", "integers", "masked pieces"],
)
def test_what_is_refused(make: Callable[[], Any], seen: str, cure: str, computes: list[str]) -> None:
    for call in (lambda x: gc.clip_by_norm([x], 1.0, nonfinite="skip"), lambda x: gc.global_norm([x])):
        with pytest.raises(gc.UnsupportedArrayError) as caught:
            call(make())
        check_sentence(caught.value, gc.UnsupportedArrayError, "array '0'", seen, cure)
    assert computes == []


@pytest.mark.shows("dask", "in place", "refused")
def test_in_place_is_refused(computes: list[str]) -> None:
    with pytest.raises(gc.ReadOnlyError) as caught:
        gc.clip_by_global_norm_(grads(), 1.0, nonfinite="skip")
    seen = "it is lazy: its values are not there yet"
    check_sentence(caught.value, gc.ReadOnlyError, "array 'w'", seen, "Use clip_by_global_norm, which returns")
    assert computes == []


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: gc.clip_by_norm(grads(), 1.0), gc.InvalidArgumentError, "no value is there to raise on"),
        (
            lambda: gc.plan(grads(), gc.GlobalNorm(1.0), nonfinite="skip"),
            gc.InvalidArgumentError,
            "a plan is for arrays",
        ),
        (lambda: gc.to_half(grads(), "float16", gc.GlobalNorm(1.0)), gc.BackendError, "in host memory"),
        (lambda: gc.clip(grads(), gc.Project(sets.L1Ball(1.0)), nonfinite="skip"), gc.BackendError, "in host memory"),
        (
            lambda: gc.clip_by_norm(grads(), 1.0, nonfinite="skip", underflow="count"),
            gc.InvalidArgumentError,
            "underflow",
        ),
        (lambda: gc.clip_by_norm(grads(), 1.0, backend="numpy", nonfinite="skip"), gc.BackendError, "host memory"),
    ],
)
def test_what_values_would_be_needed_for(
    call: Callable[[], Any], error: type[gc.GradClipError], said: str, computes: list[str]
) -> None:
    with pytest.raises(error, match=said):
        call()
    assert computes == []
