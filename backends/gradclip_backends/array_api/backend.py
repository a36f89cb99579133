"""The backend: the protocol's two passes, an array after the other."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradclip_backends.array_api.apply import write
from gradclip_backends.array_api.frameworks import ON_DEVICES, Framework, framework_of
from gradclip_backends.array_api.measure import FIELDS, measured
from gradclip_backends.array_api.operations import DEVICES, OPERATIONS
from gradclip_backends.array_api.rows import rows_of
from gradclip_core.errors import BackendError, GradClipError
from gradclip_core.protocol import (
    BASE_DTYPES,
    LEAVE,
    Actions,
    Buffer,
    FloatArray,
    Measurements,
    Request,
    What,
    segments,
)


class ArrayApiBackend:
    """Serves arrays through their own framework's operations: PyTorch's and CuPy's on CUDA devices, NumPy's.

    It has no kernels to compile, and needs ``array-api-compat`` alone. It is no ``DeviceBackend``:
    the host decides, so a call waits for the device once for each pass that it measures in, whatever
    the policy is, and cannot be captured into a CUDA graph. Every step is an operation of its own
    over temporary arrays, so memory is read and written several times where a kernel does it once.
    """

    name = "array_api"
    operations = OPERATIONS
    takes_arrays = True
    """On a device it is given arrays of any strides, see ``Buffer.order``."""

    # ---- whom it serves ------------------------------------------------------------------------

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Host memory, or one CUDA device's, of the storage types that every backend serves."""
        reasons = []
        if importlib.util.find_spec("array_api_compat") is None:
            reasons.append(
                "array-api-compat is not installed, which has the frameworks' operations by one name: "
                "pip install 'gradclip-core[array-api]'"
            )
        kinds = {device: device.partition(":")[0] for device in request.devices}
        if set(kinds.values()) & set(DEVICES):
            return _reasons_without_memory(request)
        if foreign := sorted(device for device, kind in kinds.items() if kind not in ("cpu", "cuda")):
            reasons.append(
                f"it computes in IEEE float64, in host memory and on CUDA devices, and these arrays are on "
                f"{', '.join(foreign)}"
            )
        if len(request.devices) > 1:
            reasons.append(f"a call works on one device, and these arrays are on {', '.join(sorted(request.devices))}")
        if unknown := sorted(request.dtypes - set(BASE_DTYPES)):
            reasons.append(f"it has no {', '.join(unknown)}")
        if sys.byteorder != "little":
            reasons.append("this machine is big-endian")
        if "cuda" in kinds.values():
            reasons += _reasons_on_cuda(request.frameworks)
        return reasons

    def memory_for_checks(self) -> Any:
        """A CUDA device's memory by PyTorch where there is one; None, the host's, otherwise."""
        if not _has_driver() or importlib.util.find_spec("torch") is None:
            return None
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return None
        from gradclip_backends.array_api.check_memory import TorchMemory

        return TorchMemory("cuda:0")

    # ---- the protocol's passes -----------------------------------------------------------------

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """See ``Backend.measure``. What was measured comes to the host in one transfer (one a framework)."""
        total = Measurements.empty(segments(buffers))
        found: dict[tuple[Framework, int], list[tuple[Buffer, int, Any]]] = {}
        with _failing_as("measuring", buffers):
            for buffer, first in _with_elements(buffers):
                array = self._array(buffer)
                framework = framework_of(array)
                with framework.guard(buffer):
                    numbers = measured(rows_of(framework, array, buffer), what, first)
                found.setdefault((framework, buffer.stream), []).append((buffer, first, numbers))
            for (framework, _), parts in found.items():
                with framework.guard(parts[0][0]):
                    matrices = [numbers for _, _, numbers in parts]
                    together = matrices[0] if len(matrices) == 1 else framework.xp.concat(matrices, axis=1)
                    _spread(framework.on_host(together), parts, total)
        return total

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """See ``Backend.apply``. What cannot be worked on is refused before anything is written."""
        with _failing_as("writing", buffers):
            work = []
            for (buffer, first), (sink, _) in zip(_with_elements(buffers), _with_elements(out), strict=True):
                in_place = sink.pointer == buffer.pointer
                if in_place and not (actions.op[first : first + buffer.rows] != LEAVE).any():
                    continue
                array = self._array(buffer)
                framework = framework_of(array)
                with framework.guard(buffer):
                    source = target = rows_of(framework, array, buffer)
                    if not in_place:
                        target = rows_of(framework, self._array(sink), sink, blank=True)
                work.append((source, target, first))
            for source, target, first in work:
                with source.framework.guard(source.buffer):
                    write(source, target, actions, first)

    # ---- where the arrays are ------------------------------------------------------------------

    def host_array(self, buffer: Buffer) -> Any:
        """Host memory as a ``(rows, length)`` array: NumPy's. Tests put another framework's in its place."""
        return buffer.as_numpy()

    def _array(self, buffer: Buffer) -> Any:
        if buffer.device == "cpu":
            return self.host_array(buffer)
        array = getattr(buffer.owner, "array", None)
        if array is None:
            seen = "its owner has no array to work through"
            raise BackendError(f"array_api, memory on {buffer.device}", seen, "Pass an array of PyTorch or CuPy")
        return array


