"""Clipping inside ``jit``, ``grad``, ``vmap`` and ``shard_map``: by JAX's own operations, within bounds."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets, testing
from gradclip_core.protocol import DType
from gradclip_core.testing.memory import Stored
from tests.frameworks.jax_devices import run

jax: Any = pytest.importorskip("jax")
jnp: Any = jax.numpy
NORM, ELEMENT = 2.0**-22, 2.0**-19  # testing.approximate: what float32 can promise
traced = pytest.mark.shows("jax", "under its compiler", "approximate")


class JaxArrays:
    """JAX's, for the conformance suite: every check is compiled."""

    def __init__(self, wide: str) -> None:
        self.wide = wide
        self.dtypes = ["float16", "bfloat16", wide]

    def put(self, values: Stored, dtype: DType) -> Any:
        values = np.asarray(values)
        return jnp.asarray(values.view(dtype.name) if dtype.coded else values)

    def get(self, x: Any, dtype: DType) -> Stored:
        return np.asarray(x).view(dtype.view)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return jax.jit(function)(*arrays)


@traced
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_the_suite(wide: str) -> None:
    """A sample of it in each run: compiling is what takes long, and each check is another program."""
    importlib.import_module("ml_dtypes")
    backend: Any = importlib.import_module("gradclip_backends.array_api").BACKEND
    with jax.enable_x64(wide == "float64"):
        for number, check in enumerate(testing.approximate_checks(backend.operations, JaxArrays(wide))):
            if number % 15 == 4 or check.name.startswith(f"approximate-long/{wide}"):
                check.run()


def grads() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.standard_normal((37, 129)), "float32"),
        "b": [jnp.asarray(rng.standard_normal(55), "bfloat16"), None, jnp.zeros((0, 3))],
    }


def close(a: Any, b: Any, off: float = ELEMENT) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool((np.abs(a - b) <= off * np.abs(b) + 2.0**-126).all())


RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(3.0, 1),
    gc.GlobalNorm(0.5, math.inf),
    gc.ArrayNorm(0.5),
    gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "w" else "b"),
    gc.Value(0.25),
    gc.Value((-0.1, math.inf)),
    gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0), gc.ArrayNorm(0.75)),
    gc.Project(sets.L2Ball(1.0)),
    gc.Project(sets.LinfBall(0.3)),
]


@traced
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_and_what_it_reports(rule: gc.Rule) -> None:
    given = grads()
    made, info = jax.jit(lambda g: gc.clip(g, rule, nonfinite="skip"))(given)
    expected, known = gc.clip(given, rule)
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    assert close(made["w"], expected["w"])
    assert close(made["b"][0], expected["b"][0], 2.0**-7)
    assert made["b"][0].dtype == jnp.bfloat16
    assert (info.backend, bool(info.clipped), bool(info.skipped)) == ("array_api", known.clipped, False)
    assert close(info.norm, known.norm, NORM)
    assert close(info.clipped_norm, known.clipped_norm)
    assert close(info.scale, known.scale)
    assert sorted(info.norms) == sorted(known.norms)
    assert all(close(info.norms[path], known.norms[path], NORM) for path in known.norms)
    assert all(close(info.scales[path], known.scales[path]) for path in ("w", "b.0"))


@traced
def test_within_the_bound_nothing_changes_a_bit_and_a_clipped_one_is_within() -> None:
    once = jax.jit(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip"))
    for seed in range(20):
        x = jnp.asarray(np.random.default_rng(seed).standard_normal(1000 + seed), "float32")
        y, info = once(x)
        assert info.clipped
        assert gc.global_norm(np.asarray(y, np.float64)) <= 1.0
        z, info = once(y)
        assert not info.clipped
        assert (z == y).all()


def test_raise_is_refused_where_nothing_can_be_raised() -> None:
    for transform in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(gc.InvalidArgumentError, match=r"nonfinite='raise'.*traced.*Pass nonfinite='skip'"):
            transform(lambda x: gc.clip_by_global_norm([x], 1.0)[0][0].sum())(jnp.ones((2, 3)))


@traced
@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
def test_policies(policy: str) -> None:
    given = [jnp.array([1.0, math.inf, math.nan]), jnp.ones(3)]
    made, info = jax.jit(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite=policy))(given)
    expected, known = gc.clip_by_global_norm(given, 1.0, nonfinite=policy)
    assert (int(info.infs), int(info.nans), int(info.nonfinite)) == (1, 1, 2)
    assert bool(info.skipped) == known.skipped
    assert {path: (int(a), int(b)) for path, (a, b) in info.counts.items()} == {"0": (1, 1), "1": (0, 0)}
    for y, z in zip(made, expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=ELEMENT, atol=2.0**-126)


