"""Clip gradients on a GPU, against what else there is: PyTorch's foreach, Apex, TransformerEngine, CuPy's own norm.

Three times of each call: between two CUDA events behind other work, which is the device's own; between two events with
nothing else queued, which is the larger of the device's and the host's; and the host's. Nothing is written where there
is no device.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gradclip_core as gc
from benchmarks.harness import append
from benchmarks.shapes import gpt2
from gradclip_core import registry
from gradclip_core.cli.bench_timing import Row, duration
from gradclip_core.cli.console import table
from gradclip_core.protocol import Request

Calls = dict[str, Callable[[], object]]
CASES: tuple[tuple[str, list[tuple[int, ...]], tuple[str, ...]], ...] = (
    ("gpt2", gpt2(), ("float32", "float16", "bfloat16")),
    ("small", [(64,)] * 1000, ("float32",)),
)
REPEATS = 51
WARM_UP = 5
PAUSE = 60_000_000
"""Clock cycles, some 30 ms: more than any of the calls takes the host."""
TIMES = ("queued behind other work", "alone", "the host")
COLUMNS = ("gradients", "what", "median", "GB/s of gradient")


def run() -> None:
    """Time, print, and append to ``results/gpu.csv``."""
    torch = _torch_with_device()
    rows: list[Row] = []
    for name, shapes, dtypes in CASES:
        for dtype in dtypes:
            params = [torch.nn.Parameter(torch.empty(s, dtype=getattr(torch, dtype), device="cuda")) for s in shapes]
            for param in params:
                param.grad = (torch.randn(param.shape, device="cuda") * 1e-2).to(param.dtype)
            stored = sum(param.nbytes for param in params)
            made = rows_of(f"{name}, {dtype}", len(params), stored, timed(torch, calls(torch, params)))
            table("", COLUMNS, COLUMNS[2:], [_shown(row) for row in made])
            rows += made
            del params
    machine, packages = _context(torch)
    print(f"appended to {append('gpu', rows, machine=machine, packages=packages)}")


def rows_of(data: str, arrays: int, stored: int, seconds: dict[str, Any]) -> list[Row]:
    """A row for each call and each of its ``TIMES``; ``stored`` counts the gradients once, whatever is read of them."""
    made = []
    for what, times in seconds.items():
        who, _, step = what.partition(", ")
        for column, time_of in enumerate(TIMES):
            low, middle, high = (1e3 * q for q in np.quantile(times[:, column], [0.25, 0.5, 0.75]))
            work = f"{step or 'everything'}, {time_of}"
            made.append(Row("gpu", work, data, who, arrays, stored, 1, len(times), low, middle, high))
    return made


def _shown(row: Row) -> tuple[str, ...]:
    return row.data, f"{row.who}: {row.work}", duration(row.ms_median), f"{row.gigabytes_per_second:.1f}"


def timed(torch: Any, these: Calls, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of each call, ``repeats`` times in turn, after some that do not count."""
    for call in these.values():
        for _ in range(WARM_UP):
            call()
    seconds = np.empty((repeats, len(these), len(TIMES)))
    for repeat in range(repeats):
        for column, call in enumerate(these.values()):
            seconds[repeat, column] = once(torch, call)
    return {name: seconds[:, column] for column, name in enumerate(these)}


