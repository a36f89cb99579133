"""Concrete JAX arrays on the CPU, through the generic door: read where they are, answered in kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc

jax: Any = pytest.importorskip("jax")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_new_arrays_are_jax_arrays_with_the_reference_s_bits(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(5000)
    given = jax.numpy.asarray(values, dtype=dtype)
    clipped, info = gc.clip_by_global_norm({"w": given, "b": None}, 1.0)
    assert isinstance(clipped["w"], jax.Array)
    assert clipped["w"].dtype == given.dtype
    same, reference = gc.clip_by_global_norm([np.array(given)], 1.0, backend="numpy")
    assert info.norm == reference.norm
    assert np.array(clipped["w"]).tobytes() == same[0].tobytes()
    assert (np.array(given) == np.array(jax.numpy.asarray(values, dtype=dtype))).all(), "JAX arrays are immutable"


def test_in_place_is_refused_with_the_other_function_s_name() -> None:
    with pytest.raises(gc.ReadOnlyError, match=r"unversioned DLPack capsule.*Use clip_by_global_norm, which returns"):
        gc.clip_by_global_norm_([jax.numpy.ones(3)], 1.0)


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_traced_arrays_are_refused(transform: str) -> None:
    def step(x: Any) -> Any:
        return gc.clip_by_global_norm([x], 1.0)[0][0].sum()

    with pytest.raises(gc.UnsupportedArrayError, match="Clip outside jit, grad and vmap"):
        getattr(jax, transform)(step)(jax.numpy.ones((2, 3)))


def test_a_random_key_is_no_gradient() -> None:
    with pytest.raises(gc.GradClipError, match="leaf '0'"):
        gc.clip_by_global_norm([jax.random.key(0)], 1.0)


def test_jax_and_numpy_in_one_call() -> None:
    clipped, info = gc.clip_by_global_norm([jax.numpy.full(1, 3.0), np.full(1, 4.0)], 1.0)
    assert (info.norm, type(clipped[1])) == (5.0, np.ndarray)
    assert isinstance(clipped[0], jax.Array)


def test_a_registered_node_is_walked_as_jax_was_told() -> None:
    class Layer:
        def __init__(self, weight: Any, name: str) -> None:
            self.weight, self.name = weight, name

    jax.tree_util.register_pytree_node(Layer, lambda x: ((x.weight,), x.name), lambda name, xs: Layer(xs[0], name))
    clipped, info = gc.clip_by_norm({"a": Layer(np.array([3.0, 4.0]), "kept")}, 1.0)
    assert (clipped["a"].name, info.norm, list(info.norms)) == ("kept", 5.0, ["a.0"])


def test_results_stay_on_the_device_of_their_input() -> None:
    code = """
import jax, numpy as np, gradclip_core as gc
x = jax.device_put(np.full(4, 3.0, np.float32), jax.devices()[1])
(y,), _ = gc.clip_by_global_norm([x], 1.0)
print(y.device == x.device)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **flags, **path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr
