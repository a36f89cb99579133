"""Machines that cannot serve: no driver, no device, no memory, no compiler, and the child of a fork."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import contents, cp, on_device, some
from tests.gpu.cupy.lanes import forgotten, on
from tests.gpu.cupy.refusing import Elsewhere, large, refuses
from tests.gpu.standin import Machine
from tests.refusals import check_sentence

# ---- the machine -------------------------------------------------------------------------------------


def no_driver(standin: Machine) -> None:
    standin.faults.no_driver = True


def old_driver(standin: Machine) -> None:
    # As CUDA says it: the driver is older than the runtime.
    standin.faults.no_driver, standin.faults.driver_version = True, 11040


def no_device(standin: Machine) -> None:
    standin.faults.no_device = True


MACHINES: dict[str, tuple[Callable[[Machine], None], str]] = {
    "no driver": (no_driver, "there is no NVIDIA driver, or one too old for CUDA 13, which this CuPy is built for"),
    "an old driver": (old_driver, "there is no NVIDIA driver, or one too old for CUDA 13"),
    "no device": (no_device, "CUDA finds no device: there is none, or CUDA_VISIBLE_DEVICES hides it"),
}


@pytest.mark.parametrize("named", [None, "cupy_raw"])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_without_cuda(standin: Machine, machine: str, named: str | None) -> None:
    """Every backend that was looked at, with its reasons; where one was named, its own."""
    breaks, seen = MACHINES[machine]
    grads = Elsewhere(large()["w"])
    breaks(standin)
    with pytest.raises(gc.GradClipError) as caught:
        gc.clip_by_global_norm([grads], 1.0, backend=named)
    if named:
        check_sentence(caught.value, gc.BackendError, "backend='cupy_raw'", seen, "Leave backend=None")
    else:
        check_sentence(caught.value, gc.BackendError, "arrays on cuda:0", f"cupy_raw: {seen}", "`gradclip info`")
        assert "; numba_cuda: " in caught.value.seen
        assert "or pass arrays in host memory" in caught.value.cure


def test_no_visible_device(standin: Machine) -> None:
    grads = Elsewhere(large()["w"])
    standin.devices = 0
    with pytest.raises(gc.BackendError, match="cupy_raw: there is no CUDA device on this machine"):
        gc.clip_by_global_norm([grads], 1.0)


def test_a_device_that_is_not_there(standin: Machine) -> None:
    grads = Elsewhere(large()["w"])
    grads.x.data.mem.device_id = 7
    with pytest.raises(gc.BackendError, match="there is no cuda:7: 2 devices are visible"):
        gc.clip_by_global_norm([grads], 1.0)


def test_without_cupy() -> None:
    """What is served by nobody names both packages."""
    with on("cpu-forward"):
        grads = Elsewhere(large()["w"])
        # As if the import of CuPy had failed.
        sys.modules["cupy"], kept = None, sys.modules["cupy"]  # type: ignore[assignment]
        try:
            with forgotten(), pytest.raises(gc.BackendError, match="cupy_raw: it cannot be imported") as caught:
                gc.clip_by_global_norm([grads], 1.0)
        finally:
            sys.modules["cupy"] = kept
    assert "pip install 'gradclip-core[cuda13]'" in str(caught.value)


RULES: dict[str, Callable[[], Rule]] = {
    "global": lambda: gc.GlobalNorm(1.0),
    "unit": lambda: gc.UnitNorm(on_device(some(1)), axis="all_but_last"),
    "value": lambda: gc.Value(0.1),
    "chain": lambda: gc.Chain(gc.Value(1.0), gc.GlobalNorm(1.0)),
}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_out_of_memory_at_every_allocation(rule: str, in_place: bool) -> None:
    """Each in turn: an error of ours, untouched gradients, and a call that works when there is memory again."""
    failed = 0
    with on("cpu-forward") as standin:
        expected, _ = gc.clip(some(scale=9.0), _reference(rule), backend="numpy")
        for turn in range(1, 40):
            grads, asked = large(), RULES[rule]()
            before = contents(grads)
            with cp().cuda.Stream(non_blocking=True):  # a workspace that is not there yet
                standin.faults.out_of_memory_at = turn
                try:
                    made = gc.clip_(grads, asked) if in_place else gc.clip(grads, asked)[0]
                except gc.GradClipError as error:
                    failed += 1
                    seen, cure = "is out of memory (Out of memory allocating", "Free memory on the device"
                    check_sentence(error, gc.BackendError, "allocating", seen, cure)
                    assert contents(grads) == before, f"written before allocation {turn} failed"
                    made = None
                finally:
                    standin.faults.out_of_memory_at = None
                if made is not None:
                    break
                result = gc.clip(grads, asked)[0]
                assert contents(result) == contents(expected)
    assert failed >= {"global": 3, "unit": 5, "value": 3, "chain": 3}[rule] + (0 if in_place else 3)


def _reference(rule: str) -> Rule:
    return gc.UnitNorm(some(1), axis="all_but_last") if rule == "unit" else RULES[rule]()


@pytest.mark.parametrize("where", ["in place", "new", "plan"])
def test_a_kernel_that_does_not_compile(standin: Machine, where: str) -> None:
    grads = large()
    standin.faults.compile_log = 'measure.cu(12): error: identifier "oops" is undefined\n1 error detected'
    call: Any = {"in place": gc.clip_by_global_norm_, "new": gc.clip_by_global_norm}.get(where)
    seen = 'the kernel does not compile (measure.cu(12): error: identifier "oops" is undefined)'
    with refuses(grads, gc.BackendError, "cupy_raw, compiling measure.cu for cuda:0", seen, "backend='numba_cuda'"):
        gc.plan(grads, gc.GlobalNorm(1.0)) if call is None else call(grads, 1.0)
    assert not [name for name in standin.log.kernels() if not name.startswith("cupy_")], "nothing was launched"
    standin.faults.compile_log = None
    assert gc.clip_by_global_norm_(grads, 1.0).clipped


# ---- forks -------------------------------------------------------------------------------------------


def in_a_child(call: Callable[[], str]) -> str:
    """What a forked process has to say."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests; the child touches none
        child = os.fork()
    if child == 0:
        try:
            said = call()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process(standin: Machine) -> None:
    grads = large()
    gc.clip_by_global_norm_(grads, 1e9)
    said = in_a_child(lambda: str(gc.clip_by_global_norm_(grads, 1.0)))
    assert said.startswith("BackendError: arrays on cuda:0: cupy_raw: CUDA does not survive a fork, and this process")
    assert "spawn it" in said
    said = in_a_child(lambda: str(gc.clip_by_global_norm_(grads, 1.0, backend="cupy_raw")))
    assert said.startswith("BackendError: backend='cupy_raw': CUDA does not survive a fork")
    host = some()
    assert in_a_child(lambda: str(gc.clip_by_global_norm_(host, 1.0).clipped)) == "True"
    assert gc.clip_by_global_norm_(grads, 1.0).clipped
