"""CUDA's errors in CuPy's clothes: the classes, the numbers and the sentences are the real ones."""

from __future__ import annotations

_NAMES = {
    1: ("InvalidValue", "INVALID_VALUE", "invalid argument"),
    2: ("MemoryAllocation", "OUT_OF_MEMORY", "out of memory"),
    35: ("InsufficientDriver", "STUB_LIBRARY", "CUDA driver version is insufficient for CUDA runtime version"),
    100: ("NoDevice", "NO_DEVICE", "no CUDA-capable device is detected"),
    101: ("InvalidDevice", "INVALID_DEVICE", "invalid device ordinal"),
    400: ("InvalidResourceHandle", "INVALID_HANDLE", "invalid resource handle"),
    500: ("SymbolNotFound", "NOT_FOUND", "named symbol not found"),
    600: ("NotReady", "NOT_READY", "device not ready"),
    900: (
        "StreamCaptureUnsupported",
        "STREAM_CAPTURE_UNSUPPORTED",
        "operation not permitted when stream is capturing",
    ),
    901: (
        "StreamCaptureInvalidated",
        "STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture",
    ),
    902: (
        "StreamCaptureMerge",
        "STREAM_CAPTURE_MERGE",
        "operation would result in a merge of separate capture sequences",
    ),
    903: (
        "StreamCaptureUnmatched",
        "STREAM_CAPTURE_UNMATCHED",
        "capture was not ended in the same stream as it began",
    ),
    904: ("StreamCaptureUnjoined", "STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"),
    905: (
        "StreamCaptureIsolation",
        "STREAM_CAPTURE_ISOLATION",
        "dependency created on uncaptured work in another stream",
    ),
    906: (
        "StreamCaptureImplicit",
        "STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream",
    ),
    907: (
        "CapturedEvent",
        "CAPTURED_EVENT",
        "operation not permitted on an event last recorded in a capturing stream",
    ),
}


class CUDARuntimeError(RuntimeError):
    """What ``cupy.cuda.runtime`` raises."""

    def __init__(self, status: int) -> None:
        name, _, text = _NAMES[status]
        super().__init__(f"cudaError{name}: {text}")
        self.status = status


class CUDADriverError(RuntimeError):
    """What the driver API raises: launches, modules and their functions."""

    def __init__(self, status: int) -> None:
        _, name, text = _NAMES[status]
        super().__init__(f"CUDA_ERROR_{name}: {text}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """What CuPy's memory pool raises."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        bound = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{bound}).")


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """What NVRTC's refusal becomes."""

    def __init__(self, msg: str, source: str, name: str, options: tuple[str, ...], backend: str = "nvrtc") -> None:
        super().__init__(msg)
        self._msg = msg
        self.source = source
        self.name = name
        self.options = options
        self.backend = backend

    def __str__(self) -> str:
        return self._msg

    def get_message(self) -> str:
        """The compiler's log."""
        return self._msg
