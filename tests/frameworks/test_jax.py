"""Concrete JAX arrays on the CPU: read where they are, answered in kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.frameworks.jax_devices import run

jax: Any = pytest.importorskip("jax")


@pytest.mark.shows("jax", "new arrays", "exact")
@pytest.mark.parametrize("dtype", ["float32", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_new_arrays_are_jax_arrays_with_the_reference_s_bits(dtype: str) -> None:
    held_to_the_reference(dtype)


@pytest.mark.shows("jax", "16-bit", "exact")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_as_exact(dtype: str) -> None:
    held_to_the_reference(dtype)


def held_to_the_reference(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(5000)
    given = jax.numpy.asarray(values, dtype=dtype)
    clipped, info = gc.clip_by_global_norm({"w": given, "b": None}, 1.0)
    assert isinstance(clipped["w"], jax.Array)
    assert clipped["w"].dtype == given.dtype
    same, reference = gc.clip_by_global_norm([np.array(given)], 1.0, backend="numpy")
    assert info.norm == reference.norm
    assert np.array(clipped["w"]).tobytes() == same[0].tobytes()
    assert (np.array(given) == np.array(jax.numpy.asarray(values, dtype=dtype))).all(), "JAX arrays are immutable"


@pytest.mark.shows("jax", "in place", "refused")
@pytest.mark.parametrize("count", [1, 3])
def test_in_place_is_refused_with_the_other_function_s_name(count: int) -> None:
    with pytest.raises(gc.ReadOnlyError, match=r"a jax array is immutable\. Use clip_by_global_norm, which returns"):
        gc.clip_by_global_norm_([jax.numpy.ones(3) for _ in range(count)], 1.0)
    with pytest.raises(gc.ReadOnlyError, match=r"Call the Clipper itself"):
        gc.Clipper(gc.GlobalNorm(1.0)).step_([jax.numpy.ones(3)])


def test_what_is_left_as_it_is_is_the_old_array() -> None:
    grads = [jax.numpy.full(3, 0.1), jax.numpy.zeros((0, 2)), jax.numpy.ones(5, "bfloat16")]
    for many in (grads, [jax.numpy.full(3, 1e-3) + i for i in range(40)]):
        kept, info = gc.clip_by_global_norm(many, 1e6)
        assert not info.clipped
        assert all(new is old for new, old in zip(kept, many, strict=True))
    mixed, _ = gc.clip_by_norm([jax.numpy.full(3, 0.1), np.full(3, 0.1)], 1.0)
    assert mixed[1].tolist() == [0.1] * 3


def test_many_small_arrays_come_in_and_go_out_together() -> None:
    rng = np.random.default_rng(1)
    values = [rng.standard_normal((3, n)).astype(np.float32) for n in range(1, 90)]
    from gradclip_core.arrays.dock import unload

    grads = [jax.numpy.asarray(x) for x in values]
    gc.clip_by_global_norm(grads, 1.0)  # by now the kernels are loaded
    if gc.clip_by_global_norm(values, 1.0)[1].backend == "numba_cpu":
        assert unload(grads, "test").manifest is not None
    clipped, info = gc.clip_by_global_norm(grads, 1.0)
    expected, reference = gc.clip_by_global_norm(values, 1.0, backend="numpy")
    assert info.norm == reference.norm
    assert [np.asarray(y).tobytes() for y in clipped] == [y.tobytes() for y in expected]
    assert {type(y) for y in clipped} == {type(grads[0])}
    assert [y.shape for y in clipped] == [x.shape for x in values]


def test_a_random_key_is_no_gradient() -> None:
    for grads in ([jax.random.key(0)], [jax.random.key(0), jax.random.key(1)]):
        with pytest.raises(gc.UnsupportedArrayError, match=r"array '0': it is a random key\. Leave it out"):
            gc.clip_by_global_norm(grads, 1.0)


def test_integers_and_other_floats_are_no_gradients() -> None:
    for dtype in ("int32", "bool", "float8_e4m3b11fnuz", "int4"):
        with pytest.raises(gc.UnsupportedArrayError, match=f"dtype {dtype}"):
            gc.clip_by_global_norm([jax.numpy.ones(3, dtype)], 1.0)


def test_deleted_and_donated_arrays() -> None:
    x, y = jax.numpy.ones(3), jax.numpy.ones(3)
    y.delete()
    for grads in ([x, y], [y]):
        with pytest.raises(gc.UnsupportedArrayError, match="it was deleted: it was donated to a function"):
            gc.clip_by_global_norm(grads, 1.0)
    # What a clip returns may be donated, and what it was made of is still there.
    made, _ = gc.clip_by_global_norm([x], 0.5)
    doubled = jax.jit(lambda v: 2 * v, donate_argnums=0)(made[0])
    assert (np.asarray(x) == 1).all()
    assert np.asarray(doubled)[0] == np.float32(2) * np.asarray(gc.clip_by_global_norm([x], 0.5)[0][0])[0]


def test_numpy_memory_that_jax_has_taken_is_not_written() -> None:
    """``device_put`` may alias a NumPy array, and JAX takes it for immutable from then on."""
    memory = np.ones(1 << 20, np.float32)
    x = jax.device_put(memory)
    clipped, _ = gc.clip_by_global_norm([x], 1.0)
    again, _ = gc.clip_by_global_norm([x], 2.0)
    assert (memory == 1).all()
    assert float(clipped[0][0]) * 2 == pytest.approx(float(again[0][0]), rel=1e-6)


def test_jax_and_numpy_in_one_call() -> None:
    clipped, info = gc.clip_by_global_norm([jax.numpy.full(1, 3.0), np.full(1, 4.0)], 1.0)
    assert (info.norm, type(clipped[1])) == (5.0, np.ndarray)
    assert isinstance(clipped[0], jax.Array)


def test_three_frameworks_and_four_dtypes_by_one_norm() -> None:
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(7)
    values = {name: rng.standard_normal(n) for name, n in (("np", 4097), ("torch", 300), ("jax", 5000), ("wide", 9))}
    given: dict[str, Any] = {
        "np": values["np"].astype(np.float16),
        "torch": [torch.from_numpy(values["torch"]).bfloat16(), None],
        "jax": (jax.numpy.asarray(values["jax"], "float32"), jax.numpy.asarray(values["jax"], "bfloat16")),
        "wide": values["wide"],
    }
    same = [
        given["np"],
        values["torch"].astype(ml_dtypes.bfloat16),
        *(np.asarray(x) for x in given["jax"]),
        given["wide"],
    ]
    expected, reference = gc.clip_by_global_norm(same, 1.0, backend="numpy")
    clipped, info = gc.clip_by_global_norm(given, 1.0)
    assert (info.norm, info.scale) == (reference.norm, reference.scale)
    assert list(info.norms) == ["np", "torch.0", "jax.0", "jax.1", "wide"]
    made = [clipped["np"], clipped["torch"][0].view(torch.int16).numpy(), *map(np.asarray, clipped["jax"])]
    assert [y.tobytes() for y in (*made, clipped["wide"])] == [y.tobytes() for y in expected]
    assert [type(y).__module__.partition(".")[0] for y in (clipped["torch"][0], *clipped["jax"])] == [
        "torch",
        "jaxlib",
        "jaxlib",
    ]
    with pytest.raises(gc.ReadOnlyError, match=r"array 'jax.0'.*immutable"):
        gc.clip_by_global_norm_(given, 1.0)
    assert given["np"].tobytes() == values["np"].astype(np.float16).tobytes(), "nothing is written before all may be"


def test_a_registered_node_is_walked_as_jax_was_told() -> None:
    class Layer:
        def __init__(self, weight: Any, name: str) -> None:
            self.weight, self.name = weight, name

    jax.tree_util.register_pytree_node(Layer, lambda x: ((x.weight,), x.name), lambda name, xs: Layer(xs[0], name))
    clipped, info = gc.clip_by_norm({"a": Layer(np.array([3.0, 4.0]), "kept")}, 1.0)
    assert (clipped["a"].name, info.norm, list(info.norms)) == ("kept", 5.0, ["a.0"])


@pytest.mark.shows("jax", "sharded", "exact")
def test_results_stay_on_the_devices_of_their_input() -> None:
    code = """