@traced
def test_weights_of_agc_traced_and_not() -> None:
    rng = np.random.default_rng(0)
    g, w = (jnp.asarray(rng.standard_normal((7, 9)), "float32") for _ in range(2))
    expected, _ = gc.adaptive_clip([g], [w], 0.01, axis=1)
    both = jax.jit(lambda g, w: gc.adaptive_clip([g], [w], 0.01, axis=1, nonfinite="skip")[0])
    one = jax.jit(lambda g: gc.adaptive_clip([g], [w], 0.01, axis=1, nonfinite="skip")[0])
    assert close(both(g, w)[0], expected[0])
    assert close(one(g)[0], expected[0])
    poisoned = w.at[0, 0].set(math.nan)
    made, info = jax.jit(lambda g, w: gc.adaptive_clip([g], [w], 0.01, axis=1, nonfinite="skip"))(g, poisoned)
    assert info.skipped
    assert (made[0] == g).all()
    with pytest.raises(gc.GradClipError, match="traced"):
        jax.jit(lambda w: gc.adaptive_clip([np.asarray(g)], [w], 0.01, axis=1)[0])(w)


@traced
def test_vmap_clips_each_on_its_own() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 400)), "float32")
    made, info = jax.vmap(lambda x: gc.clip_by_global_norm(x, 1.0, nonfinite="skip"))(x)
    expected, _ = gc.adaptive_clip([x], [jnp.ones_like(x)], 1 / 20, axis=1)  # rows of norm 20 · 1/20
    assert info.norm.shape == (6,)
    assert close(made, expected[0])


@traced
def test_scan_and_cond_and_checkpoint() -> None:
    def body(carry: Any, x: Any) -> Any:
        y, info = jax.checkpoint(lambda x: gc.clip_by_global_norm(x, 1.0, nonfinite="skip"))(x)
        return carry + info.norm, jax.lax.cond(info.clipped, lambda: y, lambda: x)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 40)), "float32")
    total, made = jax.jit(lambda x: jax.lax.scan(body, 0.0, x))(x)
    assert close(total, sum(gc.global_norm(row) for row in x), 2.0**-20)
    assert close(made, np.stack([gc.clip_by_global_norm(row, 1.0)[0] for row in np.asarray(x)]))


@traced
def test_constants_beside_traced_arrays() -> None:
    made, info = jax.jit(lambda x: gc.clip_by_global_norm([x, jnp.full(1, 4.0), np.full(1, 12.0, "f4")], 1.0,
                                                          nonfinite="skip"))(jnp.full(1, 3.0))  # fmt: skip
    assert float(info.norm) == 13.0
    assert all(isinstance(y, jax.Array) for y in made)
    torch = pytest.importorskip("torch")
    with pytest.raises(gc.UnsupportedArrayError, match=r"array '1': it is torch's, on cpu, and others are jax"):
        jax.jit(lambda x: gc.clip_by_global_norm([x, torch.ones(3)], 1.0, nonfinite="skip")[0][0])(jnp.ones(3))


