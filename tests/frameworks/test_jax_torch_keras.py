"""Keras 3 on JAX and on PyTorch. On TensorFlow: ``test_keras.py``, in an environment of its own."""

from __future__ import annotations

import importlib.util

import pytest

from tests.frameworks.keras_programs import HEAD, JAX, TORCH, VARIABLES, in_a_process

if not all(importlib.util.find_spec(name) for name in ("keras", "jax", "torch")):
    pytest.skip("keras, jax and torch are not all installed", allow_module_level=True)


@pytest.mark.shows("keras", "under its compiler", "approximate")
def test_in_a_train_step_that_jax_compiles() -> None:
    in_a_process("jax", f"{HEAD}\nHOW = {{}}\n{JAX}")


def test_in_place_in_a_train_step_of_pytorch_s() -> None:
    in_a_process("torch", f"{HEAD}\nHOW = {{}}\n{TORCH}")


@pytest.mark.shows("keras", "new arrays", "exact")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_keras_variable_is_the_array_that_it_holds(backend: str) -> None:
    in_a_process(backend, VARIABLES)