def once(torch: Any, call: Callable[[], object]) -> tuple[float, float, float]:
    """See ``TIMES``. Behind a pause that is longer than the host's work, launches follow each other without a gap."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for pause in (PAUSE, 0):
        torch.cuda.synchronize()
        if pause:
            torch.cuda._sleep(pause)
        start.record()
        began = time.perf_counter()
        call()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
        spent.append(1e-3 * start.elapsed_time(end))
    return spent[0], spent[1], host


def calls(torch: Any, params: list[Any]) -> Calls:
    """What is timed, in turn. Who is not installed is left out."""
    grads = [param.grad for param in params]
    norm = gc.global_norm(grads)
    # Each clipped step gets a bound 1 % under the last, so that each has the same work to do.
    shrinking = (norm * 0.99**step for step in itertools.count(1))
    room = [torch.empty_like(grad) for grad in grads]
    made: Calls = {"copy, device to device": lambda: torch._foreach_copy_(room, grads)}
    for backend in ("cupy_raw", "numba_cuda"):
        if not registry.reasons_against(backend, Request(frozenset({"cuda:0"}), frozenset({"float32"}))):
            made |= _ours(backend, grads, norm, shrinking)
    foreach = _foreach(torch)
    made["torch foreach, unclipped"] = lambda: foreach(params, 2 * norm)
    made["torch foreach, clipped"] = lambda: foreach(params, next(shrinking))
    if apex := _apex():
        made["apex, unclipped"] = lambda: apex(params, 2 * norm)
        made["apex, clipped"] = lambda: apex(params, next(shrinking))
    if transformer_engine := _transformer_engine(torch, grads):
        made["transformer engine, unclipped"] = lambda: transformer_engine(2 * norm)
        made["transformer engine, clipped"] = lambda: transformer_engine(next(shrinking))
    if importlib.util.find_spec("cupy") and grads[0].dtype is not torch.bfloat16:
        import cupy

        views = [cupy.from_dlpack(grad) for grad in grads]
        made["cupy.linalg.norm of each, alone"] = lambda: [cupy.linalg.norm(view) for view in views]
    return made


def _ours(backend: str, grads: list[Any], norm: float, shrinking: Any) -> Calls:
    return {
        f"{backend}, unclipped": lambda: gc.clip_by_global_norm_(grads, 2 * norm, nonfinite="skip", backend=backend),
        f"{backend}, clipped": lambda: gc.clip_by_global_norm_(
            grads, next(shrinking), nonfinite="skip", backend=backend
        ),
        f"{backend}, unclipped, raise": lambda: gc.clip_by_global_norm_(grads, 2 * norm, backend=backend),
    }


def _foreach(torch: Any) -> Callable[[Sequence[Any], float], object]:
    return lambda params, bound: torch.nn.utils.clip_grad_norm_(params, bound, foreach=True)


def _apex() -> Callable[[Sequence[Any], float], object] | None:
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("amp_C") is None:
        return None
    clip: Any = importlib.import_module("apex.contrib.clip_grad").clip_grad_norm_
    return lambda params, bound: clip(params, bound)


def _transformer_engine(torch: Any, grads: list[Any]) -> Callable[[float], object] | None:
    """It has kernels and no clip: this is the order in which Megatron-Core calls them, without its all-reduces."""
    if importlib.util.find_spec("transformer_engine") is None:
        return None
    te: Any = importlib.import_module("transformer_engine.pytorch.optimizers")
    if not hasattr(te, "multi_tensor_scale_tensor"):
        return None
    apply: Any = te.multi_tensor_applier

    def clip(bound: float) -> None:
        overflow = torch.zeros(1, dtype=torch.int, device="cuda")
        norm, _ = apply(te.multi_tensor_l2norm, overflow, [grads], False)
        factor = (bound / (norm + 1e-6)).clamp_max_(1.0)
        apply(te.multi_tensor_scale_tensor, overflow, [grads, grads], factor)

    return clip


def _context(torch: Any) -> tuple[str, list[str]]:
    """The device with its driver; and the packages whose versions count."""
    properties = torch.cuda.get_device_properties(0)
    gpu = f"{properties.name}, {properties.multi_processor_count} SM, {properties.total_memory / 2**30:.0f} GiB"
    packages = ["torch", "apex", "transformer-engine", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x"]
    return f"{gpu}, driver {_driver()}, CUDA {torch.version.cuda}", packages


def _driver() -> str:
    """The driver's own version, or that of the CUDA which it brings."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
        return next(word for word in words if word[0].isdigit() and "." in word)
    except (OSError, StopIteration):
        return "unknown"


def _torch_with_device() -> Any:
    """PyTorch, or one sentence and the end."""
    if importlib.util.find_spec("torch") is None:
        _leave("PyTorch is not installed")
    import torch

    if not torch.cuda.is_available():
        _leave("PyTorch finds no CUDA device here")
    return torch


def _leave(why: str) -> None:
    print(f"This benchmark needs a CUDA device and PyTorch for CUDA, and {why}: nothing was timed.", file=sys.stderr)
    sys.exit(2)
