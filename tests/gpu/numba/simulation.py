"""The kernels as Python, in Numba's simulator: ``NUMBA_ENABLE_CUDASIM=1 python -m tests.gpu.numba.simulation``.

A process of its own, because Numba reads that variable when it is imported. Slow: a few small arrays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradclip_backends.gpu.backend import GpuBackend
from gradclip_backends.gpu.driver import Queue
from gradclip_backends.numba_cuda.structs import argument

from gradclip_core import testing
from tests.gpu.numba import warps
from tests.gpu.numba.decisions import questions
from tests.gpu.numba.expected import different, expected
from tests.gpu.numba.fake import FakeMemory, HostDriver

THREADS = 64
CHECKS = (
    *("measure-squares/float16/normal-4097", "measure-squares/float32/normal-4097"),
    *("measure-squares/bfloat16/lost-in-order", "measure-squares/float64/normal-4097"),
    *("measure-magnitudes/float64/normal-257", "measure-powers/float32/normal-17"),
    *("measure-sanitize/float16/inf-at-150-of-300", "measure-nonfinite/bfloat16/nan-at-0-of-300"),
    *("measure-carries/float64/normal-257-power-2", "measure-exponents/float64/-1073-power-2"),
    *("measure-bounds/float32/-0.5..1.5", "measure-squares/float32/normal-4096", "apply-scale/bfloat16/0.333-halfway"),
    *("apply-scale/float16/1.53e-05-subnormals", "apply-scale-sanitize/float32/nan-at-0-of-300"),
    *("apply-clamp/float64/-0.5..0.5-normal-4097", "apply-zero/float16/normal-3", "apply-leave/float64/normal-3"),
)
DECISIONS = range(3, 270, 21)


class SimulatedDriver(HostDriver):
    """Runs kernels as Python, with blocks of two warps."""

    def launch(self, queue: Queue, kernel: str, grid: int, args: Sequence[Any]) -> None:
        from gradclip_backends.numba_cuda.kernels import KERNELS

        self.launched.append((kernel, grid))
        KERNELS[kernel].function[grid, THREADS](*(argument(arg) for arg in args))


def tasks() -> Iterator[tuple[str, Callable[[], None]]]:
    """What is asked of the simulator, each with its name."""
    driver = SimulatedDriver(processors=1)
    backend, memory = GpuBackend("numba_cuda", driver), FakeMemory(driver)
    found = {check.name: check.run for check in testing.checks(backend, memory=memory, thorough=False)}
    for name in CHECKS:
        yield name, found[name]
    for number, question in enumerate(questions(memory)):
        if number in DECISIONS:
            yield question.name, lambda question=question: _decide(backend, question)  # type: ignore[misc]


def _decide(backend: GpuBackend, question: Any) -> None:
    answer = backend.decide(question.buffers, question.case).read()
    tolerance = 1e-9 if question.case.ord == 3 else 0.0
    if wrong := different(answer.actions, expected(question.buffers, question.case), tolerance):
        raise AssertionError("; ".join(wrong))


def main() -> int:
    """Run all, and say what failed."""
    from numba import config

    assert config.ENABLE_CUDASIM, "set NUMBA_ENABLE_CUDASIM=1"
    warps.install()
    failed = done = 0
    for name, run in tasks():
        began = time.monotonic()
        try:
            run()
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}")
        done += 1
        print(f"{name}: {time.monotonic() - began:.1f} s")
    print(f"{done} done, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
