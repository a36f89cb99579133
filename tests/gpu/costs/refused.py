"""What a call on a device refuses, and in which words: taken from running it, for the table of docs/gpu.md."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import gradclip_core as gc
from tests.gpu.cupy.lanes import on
from tests.gpu.standin import Machine
from tests.gpu.standin.jax_cuda import JaxCudaArray

LANE = "ptx-90"
Call = Callable[[], object]


def _put(values: Any, dtype: Any = np.float32, device: int = 0) -> Any:
    cupy = importlib.import_module("cupy")
    with cupy.cuda.Device(device):
        return cupy.asarray(np.asarray(values, dtype))


def _capture(read: bool, warm: bool, nonfinite: str) -> None:
    cupy = importlib.import_module("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        grads = [_put([3.0, 4.0])]
        if warm:
            gc.clip_by_global_norm_(grads, 1.0, nonfinite=nonfinite)
            stream.synchronize()
        stream.begin_capture()
        try:
            info = gc.clip_by_global_norm_(grads, 1.0, nonfinite=nonfinite)
            if read:
                info.norm  # noqa: B018
        finally:
            # What broke the capture is what is to be seen, not that it is broken.
            with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                stream.end_capture()


def _situations() -> dict[str, Call]:
    skip: dict[str, Any] = {"nonfinite": "skip"}
    two = [3.0, 4.0]
    wide = _put(np.ones(100))
    plan = gc.plan([_put(two)], gc.GlobalNorm(1.0))
    weights = {"w": _put([[1.0, np.nan]])}
    return {
        "an infinity or a NaN, with `raise`": lambda: gc.clip_by_global_norm_({"w": _put([1, np.inf])}, 1.0),
        "a loss scale on the device that is not valid (when `info` is read)": lambda: (
            gc.clip_by_global_norm_([_put(two)], 1.0, loss_scale=_put(-1.0), **skip).norm
        ),
        "a loss scale on another device": lambda: gc.clip_by_global_norm_(
            [_put(two)], 1.0, loss_scale=_put(2.0, device=1)
        ),
        "a loss scale of two numbers": lambda: gc.clip_by_global_norm_([_put(two)], 1.0, loss_scale=_put(two)),
        "weights that are not finite (when `info` is read)": lambda: (
            gc.adaptive_clip_({"w": _put([two])}, weights, 0.01, axis="all_but_first", **skip).norm
        ),
        "arrays on two devices": lambda: gc.clip_by_global_norm_([_put(two), _put(two, device=1)], 1.0),
        "arrays on a device and on the host": lambda: gc.clip_by_global_norm_(
            [_put(two), np.array(two, np.float32)], 1.0
        ),
        "a plan for another device's gradients": lambda: plan.apply_([_put(two, device=1)]),
        "a backend for the host, by name": lambda: gc.clip_by_global_norm_([_put(two)], 1.0, backend="numpy"),
        "a JAX array, in place": lambda: gc.clip_by_global_norm_([JaxCudaArray(np.ones(9, np.float32))], 1.0),
        "two arrays that overlap": lambda: gc.clip_by_global_norm_([wide[:60], wide[40:]], 1.0),
        "integers": lambda: gc.clip_by_global_norm_([_put([1, 2], np.int32)], 1.0),
        "a capture without a warm-up": lambda: _capture(False, False, "skip"),
        "a capture with `raise`": lambda: _capture(False, True, "raise"),
        "`info` read inside a capture": lambda: _capture(True, True, "skip"),
    }


def _said(call: Call) -> tuple[str, str]:
    try:
        call()
    except gc.GradClipError as error:
        # How much is allocated is the stand-in's affair, and so is the name of its class for JAX.
        said = str(error).replace(JaxCudaArray.__name__, "jax.Array")
        return type(error).__name__, re.sub(r"\(Out of memory.*?\)\.\)", "(...)", said)
    raise AssertionError("nothing was refused")


def refusals() -> list[list[str]]:
    """Rows: situation, class, sentence."""
    with on(LANE, devices=2) as standin:
        rows = [[situation, *_said(call)] for situation, call in _situations().items()]
        rows.append(["no memory left on the device", *_said(lambda: _without_memory(standin))])
    return rows


def _without_memory(standin: Machine) -> None:
    grads = [_put(np.ones(5000)) for _ in range(100)]
    standin.faults.out_of_memory_at = 1
    try:
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    finally:
        standin.faults.out_of_memory_at = None
