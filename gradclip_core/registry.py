"""The backends: a sorted table of strings, each with the cure beside it.

Nothing here is imported before a call needs it. A backend that cannot serve says why, and the
call records who was passed over.
"""

from __future__ import annotations

import importlib
from typing import cast

from gradclip_core.errors import BackendError
from gradclip_core.protocol import Backend, Request

BACKENDS: dict[str, tuple[str, str]] = {
    "array_api": ("gradclip_backends.array_api:BACKEND", "pip install 'gradclip-core[array-api]'"),
    "cupy_raw": ("gradclip_backends.cupy_raw:BACKEND", "pip install 'gradclip-core[cuda13]'"),
    "numba_cpu": ("gradclip_backends.numba_cpu:BACKEND", "pip install numba"),
    "numba_cuda": ("gradclip_backends.numba_cuda:BACKEND", "pip install 'numba-cuda[cu13]'"),
    "numpy": ("gradclip_core.reference:BACKEND", "pip install numpy"),
}
# Who serves which memory, best first. A device that is not here has no backend yet.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("numba_cpu", "numpy"),
    "cuda": ("cupy_raw", "numba_cuda", "array_api"),
    # Without memory, or on a device that the array's own framework alone can reach.
    "gpu": ("array_api",),
    "mps": ("array_api",),
    "symbolic": ("array_api",),
    "tpu": ("array_api",),
    "xpu": ("array_api",),
}

_PROTOCOL = ("name", "not_supported_reasons", "measure", "apply")
_loaded: dict[str, Backend] = {}
_failed: dict[str, str] = {}


def register(name: str, address: str, cure: str, devices: tuple[str, ...] = ()) -> None:
    """Add a backend by its address, ``"package.module:OBJECT"``.

    It is served by name, and, for each of ``devices``, chosen before all that are there already.
    """
    BACKENDS[name] = (address, cure)
    _loaded.pop(name, None)
    _failed.pop(name, None)
    for device in devices:
        PREFERENCE[device] = (name, *(n for n in PREFERENCE.get(device, ()) if n != name))


def load(name: str) -> Backend:
    """Import a backend, or say what is missing and how to get it."""
    if name in _loaded:
        return _loaded[name]
    if name not in BACKENDS:
        raise BackendError(f"backend={name!r}", "there is no such backend", f"There are {', '.join(sorted(BACKENDS))}")
    address, cure = BACKENDS[name]
    if name not in _failed:
        module, _, attribute = address.partition(":")
        try:
            backend = cast(Backend, getattr(importlib.import_module(module), attribute))
        except Exception as error:  # a broken install fails in any way it likes
            _failed[name] = f"{type(error).__name__}: {error}"
        else:
            if missing := [part for part in _PROTOCOL if not hasattr(backend, part)]:
                seen = f"{address} has no {', '.join(missing)}, so it is no backend"
                raise BackendError(f"backend={name!r}", seen, "See gradclip_core.protocol.Backend")
            _loaded[name] = backend
            return backend
    raise BackendError(f"backend={name!r}", f"it cannot be imported ({_failed[name]})", f"Try: {cure}")


def loaded(name: str) -> Backend | None:
    """A backend, if a call has loaded it."""
    return _loaded.get(name)


def reasons_against(name: str, request: Request) -> list[str]:
    """Why a backend cannot serve a request; empty where it can."""
    try:
        backend = load(name)
    except BackendError as error:
        return [f"{error.seen}. {error.cure}"]
    return backend.not_supported_reasons(request)


def select(name: str | None, request: Request) -> tuple[Backend, dict[str, list[str]]]:
    """The backend that serves, and those that were passed over with their reasons.

    A backend that was named serves or raises; there is no fallback in silence.
    """
    if name is not None:
        backend = load(name)
        if reasons := backend.not_supported_reasons(request):
            raise BackendError(f"backend={name!r}", "; ".join(reasons), "Leave backend=None to have one chosen")
        return backend, {}
    if len(request.devices) > 1:
        raise BackendError(
            f"arrays on {', '.join(sorted(request.devices))}",
            "one call works on one device",
            "Move them to one, or make a call for each device",
        )
    passed: dict[str, list[str]] = {}
    device = min(request.devices) if request.devices else "cpu"
    for candidate in PREFERENCE.get(device, ()) or PREFERENCE.get(device.partition(":")[0], ()):
        reasons = reasons_against(candidate, request)
        if not reasons:
            return load(candidate), passed
        passed[candidate] = reasons
    seen = "; ".join(f"{who}: {', '.join(why)}" for who, why in passed.items())
    devices = ", ".join(sorted(request.devices))
    raise BackendError(
        f"arrays on {devices}",
        seen or f"no backend serves memory on {devices}",
        _cure(device, passed),
    )


def _cure(device: str, passed: dict[str, list[str]]) -> str:
    if passed and device != "cpu":
        return "Make one of them serve (`gradclip info` shows them all), or pass arrays in host memory"
    return "Pass arrays that are in host memory or on a CUDA device, or register a backend for the device"
