"""Eager TensorFlow: read where it is, answered in kind, and every hazard of its memory refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.arrays.express import fleet_of
from gradclip_core.arrays.frameworks import door_of

tf: Any = pytest.importorskip("tensorflow")
ROOT = Path(__file__).resolve().parents[2]


def tensors(*shapes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [tf.cast(tf.constant(rng.standard_normal(shape)), dtype) for shape in shapes]


def bits(x: Any) -> bytes:
    return bytes(x.numpy().tobytes() if hasattr(x, "numpy") else x.tobytes())


@pytest.mark.shows("tensorflow", "new arrays", "exact")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"])
def test_new_arrays_are_tensors_with_the_reference_s_bits(dtype: str) -> None:
    given = tensors((90, 60), (7,), (), dtype=dtype)
    before = [bits(x) for x in given]
    clipped, info = gc.clip_by_global_norm({"w": given[0], "b": (given[1], None), "s": given[2]}, 1.0)
    same, reference = gc.clip_by_global_norm([x.numpy() for x in given], 1.0, backend="numpy")
    made = [clipped["w"], clipped["b"][0], clipped["s"]]
    assert [type(x) for x in made] == [type(given[0])] * 3
    assert [(x.dtype, x.shape) for x in made] == [(x.dtype, x.shape) for x in given]
    assert [bits(x) for x in made] == [bits(np.asarray(x)) for x in same]
    assert (info.norm, info.clipped_norm, info.scale) == (
        reference.norm,
        reference.clipped_norm,
        reference.scale,
    )
    assert [bits(x) for x in given] == before


@pytest.mark.shows("tensorflow", "16-bit", "exact")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_tensors_have_the_reference_s_bits(dtype: str) -> None:
    given = tensors((120, 120), (9,), dtype=dtype)
    for call in (gc.clip_by_global_norm, gc.clip_by_norm, gc.clip_by_value):
        made, _ = call(given, 0.7)
        same, _ = call([x.numpy() for x in given], 0.7, backend="numpy")
        assert [bits(x) for x in made] == [bits(x) for x in same]


def test_what_nothing_is_done_to_is_the_tensor_that_was_given() -> None:
    given = tensors((3, 2), (5,))
    clipped, info = gc.clip_by_global_norm(given, 100.0)
    assert not info.clipped
    assert [x is y for x, y in zip(clipped, given, strict=True)] == [True, True]


def test_thousands_come_in_by_express(backend: str) -> None:
    given = tensors(*[(8,)] * 40)
    gc.clip_by_global_norm(given, 1.0, backend=backend)
    fleet = fleet_of(given, door_of(given[0]))
    assert (fleet is not None and fleet.read_only) or backend == "numpy"


def test_results_keep_their_values_whatever_is_clipped_after_them() -> None:
    """Small ones are copied out of NumPy's memory or take it over; large ones are made in TensorFlow's own."""
    given = tensors(*[(n,) for n in (1, 16, 64, 100, 5000, 40_000)])
    made, _ = gc.clip_by_global_norm(given, 1.0)
    before = [bits(x) for x in made]
    for seed in range(5):
        gc.clip_by_global_norm(tensors(*[(n,) for n in (1, 16, 64, 100, 5000, 40_000)], seed=seed), 0.5)
    assert [bits(x) for x in made] == before
    assert [float(tf.reduce_sum(x)) for x in made] == pytest.approx([x.numpy().sum() for x in made], rel=1e-4, abs=1e-6)


def test_a_variable_is_read_through_its_value_and_answered_by_a_tensor() -> None:
    values = np.array([3.0, 4.0], np.float32)
    variable = tf.Variable(values)
    clipped, info = gc.clip_by_norm([variable], 1.0)
    variable.assign([0.0, 0.0])
    assert info.norm == 5.0
    assert isinstance(clipped[0], tf.Tensor)
    assert clipped[0].numpy() == pytest.approx([0.6, 0.8])


@pytest.mark.shows("tensorflow", "in place", "refused")
def test_in_place_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(gc.ReadOnlyError, match=r"TensorFlow tensor is immutable\. Use clip_by_global_norm, which ret"):
        gc.clip_by_global_norm_(tensors((3,)), 1.0)
    with pytest.raises(gc.ReadOnlyError, match=r"tf\.Variable.*v\.assign\(x\)\. Use clip_by_value, which returns new"):
        gc.clip_by_value_([tf.Variable([1.0])], 1.0)
    with pytest.raises(gc.ReadOnlyError, match=r"out, array '0': a TensorFlow tensor is immutable"):
        gc.clip([np.ones(1)], gc.GlobalNorm(1.0), out=[tf.zeros(1)])


REFUSED = {
    "string": (lambda: tf.constant(["a"]), "dtype string, which holds no numbers. Leave it out"),
    "resource": (lambda: tf.Variable([1.0]).handle, "dtype resource, which holds no numbers"),
    "int32": (lambda: tf.constant([1]), "int32 is no gradient's dtype. Convert to one of"),
    "bool": (lambda: tf.constant([True]), "bool is no gradient's dtype"),
    "sparse": (lambda: tf.sparse.from_dense([[1.0, 0.0]]), r"tf.SparseTensor.*tf.sparse.to_dense\(x\)"),
    "ragged": (lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]), "tf.RaggedTensor.*Pass x.flat_values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_gradient_is_refused_also_among_many(kind: str) -> None:
    make: Any
    make, sentence = REFUSED[kind]
    for grads in ([make()], [*tensors((2,), (2,)), make()]):
        gc.global_norm(tensors((2,)))
        with pytest.raises(gc.UnsupportedArrayError, match=sentence):
            gc.clip_by_global_norm(grads, 1.0)


def test_one_tensor_that_is_two_gradients_counts_twice() -> None:
    """Of ``x + y`` TensorFlow makes one tensor for both, and nothing could be scaled twice by it."""
    x, y = tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((x + y) ** 2)
    grads = tape.gradient(loss, [x, y])
    assert grads[0] is grads[1]
    clipped, info = gc.clip_by_global_norm([*grads, tf.reshape(grads[0], (2, 1))], 1.0)
    assert info.norm == gc.global_norm([*(x.numpy() for x in grads), grads[0].numpy().copy()])
    assert float(tf.linalg.global_norm(clipped)) == pytest.approx(1.0, rel=1e-6)


def test_weights_among_gradients_are_refused() -> None:
    """What ``apply_gradients`` takes: of pairs, each half would have been clipped by the norm of both."""
    gradients, variables = [tf.constant([3.0, 4.0])], [tf.Variable([30.0, 40.0])]
    with pytest.raises(gc.InvalidArgumentError, match=r"array '0\.1': it is a trainable variable among.*\[g for"):
        gc.clip_by_global_norm(list(zip(gradients, variables, strict=True)), 1.0)
    traced = tf.function(lambda pairs: gc.clip_by_global_norm(pairs, 1.0, nonfinite="skip")[1].norm)
    with pytest.raises(gc.InvalidArgumentError, match="trainable variable among gradients"):
        traced(list(zip(gradients, variables, strict=True)))
    assert gc.global_norm([*gradients, *variables]) == pytest.approx(50.2493781)
    assert gc.clip_by_global_norm([*gradients, tf.Variable([12.0], trainable=False)], 1.0)[1].norm == 13.0


def test_numpy_s_and_tensorflow_s_in_one_call() -> None:
    clipped, info = gc.clip_by_global_norm([tf.constant([3.0]), np.full(1, 4.0)], 1.0)
    assert (info.norm, type(clipped[1])) == (5.0, np.ndarray)
    assert isinstance(clipped[0], tf.Tensor)


def test_a_clip_that_a_tape_records_is_refused() -> None:
    x = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        g = 2.0 * x
        with pytest.raises(gc.InvalidArgumentError, match=r"GradientTape is recording it.*tape\.stop_recording\(\)"):
            gc.clip_by_norm([g], 1.0)
        assert gc.global_norm([g]) == pytest.approx(20**0.5)
        assert gc.clip_by_norm([tf.constant([3.0, 4.0])], 1.0)[1].norm == 5.0
        assert gc.clip_by_norm([tf.stop_gradient(g)], 1.0)[1].clipped
        with tape.stop_recording():
            assert gc.clip_by_norm([g], 1.0)[1].clipped
    assert gc.clip_by_norm([g], 1.0)[1].clipped
    t = tf.constant([1.0])
    with tf.autodiff.ForwardAccumulator(t, tf.ones_like(t)), pytest.raises(gc.InvalidArgumentError, match="recording"):
        gc.clip_by_norm([2.0 * t], 1.0)


def test_agrees_with_tensorflow_s_own() -> None:
    given = tensors((40, 30), (25,))
    norm = gc.global_norm(given)
    assert float(tf.linalg.global_norm(given)) == pytest.approx(norm, rel=1e-6)
    ours, theirs = gc.clip_by_global_norm(given, 1.0)[0], tf.clip_by_global_norm(given, 1.0)[0]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(gc.clip_by_norm(given, 1.0)[0][0], tf.clip_by_norm(given[0], 1.0), rtol=1e-6)
    np.testing.assert_array_equal(gc.clip_by_value(given, 0.5)[0][0], tf.clip_by_value(given[0], -0.5, 0.5))
    axes = gc.adaptive_clip(given[:1], [tf.Variable(tf.ones((40, 30)))], axis="all_but_last", clipping=0.1)[0][0]
    np.testing.assert_allclose(axes, tf.clip_by_norm(given[0], 0.1 * 40**0.5, axes=[0]), rtol=1e-5)


@pytest.mark.parametrize("ours", [True, False])
def test_training_goes_the_same_way_as_with_tensorflow_s_own(ours: bool) -> None:
    def train(clip: Any) -> Any:
        rng = np.random.default_rng(1)
        x, y = tf.constant(rng.standard_normal((64, 8))), tf.constant(rng.standard_normal((64, 1)) * 30)
        w, b = tf.Variable(tf.zeros((8, 1), tf.float64)), tf.Variable(tf.zeros(1, tf.float64))
        for _ in range(20):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((x @ w + b - y) ** 2)
            for variable, g in zip((w, b), clip(tape.gradient(loss, [w, b])), strict=True):
                variable.assign_sub(0.1 * g)
        return w.numpy()

    def clip(grads: Any) -> Any:
        return gc.clip_by_global_norm(grads, 1.0)[0] if ours else tf.clip_by_global_norm(grads, 1.0)[0]

    np.testing.assert_allclose(train(clip), train(lambda grads: tf.clip_by_global_norm(grads, 1.0)[0]), rtol=1e-9)


def test_a_plan_is_carried_out_on_tensors() -> None:
    given = tensors((6,), (2, 2))
    plan = gc.plan(given, gc.GlobalNorm(1.0))
    assert [bits(x) for x in plan.apply(given)] == [bits(x) for x in gc.clip_by_global_norm(given, 1.0)[0]]


def in_a_process(code: str) -> str:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    head = "import tensorflow as tf, numpy as np, gradclip_core as gc\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], env={**os.environ, **path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_what_ends_the_process_by_dlpack_does_not_here() -> None:
    """``np.from_dlpack`` of strings, and tensors around memory that is not aligned, both abort TensorFlow 2.21."""
    code = """
