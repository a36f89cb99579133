"""The reference of the optimizers' updates. See ``updates.py`` for the formulas and the order of roundings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core.protocol import FLOAT64, LEAVE, ZERO, Actions, Buffer, DType, FloatArray, IntArray
from gradclip_core.reference import narrow, widen
from gradclip_core.updates import UPDATES, Bound, compute_type

# The memory is read a few blocks at a time, so that what is computed on the way stays in cache.
_CHUNK = 64 * 4096

Array = npt.NDArray[Any]
Numbers = dict[str, Any]


# ---- the gradient -------------------------------------------------------------------------------


def gradient(x: Array, dtype: DType, actions: Actions, array: int) -> Array:
    """The elements as ``Backend.apply`` would write them, but that 16-bit types stay float32."""
    g = widen(x, dtype)
    if actions.op[array] == ZERO:
        return np.zeros_like(g)
    if actions.op[array] == LEAVE:
        return g
    for multiplier in (actions.factor,) if dtype is FLOAT64 else (actions.coarse, actions.fine):
        g = g * multiplier[array]
    return g


# ---- the updates --------------------------------------------------------------------------------
# Each returns the new parameter, and writes the new state.


def sgd(p: Array, g: Array, n: Numbers) -> Any:
    """Gradient descent."""
    return p - n["lr"] * g


def momentum(p: Array, g: Array, n: Numbers, b: Array) -> Any:
    """Gradient descent with momentum."""
    b[:] = n["keep"] * b + n["take"] * g
    return p - n["lr"] * b


def nesterov(p: Array, g: Array, n: Numbers, b: Array) -> Any:
    """Gradient descent with Nesterov's momentum."""
    b[:] = n["keep"] * b + n["take"] * g
    return p - n["lr"] * (g + n["ahead"] * b)


def adam(p: Array, g: Array, n: Numbers, m: Array, v: Array) -> Any:
    """Adam and AdamW."""
    m[:] = m + n["take1"] * (g - m)
    v[:] = n["keep2"] * v + (n["take2"] * g) * g
    return n["decay"] * p - (n["lr"] * m) / (np.sqrt(v) / n["root"] + n["eps"])


def lion(p: Array, g: Array, n: Numbers, m: Array) -> Any:
    """Lion: the sign of an average."""
    u = n["keep1"] * m + n["take1"] * g
    m[:] = n["keep2"] * m + n["take2"] * g
    return n["decay"] * p - np.where(u > 0, n["lr"], np.where(u < 0, -n["lr"], u))


_UPDATE: dict[str, Any] = {"sgd": sgd, "momentum": momentum, "nesterov": nesterov, "adam": adam, "lion": lion}


def update(kind: str, p: Array, g: Array, numbers: FloatArray, *state: Array) -> Array:
    """The new parameter, in the type of computation, in which all of these are; the new state is written."""
    n = dict(zip(UPDATES[kind].numbers, numbers.astype(p.dtype), strict=True))
    g = g.astype(p.dtype)
    if n.get("l2", 0) != 0:
        g = g + n["l2"] * p
    made: Array = _UPDATE[kind](p, g, n, *state)
    return made


class NumpyBound:
    """See ``Bound``."""

    def __init__(self, kind: str, params: Sequence[Buffer], state: Sequence[Sequence[Buffer]]) -> None:
        self.kind, self.params, self.state = kind, params, state

    def step(self, index: IntArray, grads: Sequence[Buffer], actions: Actions, numbers: FloatArray) -> None:
        """See ``Bound.step``."""
        with np.errstate(all="ignore"):
            for column, (array, grad) in enumerate(zip(index.tolist(), grads, strict=True)):
                dtype = self.params[array].dtype
                p, x = self.params[array].as_numpy()[0], grad.as_numpy()[0]
                state = [buffers[array].as_numpy()[0] for buffers in self.state]
                for start in range(0, p.size, _CHUNK):
                    here = slice(start, start + _CHUNK)
                    g = gradient(x[here], grad.dtype, actions, column)
                    wide = widen(p[here], dtype).astype(compute_type(dtype).view, copy=False)
                    made = update(self.kind, wide, g, numbers[:, column], *(of[here] for of in state))
                    p[here] = narrow(made, dtype)


class NumpyUpdates:
    """See ``Updates``."""

    def bind(self, kind: str, params: Sequence[Buffer], state: Sequence[Sequence[Buffer]]) -> Bound:
        """See ``Updates.bind``."""
        return NumpyBound(kind, params, state)


UPDATES_IN_NUMPY = NumpyUpdates()