def _with_elements(buffers: Sequence[Buffer]) -> Iterator[tuple[Buffer, int]]:
    """Those that have elements, and the place of their first segment among all."""
    first = 0
    for buffer in buffers:
        if buffer.rows * buffer.length:
            yield buffer, first
        first += buffer.rows


def _spread(numbers: FloatArray, parts: Sequence[tuple[Buffer, int, Any]], total: Measurements) -> None:
    """The columns of a matrix of ``FIELDS`` to the segments that they are of."""
    start = 0
    for buffer, first, _ in parts:
        here = numbers[:, start : start + buffer.rows]
        for field, values in zip(FIELDS, here, strict=True):
            getattr(total, field)[first : first + buffer.rows] = values
        start += buffer.rows


def _reasons_without_memory(request: Request) -> list[str]:
    if len(request.devices) > 1:
        return [f"a call works on one device, and these arrays are on {', '.join(sorted(request.devices))}"]
    (device,) = request.devices
    reasons = [
        reason for name in sorted(request.frameworks) for reason in OPERATIONS.not_supported_reasons(name, device)
    ]
    return list(dict.fromkeys(reasons))


def _reasons_on_cuda(frameworks: frozenset[str]) -> list[str]:
    reasons = []
    if others := sorted(frameworks - set(ON_DEVICES)):
        reasons.append(
            f"on a device it works through the arrays of {' and '.join(sorted(ON_DEVICES))}, which may be written and "
            f"have float64, and these are of {', '.join(others)}"
        )
    for name in sorted(frameworks & set(ON_DEVICES) & set(sys.modules)):
        reasons += [reason] if (reason := ON_DEVICES[name].unavailable()) else []
    # Arrays on a device prove that there is one. Without any, somebody asks what could be done here.
    if not frameworks and not _has_driver():
        reasons.append("there is no NVIDIA driver on this machine")
    return reasons


def _has_driver() -> bool:
    """Whether CUDA's driver library can be loaded. It is not started: that would not survive a fork."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@contextmanager
def _failing_as(what: str, buffers: Sequence[Buffer]) -> Iterator[None]:
    """What a framework raises, as an error of this library. NumPy is told that infinities and NaNs are data."""
    try:
        with np.errstate(all="ignore"):
            yield
    except GradClipError:
        raise
    except (RuntimeError, MemoryError) as error:  # PyTorch's and CuPy's are of these two
        where = buffers[0].device if buffers else "cpu"
        told = str(error).strip().partition("\n")[0]
        memory = isinstance(error, MemoryError) or "memory" in told
        cure = "Free memory there: this backend needs temporary arrays" if memory else _CURE
        seen = f"{type(error).__name__}: {told}" + ("; some arrays may have been written" if what == "writing" else "")
        raise BackendError(f"array_api, {what} on {where}", seen, cure) from error


_CURE = "An earlier kernel may have failed; and this backend waits for the device, so no stream may be capturing"