for n in range(1, 40):
    y, = gc.clip_by_global_norm([tf.ones(n)], 0.5)[0]
    z, = gc.clip_by_global_norm([np.ones(n + 1, np.float32)[1:]], 0.5)[0]
    assert np.allclose(tf.matmul(y[None], y[:, None]), 0.25)
    y, = gc.clip_by_global_norm([tf.constant(np.ones(n + 1, np.float32)[1:])], 0.5)[0]
    assert np.allclose(tf.reduce_sum(y * y), 0.25)
try:
    gc.clip_by_global_norm([tf.ones(2), tf.constant(["a"])], 1.0)
except gc.UnsupportedArrayError as error:
    print("refused")
"""
    assert in_a_process(code) == "refused"


def test_results_stay_on_the_device_of_their_input() -> None:
    code = """
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
for n in (4, 40_000):
    with tf.device("CPU:1"):
        x = tf.fill((n,), 3.0)
    for _ in range(2):
        (y,), _ = gc.clip_by_global_norm([x], 1.0)
        assert "CPU:1" in x.backing_device and x.backing_device == y.backing_device
print("there")
"""
    assert in_a_process(code) == "there"


def test_under_a_distribution_strategy() -> None:
    """Each replica clips what it has: gradients that were added up before are clipped alike everywhere."""
    code = """
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    w = tf.Variable([3.0, 4.0])

