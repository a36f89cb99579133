"""Optimizers with every option, numbers of every kind, and comparison to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core import optim
from gradclip_core.protocol import BASE_DTYPES, BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from gradclip_core.reference import narrow, widen

Array = npt.NDArray[Any]
Maker = Callable[..., optim.Optimizer]

OPTIMIZERS: dict[str, Maker] = {
    "sgd": lambda p, **k: optim.SGD(p, 0.1, **k),
    "sgd, decay": lambda p, **k: optim.SGD(p, 0.1, weight_decay=0.02, **k),
    "momentum": lambda p, **k: optim.SGD(p, 0.1, 0.9, weight_decay=0.02, **k),
    "dampening": lambda p, **k: optim.SGD(p, 0.1, 0.9, dampening=0.3, **k),
    "nesterov": lambda p, **k: optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01, **k),
    "adam": lambda p, **k: optim.Adam(p, 0.01, **k),
    "adam, decay": lambda p, **k: optim.Adam(p, 0.01, (0.8, 0.95), weight_decay=0.05, **k),
    "adamw": lambda p, **k: optim.AdamW(p, 0.01, **k),
    "adamw, betas": lambda p, **k: optim.AdamW(p, 0.02, (0.0, 0.5), eps=1e-4, weight_decay=0.3, **k),
    "lion": lambda p, **k: optim.Lion(p, 0.01, weight_decay=0.1, **k),
}
DTYPES = list(BASE_DTYPES.values())
NUMPY_DTYPES = [FLOAT16, FLOAT32, FLOAT64]


def drawn(rng: np.random.Generator, n: int, dtype: DType, *, wild: bool = False) -> Array:
    """Numbers as stored; ``wild``: of all magnitudes, zeros of both signs, infinities and NaNs among them."""
    values = rng.standard_normal(n)
    if wild:
        values = values * 2.0 ** rng.integers(-150, 128, n)
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38])
        some = rng.random(n) < 0.2
        values = np.where(some, rng.choice(odd, n), values)
    with np.errstate(all="ignore"):
        return narrow(values.astype(np.float64 if dtype is FLOAT64 else np.float32), dtype)


def as_array(stored: Array, dtype: DType) -> Any:
    """Stored numbers as an array that the dock knows; bfloat16 needs ml_dtypes."""
    if dtype is BFLOAT16:
        import ml_dtypes

        return stored.view(ml_dtypes.bfloat16)
    return stored


def bits(array: Any) -> tuple[bytes, bytes]:
    """The bits, where a number is one, and where it is not: the payload of a NaN is nobody's promise."""
    stored = np.asarray(array)
    wide = stored.astype(np.float64)
    nan = np.isnan(wide)
    return np.where(nan, 0.0, wide).tobytes(), nan.tobytes()


def state_bits(opt: optim.Optimizer) -> dict[str, Any]:
    """All of an optimizer's state."""
    return {
        path: {name: value if name == "step" else bits(value) for name, value in entry.items()}
        for path, entry in opt.state.items()
    }


def values(stored: Array, dtype: DType) -> Array:
    """Stored numbers as float64."""
    return widen(stored, dtype).astype(np.float64)
