"""What a clip on a device costs the host: our Python, on CuPy's arrays, with a device that does nothing.

Needs CuPy, and no GPU. The arrays are CuPy's own, over addresses that nobody reads; the driver returns at once. So
neither CuPy's launches nor its question for the current stream are in the figures: they are CUDA's, and come on top.
"""

from __future__ import annotations

import cProfile
import itertools
import pstats
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gradclip_backends.gpu.backend import GpuBackend
from gradclip_backends.gpu.driver import Allocation, Bytes, Queue
from gradclip_backends.gpu.layout import INLINE_ROWS

import gradclip_core as gc
from benchmarks.harness import append
from benchmarks.shapes import gpt2
from gradclip_core import registry
from gradclip_core.cli.bench_timing import OURS, Row, duration, timed

HEADLINE = "no GPU: launches do nothing; this is the host's part alone"
REPEATS = 101
SHOWN = "{:>5} arrays  {:30} {:>8} a call {:>8} an array"
_FIRST_ADDRESS = 1 << 40
_NAME = "no_device"


class _Memory:
    """See ``Allocation``: an address, and nothing there."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer


class NoDevice:
    """See ``Driver``: takes what CuPy's driver takes, and does nothing."""

    name = _NAME
    inline_rows = INLINE_ROWS

    def __init__(self) -> None:
        self._next = _FIRST_ADDRESS // 2

    def unavailable(self) -> list[str]:
        """See ``Driver.unavailable``."""
        return []

    def devices(self) -> int:
        """See ``Driver.devices``."""
        return 1

    def processors(self, device: int) -> int:
        """See ``Driver.processors``."""
        return 132

    def prepare(self, device: int, kernels: Sequence[str]) -> None:
        """See ``Driver.prepare``."""

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        """See ``Driver.launch``."""

    def allocate(self, queue: Queue, size: int) -> Allocation:
        """See ``Driver.allocate``."""
        self._next += -(-size // 256) * 256
        return _Memory(self._next)

    def clear(self, queue: Queue, pointer: int, size: int) -> None:
        """See ``Driver.clear``."""

    def upload(self, queue: Queue, pointer: int, data: Bytes) -> None:
        """See ``Driver.upload``."""

    def read(self, queue: Queue, pointer: int, size: int) -> Bytes:
        """See ``Driver.read``. All zeros: a norm of 0, and nothing to do."""
        return np.zeros(size, np.uint8)

    def capturing(self, queue: Queue) -> bool:
        """See ``Driver.capturing``."""
        return False

    def order(self, first: Queue, then: Queue) -> None:
        """See ``Driver.order``."""

    def mark(self, queue: Queue) -> Any:
        """See ``Driver.mark``."""

    def passed(self, mark: Any) -> bool:
        """See ``Driver.passed``."""
        return True

    def device_of(self, pointer: int) -> int | None:
        """See ``Driver.device_of``."""
        return 0


BACKEND = GpuBackend(_NAME, NoDevice())


class _DefaultStream:
    """What CuPy would answer, if it could ask CUDA."""

    ptr = 0


def arrays(cupy: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """CuPy arrays of float32, one behind the other, without any memory."""
    made, address = [], _FIRST_ADDRESS
    for shape in shapes:
        nbytes = 4 * int(np.prod(shape))
        memory = cupy.cuda.UnownedMemory(address, nbytes, None, 0)
        made.append(cupy.ndarray(shape, np.float32, cupy.cuda.MemoryPointer(memory, 0)))
        address += -(-nbytes // 256) * 256
    return made


def calls(cupy: Any, shapes: Sequence[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    """What is timed, in turn: what a training loop calls, and what it may do besides."""
    grads = arrays(cupy, shapes)
    named = {f"layer.{i}": x for i, x in enumerate(grads)}
    places = itertools.cycle([grads, arrays(cupy, [*shapes, (8,)])[1:]])
    how: dict[str, Any] = {"nonfinite": "skip", "backend": _NAME}
    return {
        "global norm, a list": lambda: gc.clip_by_global_norm_(grads, 1.0, **how),
        "global norm, a dict": lambda: gc.clip_by_global_norm_(named, 1.0, **how),
        "global norm, moved each time": lambda: gc.clip_by_global_norm_(next(places), 1.0, **how),
        "global norm, info.norm read": lambda: gc.clip_by_global_norm_(grads, 1.0, **how).norm,
        "each array's norm": lambda: gc.clip_by_norm_(grads, 1.0, **how),
        "by value": lambda: gc.clip_by_value_(grads, 1.0, **how),
    }


def run() -> None:
    """Time and print; with ``--save`` on the command line, append to ``results/gpu_host.csv``."""
    cupy = _cupy()
    print(HEADLINE)
    registry.register(_NAME, "benchmarks.bench_gpu_host:BACKEND", cure="run python -m benchmarks gpu-host")
    rows = []
    # No mock's return_value: calling a mock takes ten times as long as CuPy takes for an answer.
    with mock.patch.object(cupy.cuda, "get_current_stream", lambda device=-1: _DefaultStream):  # noqa: PT008
        for count, shapes in ((148, gpt2()), (1000, [(64,)] * 1000)):
            these = calls(cupy, shapes)
            for what, seconds in timed(these, REPEATS).items():
                low, middle, high = (1e3 * q for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
                rows.append(Row("gpu_host", what, f"{count} arrays", OURS, count, 0, 1, REPEATS, low, middle, high))
                print(SHOWN.format(count, what, duration(middle), duration(middle / count)))
            print(f"where the first of them spends it, by cProfile, which itself slows calls:\n{spent(these)}")
    if "--save" in sys.argv[1:]:
        print(f"appended to {append('gpu_host', rows, packages=('cupy-cuda12x', 'cupy-cuda13x'))}")
    else:
        print("not written; --save appends these figures to benchmarks/results/gpu_host.csv")


def spent(these: dict[str, Callable[[], object]], repeats: int = 30, lines: int = 12) -> str:
    """Own time by file, in percent: a profile of the first call."""
    call = next(iter(these.values()))
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        call()
    profile.disable()
    times: Counter[str] = Counter()
    stats: Any = pstats.Stats(profile)
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():
        times[f"{Path(file).parent.name}/{Path(file).name}" if file.endswith(".py") else name] += own
    total = times.total()
    return "\n".join(f"{100 * own / total:6.1f} %  {where}" for where, own in times.most_common(lines))


def _cupy() -> Any:
    try:
        import cupy
    except Exception as error:  # CuPy raises more than ImportError where its folders cannot be written
        print(f"This benchmark takes CuPy's arrays, and CuPy cannot be imported here: {error}.", file=sys.stderr)
        sys.exit(2)
    return cupy