def step():
    replica = tf.distribute.get_replica_context()
    grads = replica.all_reduce("sum", [w * tf.cast(replica.replica_id_in_sync_group + 1, tf.float32)])
    clipped, info = gc.clip_by_global_norm(grads, 1.0, nonfinite="skip")
    return clipped[0], info.norm

made, norms = tf.function(lambda: strategy.run(step))()
assert [float(x) for x in norms.values] == [15.0, 15.0]
assert np.array_equal(*made.values)
assert gc.clip_by_norm([w], 1.0)[1].norm == 5.0, "a variable is no container"
print("clipped")
"""
    assert in_a_process(code) == "clipped"


def test_on_another_device_tensorflow_s_own_operations_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: these are tensors that say that they are on one."""
    from gradclip_core.arrays import tensorflow_door

    given = tensors((40, 30), (25,))
    monkeypatch.setattr(tensorflow_door, "_placed", lambda x: "/job:localhost/replica:0/task:0/device:GPU:0")
    monkeypatch.setattr(tf, "device", lambda place: tf.name_scope("on_a_gpu"))
    clipped, info = gc.clip_by_global_norm(given, 1.0)
    same, reference = gc.clip_by_global_norm([x.numpy() for x in given], 1.0)
    assert (info.backend, type(info)) == ("array_api", gc.ClipInfo)
    assert info.norm == pytest.approx(reference.norm, rel=2**-40)
    for a, b in zip(clipped, same, strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-22)
    with pytest.raises(gc.NonFiniteGradientError, match=r"'1'.*1 NaN"):
        gc.clip_by_global_norm([given[0], tf.constant([np.nan])], 1.0)
    with pytest.raises(gc.ReadOnlyError, match="a TensorFlow tensor is immutable"):
        gc.clip_by_global_norm_(given, 1.0)
    rows = tf.IndexedSlices(tf.constant([[3.0], [4.0]]), tf.constant([2, 2]), tf.constant([5, 1]))
    (made,), info = gc.clip_by_norm([rows], 1.0)
    assert (info.norm, made.indices.numpy().tolist()) == (7.0, [2])
    x = tf.Variable([3.0, 4.0])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(gc.clip_by_norm([2.0 * x], 1.0)[0][0])
    assert tape.gradient(total, x).numpy() == pytest.approx([0.032, -0.024], abs=1e-6)


def test_tensorflow_is_not_imported_by_the_library() -> None:
    code = "gc.clip_by_global_norm([np.ones(3)], 1.0)\nimport sys\nprint('tensorflow' in sys.modules)"
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    head = "import numpy as np, gradclip_core as gc\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], env={**os.environ, **path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
