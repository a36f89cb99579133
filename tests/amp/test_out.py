"""``out=``: float32 masters from float16 gradients, unscaled, clipped and converted in one write pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.rules import Rule
from tests.amp.test_clipper import count_passes
from tests.refusals import says

Array = npt.NDArray[Any]
SCALE = 1024.0
RULES = {
    "global": gc.GlobalNorm(0.7),
    "global, ord 1": gc.GlobalNorm(2.0, 1),
    "inside": gc.GlobalNorm(1e6),
    "array": gc.ArrayNorm(0.3, math.inf),
    "group": gc.GroupNorm({"x": 0.2, "y": None}, {"x": ["a"], "y": ["b"]}),
    "units": gc.UnitNorm({"a": np.ones((7, 5)), "b": np.ones(40)}, 0.1, axis=1),
    "value": gc.Value(0.25),
    "value, one side": gc.Value((-math.inf, 0.1)),
    "l1": gc.Project(sets.L1Ball(3.0)),
    "l2": gc.Project(sets.L2Ball(0.5)),
    "chain": gc.Chain(gc.Value(1.0), gc.ArrayNorm(0.5)),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def grads(dtype: Any = np.float16) -> dict[str, Array]:
    """Multiplied with the loss scale; some so small that unscaled they are no float16."""
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((7, 5)) * SCALE, rng.standard_normal(40) * SCALE * 2.0 ** rng.integers(-25, 0, 40)
    return {"a": a.astype(dtype), "b": b.astype(dtype)}


def masters(dtype: Any = np.float32) -> dict[str, Array]:
    return {"a": np.full((7, 5), np.nan, dtype), "b": np.full(40, np.nan, dtype)}


def bits(of: Any) -> dict[str, bytes]:
    return {path: array.tobytes() for path, array in of.items()}


# ---- what is written --------------------------------------------------------------------------------


@EVERY_RULE
def test_masters_are_those_of_the_upcast_gradients(rule: Rule, backend: str) -> None:
    """Within the rounding of a float32; the gradients are left alone."""
    given, out = grads(), masters()
    before = bits(given)
    made, info = gc.clip(given, rule, out=out, loss_scale=SCALE, backend=backend)
    assert made is out
    assert bits(given) == before
    wide = {path: x.astype(np.float32) for path, x in given.items()}
    if not isinstance(rule, gc.Chain):  # whose first rule writes the gradients' own dtype
        expected, like = gc.clip(wide, rule, loss_scale=SCALE, backend=backend)
        assert (info.norm, info.scale, info.clipped, info.norms) == (like.norm, like.scale, like.clipped, like.norms)
        limit = rule.limit if isinstance(rule, gc.Value) else None
        for path, y in expected.items():
            if limit is not None:  # 0.1 is another number in float16
                bounds = np.array(limit).astype(np.float16).astype(np.float32)
                y = np.clip(wide[path] / np.float32(SCALE), *bounds)
            assert (np.abs(out[path] - y) <= np.spacing(np.abs(y))).all()
    else:
        first, _ = gc.clip(given, rule.rules[0], loss_scale=SCALE, backend=backend)
        expected = gc.clip(first, rule.rules[1], out=masters(), backend=backend)[0]
        assert bits(out) == bits(expected)


@pytest.mark.parametrize("target", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("scale", [1.0, SCALE, 1000.0, 0.125])
def test_the_product_in_float64_rounded_once(target: Any, scale: float, backend: str) -> None:
    given, out = grads(), masters(target)
    for bound in (0.7, 1e6):
        _, info = gc.clip(given, gc.GlobalNorm(bound), out=out, loss_scale=scale, backend=backend)
        for path, x in given.items():
            exact = x.astype(np.float64) * info.scales[path]
            top = np.finfo(target).max
            assert out[path].tobytes() == np.clip(exact, -top, top).astype(target).tobytes()


def test_what_float16_cannot_hold_is_kept(backend: str) -> None:
    given, out = np.array([2.0**-14, 3 * 2.0**-24, 60000.0], np.float16), np.zeros(3, np.float32)
    gc.clip(given, gc.GlobalNorm(1e9), out=out, loss_scale=2.0**16, backend=backend)
    assert out.tolist() == [2.0**-30, 3 * 2.0**-40, 60000 / 65536]
    assert gc.clip(given, gc.GlobalNorm(1e9), loss_scale=2.0**16, backend=backend)[0].tolist()[:2] == [0.0, 0.0]


def test_a_narrower_out_saturates(backend: str) -> None:
    out = np.zeros(4, np.float16)
    gc.clip(np.array([1e6, -1e6, 65519.0, 3.0]), gc.GlobalNorm(1e9), out=out, backend=backend)
    assert out.tolist() == [65504.0, -65504.0, 65504.0, 3.0]


@EVERY_RULE
def test_layouts_of_the_masters(rule: Rule, backend: str) -> None:
    """The same numbers into strided, reversed and Fortran arrays, and nothing between their elements."""
    expected = masters()
    gc.clip(grads(), rule, out=expected, loss_scale=SCALE, backend=backend)
    memory = np.full((14, 10), 7.0, np.float32)
    line = np.full(80, 7.0, np.float32)
    layouts = [
        {"a": memory[::2, 1::2], "b": line[::-2]},
        {"a": np.zeros((7, 5), np.float32, order="F"), "b": line[1::2]},
        {"a": np.zeros((5, 7), np.float32).T, "b": np.zeros(40, np.float32)},
    ]
    for out in layouts:
        gc.clip(grads(), rule, out=out, loss_scale=SCALE, backend=backend)
        assert bits(out) == bits(expected)
    assert (memory[1::2] == 7).all()
    assert (memory[:, ::2] == 7).all()
    given = {"a": np.asfortranarray(grads()["a"]), "b": np.repeat(grads()["b"], 2)[::2]}
    again = masters()
    gc.clip(given, rule, out=again, loss_scale=SCALE, backend=backend)
    for path, y in expected.items():  # a norm summed in another order may differ in its last bit
        assert (np.abs(again[path] - y) <= np.spacing(np.abs(y))).all()


def test_0_d_and_empty_arrays_and_none() -> None:
    out = {"x": np.zeros(()), "e": np.zeros((0, 3)), "n": None}
    given = {"x": np.array(8.0, np.float16), "e": np.zeros((0, 3), np.float16), "n": None}
    assert gc.clip(given, gc.GlobalNorm(1e3), out=out, loss_scale=4.0)[1].norm == 2.0
    assert out["x"] == 2.0


def test_more_arrays_in_out_are_left_alone() -> None:
    out: dict[str, Any] = {"more": np.full(3, 7.0), **masters(), "z": [np.full(2, 7.0, np.float32)]}
    gc.clip(grads(), gc.GlobalNorm(1.0), out=out, loss_scale=SCALE)
    assert not np.isnan(out["a"]).any()
    assert (out["more"] == 7).all()
    assert (out["z"][0] == 7).all()


def test_a_tied_gradient_is_written_once() -> None:
    x, y = np.array([3.0, 4.0], np.float16), np.zeros(2)
    gc.clip({"a": x, "b": x}, gc.GlobalNorm(2.5), out={"a": y, "b": y})
    assert y == pytest.approx([1.5, 2.0], rel=1e-6)
    y[:] = 0
    gc.clip({"a": x, "b": x}, gc.GlobalNorm(2.5), out={"a": y})
    assert y == pytest.approx([1.5, 2.0], rel=1e-6)
    other = np.full(2, 7.0)
    y[:] = 0
    with says(gc.InvalidArgumentError, "clip, out, array 'b'", "another than 'a'", "one array for both"):
        gc.clip({"a": x, "b": x}, gc.GlobalNorm(2.5), out={"a": y, "b": other})
    assert (y.tolist(), other.tolist()) == ([0, 0], [7, 7])


# ---- frameworks -------------------------------------------------------------------------------------


@EVERY_RULE
def test_into_and_from_torch(rule: Rule) -> None:
    torch = pytest.importorskip("torch")
    expected = masters()
    gc.clip(grads(), rule, out=expected, loss_scale=SCALE)
    out = {path: torch.zeros(x.shape) for path, x in expected.items()}
    versions = [x._version for x in out.values()]
    gc.clip(grads(), rule, out=out, loss_scale=SCALE)
    assert bits({path: x.numpy() for path, x in out.items()}) == bits(expected)
    assert all(x._version > old for x, old in zip(out.values(), versions, strict=True))
    from_torch = masters()
    tensors = {path: torch.from_numpy(x) for path, x in grads().items()}
    gc.clip(tensors, rule, out=from_torch, loss_scale=SCALE)
    assert bits(from_torch) == bits(expected)


def test_from_jax() -> None:
    jax = pytest.importorskip("jax")
    expected, out = masters(), masters()
    rule = gc.GlobalNorm(0.7)
    gc.clip(grads(), rule, out=expected, loss_scale=SCALE)
    gc.clip({path: jax.numpy.asarray(x) for path, x in grads().items()}, rule, out=out, loss_scale=SCALE)
    assert bits(out) == bits(expected)
    with says(gc.ReadOnlyError, "clip, out, array 'a'"):
        gc.clip(grads(), rule, out={path: jax.numpy.asarray(x) for path, x in out.items()})


# ---- policies, and the Clipper ----------------------------------------------------------------------


@EVERY_RULE
def test_policies(rule: Rule, backend: str) -> None:
    for policy in ("skip", "zero", "sanitize", "propagate", "raise"):
        given, out = grads(), masters()
        given["b"][3], given["b"][4] = np.inf, np.nan
        before = bits(out)
        how: Any = {"loss_scale": SCALE, "nonfinite": policy, "backend": backend}
        if policy == "raise":
            with says(gc.NonFiniteGradientError, "'b' (1 inf, 1 NaN)"):
                gc.clip(given, rule, out=out, **how)
            assert bits(out) == before
            continue
        info = gc.clip(given, rule, out=out, **how)[1]
        assert info.skipped == (policy in ("skip", "zero"))
        if policy == "skip":
            assert bits(out) == before
        elif policy == "zero":
            assert bits(out) == {path: bytes(x.nbytes) for path, x in out.items()}
        elif policy == "sanitize":
            clean = {**given, "b": np.nan_to_num(given["b"], nan=0.0, posinf=65504.0)}
            like = gc.clip(clean, rule, out=masters(), loss_scale=SCALE, backend=backend)[0]
            assert bits(out) == bits(like)
        else:
            assert np.isnan(out["b"][4])


def test_clipper_into_masters() -> None:
    clipper = gc.Clipper(gc.GlobalNorm(0.7), gc.LossScaler(SCALE))
    clipper.loss_scaler.scale(1.0)
    out = masters()
    made, info = clipper(grads(), out=out)
    assert made is out
    assert not info.skipped
    assert bits(out) == bits(gc.clip(grads(), gc.GlobalNorm(0.7), out=masters(), loss_scale=SCALE)[0])
    clipper.loss_scaler.scale(1.0)
    bad, before = {**grads(), "b": np.full(40, np.inf, np.float16)}, bits(out)
    assert clipper(bad, out=out)[1].skipped
    assert bits(out) == before
    assert clipper.loss_scaler.get_scale() == SCALE / 2


@EVERY_RULE
def test_one_measure_and_one_write_pass(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write pass into out is ``map``; nothing goes through ``apply``, but what a chain writes for its last rule."""
    from gradclip_core import casting, forms

    calls, maps, real = count_passes(monkeypatch), [], forms.passes_of

    class Counting:
        def __init__(self, passes: Any) -> None:
            self.passes = passes

        def map(self, *args: Any, **more: Any) -> Any:
            maps.append(args[1] is not None)
            return self.passes.map(*args, **more)

    monkeypatch.setattr(casting, "passes_of", lambda backend: Counting(real(backend)))
    gc.clip(grads(), rule, out=masters(), loss_scale=SCALE)
    # The weights of units, the result of a by-value rule for its norm, and a chain's second rule are measured besides.
    besides = isinstance(rule, (gc.UnitNorm, gc.Value, gc.Chain))
    assert calls == {"measure": 1 + besides, "apply": int(isinstance(rule, gc.Chain))}
    assert maps == [True]


