"""The loss scale, where only the device knows it."""

from __future__ import annotations

from typing import Any

from gradclip_backends.numba_cuda.jit import device
from gradclip_backends.numba_cuda.record import BFLOAT16, FLOAT16, FLOAT32
from gradclip_backends.numba_cuda.storage import STORAGES

_half, _brain, _float, _double = (storage.read for storage in STORAGES)
_LEAST, _MOST = 2.0**-1022, 2.0**1022


@device
def loss_scale(scale: Any) -> Any:
    """The one element at its address."""
    if scale.dtype == FLOAT16:
        return _half(scale.address)
    if scale.dtype == BFLOAT16:
        return _brain(scale.address)
    if scale.dtype == FLOAT32:
        return _float(scale.address)
    return _double(scale.address)


@device
def is_loss_scale(scale: Any) -> Any:
    """Its reciprocal has to be a normal float64, or unscaling would lose bits."""
    return scale >= _LEAST and scale <= _MOST


@device
def inverse_scale(scale: Any) -> Any:
    """1 / loss scale."""
    if scale.address == 0:
        return scale.inverse
    return 1.0 / loss_scale(scale)