import jax, numpy as np, gradclip_core as gc
from jax.sharding import NamedSharding, PartitionSpec as P
x = jax.device_put(np.full(4, 3.0, np.float32), jax.devices()[1])
many = [jax.device_put(np.full(4, 3.0, np.float32), jax.devices()[i % 2]) for i in range(9)]
(y,), _ = gc.clip_by_global_norm([x], 1.0)
assert y.device == x.device
made, _ = gc.clip_by_global_norm(many, 1.0)
assert [y.device for y in made] == [x.device for x in many]
with jax.default_device(jax.devices()[1]):
    (y,), _ = gc.clip_by_global_norm([jax.numpy.ones(3)], 1.0)
    assert y.device == jax.devices()[1], y.device
mesh = jax.make_mesh((2,), ("x",))
values = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
for spec in (P("x"), P(None), P()):
    s = jax.device_put(values, NamedSharding(mesh, spec))
    for grads in ([s], [s, s + 1]):
        made, info = gc.clip_by_global_norm(grads, 1.0)
        expected, reference = gc.clip_by_global_norm([np.asarray(x) for x in grads], 1.0, backend="numpy")
        assert info.norm == reference.norm
        assert made[0].sharding == s.sharding, (made[0].sharding, s.sharding)
        assert np.asarray(made[0]).tobytes() == expected[0].tobytes()
"""
    run(code, 2)