# ---- refusals ---------------------------------------------------------------------------------------


def _with(**more: Any) -> dict[str, Any]:
    return {**masters(), **more}


def _read_only() -> Array:
    x = np.zeros(40)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda g: {"a": masters()["a"]}, gc.InvalidArgumentError, ("array 'b': there is none of that path",)),
        (lambda g: list(masters().values()), gc.InvalidArgumentError, ("array 'a': there is none of that path",)),
        (lambda g: _with(b=np.zeros(39)), gc.InvalidArgumentError, ("'b': its shape is (39,), the gradient's (40,)",)),
        (lambda g: g, gc.UnsafeMemoryError, ("it shares memory with array", "clip in place, with clip_")),
        (lambda g: _with(b=g["b"][::-1]), gc.UnsafeMemoryError, ("it shares memory with array 'b'",)),
        (lambda g: _with(b=_read_only()), gc.ReadOnlyError, ("clip, out, array 'b': its writeable flag is off",)),
        (lambda g: _with(b=np.zeros(40, int)), gc.UnsupportedArrayError, ("clip, out, array 'b': dtype int64",)),
        (lambda g: _with(b=np.zeros(40, complex)), gc.UnsupportedArrayError, ("'b': it is complex, and",)),
        (lambda g: _with(b=np.broadcast_to(np.zeros(1), 40)), gc.ReadOnlyError, ("clip, out, array 'b'",)),
        (
            lambda g: (lambda o: {**o, "more": o["a"][0]})(masters()),
            gc.UnsafeMemoryError,
            ("clip, out, arrays 'a' and",),
        ),
        (lambda g: 7, gc.UnsupportedArrayError, ("clip, out", "int is no array")),
    ],
)
def test_no_out(make: Any, error: Any, words: tuple[str, ...], backend: str) -> None:
    given = grads()
    out = make(given)
    before = bits(given)
    arrays = list(out.values()) if isinstance(out, dict) else out if isinstance(out, list) else []
    was = [x.tobytes() for x in arrays]
    with says(error, *words):
        gc.clip(given, gc.GlobalNorm(0.5), out=out, loss_scale=SCALE, backend=backend)
    assert bits(given) == before
    assert [x.tobytes() for x in arrays] == was


def test_one_array_for_two_gradients_and_complex_gradients() -> None:
    x, y = np.ones(2, np.float16), np.zeros(2)
    with says(gc.UnsafeMemoryError, "clip, out: one array is there for two gradients", "an array for each"):
        gc.clip([x, x.copy()], gc.GlobalNorm(0.5), out=[y, y])
    with says(gc.UnsupportedArrayError, "clip, array '0': it is complex", "real and imaginary parts"):
        gc.clip([np.ones(2, np.complex64)], gc.GlobalNorm(0.5), out=[y])
    assert y.tolist() == [0.0, 0.0]
