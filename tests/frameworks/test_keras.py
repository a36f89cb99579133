"""Keras 3 on TensorFlow: ``gc.clip`` between a custom ``train_step``'s gradients and its optimizer."""

from __future__ import annotations

import importlib.util

import pytest

from tests.frameworks.keras_programs import EMBEDDING, HEAD, TENSORFLOW, VARIABLES, in_a_process

if not all(importlib.util.find_spec(name) for name in ("keras", "tensorflow")):
    pytest.skip("keras and tensorflow are not both installed", allow_module_level=True)


@pytest.mark.shows("keras", "under its compiler", "approximate")
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_train_step_that_tensorflow_compiles(jit: bool) -> None:
    in_a_process("tensorflow", f"{HEAD}\nHOW = {{'jit_compile': {jit}}}\n{TENSORFLOW}")


def test_in_a_train_step_that_runs_eagerly() -> None:
    in_a_process("tensorflow", f"{HEAD}\nHOW = {{'run_eagerly': True}}\n{TENSORFLOW}")


def test_an_embedding_s_sparse_gradient_under_xla() -> None:
    in_a_process("tensorflow", EMBEDDING)


@pytest.mark.shows("keras", "new arrays", "exact")
def test_a_keras_variable_is_the_array_that_it_holds() -> None:
    in_a_process("tensorflow", VARIABLES)