@traced
def test_global_norm_complex_and_donated() -> None:
    given = grads()
    assert close(jax.jit(gc.global_norm)(given), gc.global_norm(given), NORM)
    z = jnp.asarray([3 + 4j, 12j], "complex64")
    y, info = jax.jit(lambda z: gc.clip_by_global_norm(z, 1.0, nonfinite="skip"))(z)
    assert (float(info.norm), y.dtype) == (13.0, jnp.complex64)
    assert close(jnp.abs(y), [5 / 13, 12 / 13])
    step = jax.jit(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip")[0], donate_argnums=0)
    x = jnp.ones(5000)
    assert close(step(x), np.full(5000, 5000**-0.5))
    assert x.is_deleted()


@pytest.mark.parametrize(
    ("call", "kind", "seen"),
    [
        (lambda x: gc.clip_by_global_norm_([x], 1.0), gc.ReadOnlyError, "Use clip_by_global_norm, which returns"),
        (lambda x: gc.plan([x], gc.GlobalNorm(1.0)), gc.InvalidArgumentError, "multiply by info.scale"),
        (lambda x: gc.clip([x], gc.GlobalNorm(1.0), underflow="count", nonfinite="skip"), gc.GradClipError, "underfl"),
        (lambda x: gc.clip([x], gc.Project(sets.L1Ball(1.0)), nonfinite="skip"), gc.BackendError, "in host memory"),
        (lambda x: gc.clip([x], gc.ArrayNorm(1.0), out=[np.ones(3)], nonfinite="skip"), gc.GradClipError, "host mem"),
        (lambda x: gc.clip_by_norm([x], 1.0, backend="numpy", nonfinite="skip"), gc.BackendError, "backend='numpy'"),
        (lambda x: gc.clip_by_norm([x.astype("int32")], 1.0, nonfinite="skip"), gc.GradClipError, "dtype int32"),
        (lambda x: gc.to_half([x], "bfloat16", gc.GlobalNorm(1.0), nonfinite="skip"), gc.GradClipError, "host mem"),
        (lambda x: gc.Clipper(gc.GlobalNorm(1.0))([x]), gc.GradClipError, "traced"),
    ],
)  # fmt: skip
def test_what_needs_memory_is_refused(call: Any, kind: type[Exception], seen: str) -> None:
    with pytest.raises(kind, match=seen):
        jax.jit(call)(jnp.ones(3))


def test_mesh_axes_outside_a_mesh_are_refused() -> None:
    with pytest.raises(gc.InvalidArgumentError, match=r"mesh_axes=\('q',\): there is no such mesh axis here"):
        jax.jit(lambda x: gc.clip_by_norm(x, 1.0, mesh_axes="q", nonfinite="skip")[0])(jnp.ones(3))
    with pytest.raises(gc.InvalidArgumentError, match="a unit may be whole on one shard, or cut"):
        jax.jit(lambda x: gc.adaptive_clip(x, x, axis=0, mesh_axes="q", nonfinite="skip")[0])(jnp.ones((3, 2)))
    with pytest.raises(gc.InvalidArgumentError, match=r"mesh_axes.*the arrays are concrete"):
        gc.clip_by_global_norm([jnp.ones(3)], 1.0, mesh_axes="x")
    with pytest.raises(gc.InvalidArgumentError, match="names no axes"):
        gc.clip_by_global_norm([jnp.ones(3)], 1.0, mesh_axes=3)  # type: ignore[arg-type]


@traced
@pytest.mark.shows("jax", "sharded", "exact")
def test_shards_inside_jit_and_shard_map() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np, gradclip_core as gc
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4,), ("x",))
rng = np.random.default_rng(0)
grads = {"w": rng.standard_normal((64, 33)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
expected, known = gc.clip_by_global_norm(grads, 1.0)
specs = {"w": P("x"), "b": P()}
placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in grads.items()}
def check(made, norm):
    assert abs(float(norm) / known.norm - 1) < 2.0**-22, (norm, known.norm)
    for name in grads:
        assert np.allclose(made[name], expected[name], rtol=2.0**-19, atol=0), name
made, info = jax.jit(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip"))(placed)
check(made, info.norm)
assert made["w"].sharding.is_equivalent_to(placed["w"].sharding, 2)
def inside(g, axes=("x",)):
    made, info = gc.clip_by_global_norm(g, 1.0, nonfinite="skip", mesh_axes=axes)
    return made, info.norm
check(*jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(specs,), out_specs=(specs, P())))(placed))
# Without mesh_axes each shard is clipped by its own norm, as every function inside shard_map sees its own.
def local(w):
    made, info = gc.clip_by_global_norm(w, 1.0, nonfinite="skip")
    return made, info.norm[None]
made, norms = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P("x"))))(placed["w"])
each = [gc.global_norm(part) for part in np.split(grads["w"], 4)]
assert np.allclose(norms, each, rtol=2.0**-22, atol=0)
# Without JAX's own account of what varies, every array is taken for sharded.
unchecked = jax.shard_map(lambda w: inside(w), mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P()), check_vma=False)
assert abs(float(jax.jit(unchecked)(placed["w"])[1]) / gc.global_norm(grads["w"]) - 1) < 2.0**-22
# A NaN on one shard is everybody's.
poisoned = grads["w"].copy()
poisoned[0, 0] = np.nan
bad = {**placed, "w": jax.device_put(poisoned, NamedSharding(mesh, P("x")))}
made, norm = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(specs,), out_specs=(specs, P())))(bad)
assert (np.asarray(made["w"])[1:] == grads["w"][1:]).all()
"""
    run(code, 4)


def loops_over(shape: str, n: int) -> int:
    """How many different loops XLA has made of a clip of ``n`` arrays, of those that read one of them."""
    compiled = jax.jit(lambda g: gc.clip_by_global_norm(g, 1.0, nonfinite="skip")[0]).lower([jnp.ones((5, 7))] * n)
    bodies = re.findall(r"^%fused_computation[^\n]*\n(.*?)^}", compiled.compile().as_text(), re.MULTILINE | re.DOTALL)
    plain = [re.sub(r", metadata=\{[^}]*\}|\.\d+|_\d+", "", body) for body in bodies]
    return len({body for body in plain if re.search(re.escape(shape) + r"\{1,0\} parameter", body)})


def test_arrays_of_one_shape_share_their_loops() -> None:
    """XLA compiles equal loops once: what a program costs to compile is a matter of its shapes, not of its arrays."""
    assert loops_over("f32[5,7]", 12) == loops_over("f32[5,7]", 3) > 0
