"""The processor's floating-point mode: subnormals are kept, also where the caller flushes them.

``torch.set_flush_denormal(True)``, or a library built with ``-ffast-math``, makes a thread treat
subnormal numbers as zeros. Norms would then depend on the thread that computes them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gradclip_core.errors import BackendError
from gradclip_core.tracing import dynamo_is_loaded, kept_eager

Function = TypeVar("Function", bound=Callable[..., Any])

_smallest = 5e-324
_ENVIRONMENT_BYTES = 256  # fenv_t is 32 bytes on x86-64 and 8 on AArch64
_DEFAULT = ctypes.c_void_p(-1)  # FE_DFL_ENV of glibc and musl


def flushes_subnormals() -> bool:
    """Whether this thread takes the smallest float64 for zero. Costs some 30 ns."""
    return _smallest * 1.0 == 0.0


def ieee_arithmetic(function: Function) -> Function:
    """Run ``function`` with IEEE arithmetic; the thread's mode is put back afterwards.

    Infinities and NaNs are data here, so NumPy is told not to warn of them. ``torch.compile``
    would trace through and swap NumPy for torch, so it is kept out: it sees an operator
    (``arrays/torch_compile.py``) in place of what calls this.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if not flushes_subnormals():
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        saved = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
        libm = _libm()
        libm.fegetenv(saved)
        try:
            libm.fesetenv(_DEFAULT)
            if flushes_subnormals():
                raise _refusal("and the C library does not turn that off")
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        finally:
            libm.fesetenv(saved)

    untraced: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def enter(*args: Any, **kwargs: Any) -> Any:
        if not dynamo_is_loaded():
            return run(*args, **kwargs)
        if not untraced:
            untraced.append(kept_eager(run, "gradclip_core runs eagerly here, at a graph break"))
        return untraced[0](*args, **kwargs)

    enter._torchdynamo_disable = True  # type: ignore[attr-defined]  # what torch.compiler.disable leaves
    return enter  # type: ignore[return-value]


def _libm() -> Any:
    for name in ("libm.so.6", None):
        try:
            libm = ctypes.CDLL(name)
            libm.fegetenv, libm.fesetenv  # noqa: B018  # a missing symbol is an AttributeError
        except (OSError, AttributeError):
            continue
        return libm
    raise _refusal("and there is no fesetenv to turn that off with")


def _refusal(what: str) -> BackendError:
    return BackendError(
        "this thread's floating-point mode",
        f"it flushes subnormal numbers to zero, {what}",
        "Call torch.set_flush_denormal(False), or clip in a thread that was started before",
    )
