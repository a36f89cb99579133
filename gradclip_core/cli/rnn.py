"""What the demo trains: a character RNN in plain NumPy, and text that every machine has.

``h_t = tanh(E[x_t] + h_{t-1} W + b)``, ``p(x_{t+1}) = softmax(h_t V + c)``. The gradient through
time is a product of as many Jacobians as the sequence is long; with a W whose spectral radius is
above 1 that product explodes, as Pascanu, Mikolov and Bengio describe (2013).
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Params = dict[str, FloatArray]

# Modules of pure Python with much text in them, should the documentation be left out of an installation.
_MODULES = ("argparse", "datetime", "decimal", "inspect", "pathlib", "subprocess", "tarfile", "typing")
_SYMBOLS = 80
_GAIN = 1.5
"""Spectral radius of the initial recurrent matrix: enough to make the gradient explode."""


@dataclass(frozen=True)
class Corpus:
    """Text as numbers."""

    source: str
    symbols: str
    data: IntArray

    @property
    def entropy(self) -> float:
        """In nats a character: the loss of a model that knows how often each occurs, and no more."""
        shares = np.bincount(self.data, minlength=len(self.symbols)) / self.data.size
        return float(-(shares * np.log(shares)).sum())

    @property
    def uniform(self) -> float:
        """The loss of a model that knows nothing."""
        return float(np.log(len(self.symbols)))

    def batch(self, random: np.random.Generator, sequences: int, length: int) -> tuple[IntArray, IntArray]:
        """Inputs and targets, ``(length, sequences)``: windows of the text, anywhere in it."""
        starts = random.integers(0, self.data.size - length, sequences)
        windows = self.data[starts + np.arange(length + 1)[:, None]]
        return windows[:-1], windows[1:]


def corpus() -> Corpus:
    """Python's own documentation, else the sources of its library; the most frequent characters."""
    source, text = _text()
    symbols = "".join(sorted(symbol for symbol, _ in Counter(text).most_common(_SYMBOLS)))
    numbers = {symbol: i for i, symbol in enumerate(symbols)}
    return Corpus(source, symbols, np.array([numbers[symbol] for symbol in text if symbol in numbers]))


def _text() -> tuple[str, str]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions package it apart
        modules = (importlib.import_module(name) for name in _MODULES)
        return "the sources of Python's library", "".join(inspect.getsource(module) for module in modules)
    return "Python's documentation", "".join(topics[name] for name in sorted(topics))


def init(random: np.random.Generator, symbols: int, hidden: int) -> Params:
    """Float32 parameters."""
    spread = 1 / np.sqrt(hidden)
    params = {
        "embedding": 0.5 * random.standard_normal((symbols, hidden)),
        "recurrent": _GAIN * spread * random.standard_normal((hidden, hidden)),
        "bias": np.zeros(hidden),
        "output": 0.1 * spread * random.standard_normal((hidden, symbols)),
        "output_bias": np.zeros(symbols),
    }
    return {name: x.astype(np.float32) for name, x in params.items()}


def loss_and_gradients(params: Params, inputs: IntArray, targets: IntArray) -> tuple[float, Params]:
    """Mean cross-entropy in nats a character, and its gradient by backpropagation through all steps.

    Every matrix product is of one time step: too small for BLAS to share among threads, which on
    a busy machine wait for each other much longer than the product takes.
    """
    length, sequences = inputs.shape
    recurrent, output = params["recurrent"], params["output"]
    hidden = recurrent.shape[0]

    driven = params["embedding"][inputs] + params["bias"]
    states = np.zeros((length + 1, sequences, hidden), recurrent.dtype)
    for t in range(length):
        np.tanh(driven[t] + states[t] @ recurrent, out=states[t + 1])

    logits = states[1:] @ output + params["output_bias"]
    logits -= logits.max(axis=2, keepdims=True)
    shares = np.exp(logits)
    totals = shares.sum(axis=2, keepdims=True)
    wanted = targets[:, :, None]
    losses = np.log(totals) - np.take_along_axis(logits, wanted, axis=2)

    errors = shares / totals  # the gradient with respect to the logits
    np.put_along_axis(errors, wanted, np.take_along_axis(errors, wanted, axis=2) - 1, axis=2)
    errors /= length * sequences
    from_output = errors @ output.T
    slopes = 1 - states[1:] ** 2
    before = np.empty_like(slopes)  # with respect to what tanh is taken of
    grads = {name: np.zeros_like(x) for name, x in params.items()}
    back = np.ascontiguousarray(recurrent.T)
    later = np.zeros((sequences, hidden), recurrent.dtype)
    for t in reversed(range(length)):
        before[t] = (from_output[t] + later) * slopes[t]
        later = before[t] @ back
        grads["recurrent"] += states[t].T @ before[t]
        grads["output"] += states[t + 1].T @ errors[t]
    np.add.at(grads["embedding"], inputs.reshape(-1), before.reshape(-1, hidden))
    grads["bias"] += before.sum(axis=(0, 1))
    grads["output_bias"] += errors.sum(axis=(0, 1))
    return float(losses.mean(dtype=np.float64)), grads
