"""``gradclip info``: what is installed, and which backend can serve, or why not."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from typing import Any

from rich.text import Text

import gradclip_core
from gradclip_core import protocol, registry
from gradclip_core.cli import EXTRA
from gradclip_core.cli.console import say, table

_FRAMEWORKS = (
    "cupy", "cupy-cuda12x", "cupy-cuda13x", "jax", "mlx", "numba-cuda", "paddlepaddle", "tensorflow", "torch",
)  # fmt: skip
_FEATURES = ("avx2", "avx512f", "f16c", "fma", "neon", "sve")


def command() -> None:
    """Show versions, backends and what keeps them, and the machine."""
    table("Versions", ("package", "version"), (), _versions())
    say()
    table("Backends", ("backend", "memory", "serves", "why not"), (), _backends())
    say()
    table("Machine", ("", ""), (), _machine())


def request(name: str) -> protocol.Request:
    """What a backend would be asked for: what every one serves, in the memory that it is preferred for.

    In the host's, where it serves that by name and the other is not on this machine.
    """
    devices = {device for device, names in registry.PREFERENCE.items() if name in names}
    preferred, host = (
        protocol.Request(frozenset(where), frozenset(protocol.BASE_DTYPES)) for where in (devices or {"cpu"}, {"cpu"})
    )
    if registry.reasons_against(name, preferred) and not registry.reasons_against(name, host):
        return host
    return preferred


def _versions() -> list[tuple[str, str]]:
    rows = [("gradclip-core", gradclip_core.__version__), ("python", platform.python_version())]
    for package in ("numpy", "numba", "llvmlite", *EXTRA):
        rows.append((package, _version(package) or "not installed"))
    # Asked of their metadata: importing a framework takes seconds, and nothing here needs one.
    rows += [(package, version) for package in _FRAMEWORKS if (version := _version(package))]
    return rows


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backends() -> list[tuple[str, str, Text, str]]:
    rows = []
    for name in sorted(registry.BACKENDS):
        asked = request(name)
        reasons = registry.reasons_against(name, asked)
        verdict = Text("no", "red") if reasons else Text("yes", "green")
        rows.append((name, ", ".join(sorted(asked.devices)), verdict, "; ".join(reasons)))
    return rows


def _machine() -> list[tuple[str, str]]:
    rows = [("platform", platform.platform()), ("processor", platform.machine())]
    if features := _features():
        rows.append(("features", features))
    if threads := _threads():
        rows.append(("threads", threads))
    return [*rows, ("byte order", sys.byteorder), ("preference", _preferences())]


def _preferences() -> str:
    return "; ".join(f"{device}: {', '.join(names)}" for device, names in sorted(registry.PREFERENCE.items()))


def _features() -> str:
    """Those that the kernels gain by, from LLVM, which alone knows them on every platform."""
    llvm = _optional("llvmlite.binding")
    if llvm is None:
        return ""
    try:
        found = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this processor's features
        return ""
    return ", ".join(f"{name} {'yes' if found[name] else 'no'}" for name in _FEATURES if name in found)


def _threads() -> str:
    pool = _optional("gradclip_backends.numba_cpu.pool")
    return "" if pool is None else f"{pool.threads()} (set GRADCLIP_NUM_THREADS to change)"


def _optional(module: str) -> Any:
    """By address: the core names no backend, and a broken install is no reason to show nothing."""
    try:
        return importlib.import_module(module)
    except Exception:
        return None
