"""Putting the stand-in in CuPy's place, and taking it out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from tests.gpu.engine import Engine
from tests.gpu.standin import creation, devices, errors, pointers, raw, runtime
from tests.gpu.standin.array import ndarray
from tests.gpu.standin.machine import Machine, plug_in, unplug

VERSION = "14.2.0"
"""The CuPy whose surface this is."""

_DTYPES = "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_REAL = ("cupy", "cupyx", "cupy_backends")
"""``cupyx`` too: a lazy module of the real one, which ``inspect`` touches, would import itself from the stand-in."""


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name, "The stand-in for CuPy without a GPU.")
    vars(module).update(names)
    return module


def _public(module: ModuleType) -> dict[str, Any]:
    """What a file here defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
        if not isinstance(value, ModuleType) and name not in ("annotations", "Shape", "attributes", "HOST")
    }


def build() -> dict[str, ModuleType]:
    """Fresh modules by their names in ``sys.modules``."""
    run = _module("cupy.cuda.runtime", **_public(runtime), CUDARuntimeError=errors.CUDARuntimeError)
    driver = _module("cupy_backends.cuda.api.driver", CUDADriverError=errors.CUDADriverError)
    compiler = _module("cupy.cuda.compiler", CompileException=errors.CompileException)
    memory_names = _public(pointers)
    memory_names.pop("PinnedMemoryPointer"), memory_names.pop("PinnedMemory")
    pinned = {name: memory_names.pop(name) for name in ("alloc_pinned_memory",)}
    memory = _module("cupy.cuda.memory", **memory_names, OutOfMemoryError=errors.OutOfMemoryError)
    pinned |= {"PinnedMemoryPointer": pointers.PinnedMemoryPointer, "PinnedMemory": pointers.PinnedMemory}
    stream_names = _public(devices)
    device_names = {name: stream_names.pop(name) for name in ("Device", "get_device_id")}
    graph_names = {"Graph": stream_names.pop("Graph")}
    available = {"is_available": stream_names.pop("is_available")}
    parts = {
        "runtime": run,
        "driver": driver,
        "compiler": compiler,
        "memory": memory,
        "pinned_memory": _module("cupy.cuda.pinned_memory", **pinned),
        "stream": _module("cupy.cuda.stream", **stream_names),
        "device": _module("cupy.cuda.device", **device_names),
        "graph": _module("cupy.cuda.graph", **graph_names),
    }
    cuda = _module(
        "cupy.cuda",
        **{name: value for name, value in memory_names.items() if name != "alloc"},
        **pinned,
        **stream_names,
        **device_names,
        **graph_names,
        **available,
        **parts,
        alloc=pointers.alloc,
    )
    cupy = _module(
        "cupy",
        __version__=VERSION,
        ndarray=ndarray,
        RawModule=raw.RawModule,
        RawKernel=raw.RawKernel,
        cuda=cuda,
        **_public(creation),
        **{name: getattr(np, name) for name in (*_DTYPES.split(), "dtype", "inf", "nan")},
    )
    made = {"cupy": cupy, "cupy.cuda": cuda, **{f"cupy.cuda.{name}": module for name, module in parts.items()}}
    made |= {"cupy_backends.cuda.api.runtime": run, "cupy_backends.cuda.api.driver": driver}
    for package in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api"):
        made[package] = _module(package)
    for name in ("cupy", "cupy.cuda", "cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api"):
        made[name].__path__ = []  # a package; nothing that is not here can be imported from it
    return made


@contextmanager
def install(
    engine: Engine, devices: int = 2, asynchronous: bool = False, forget: Sequence[str] = ()
) -> Iterator[Machine]:
    """Let ``import cupy`` find the stand-in, and give out the machine behind it: its log, faults and memory.

    ``asynchronous``: work runs only when somebody waits for it. ``forget``: prefixes of the names of modules that
    import CuPy; they are imported afresh inside, and again afterwards.
    """
    made, machine = build(), Machine(engine, devices, asynchronous)
    prefixes = (*_REAL, *forget)

    def ours(name: str) -> bool:
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)

    kept = {name: module for name, module in sys.modules.items() if ours(name)}
    # A submodule is an attribute of its package too, by which ``from package import submodule`` would find it.
    parents = {name: sys.modules.get(name.rpartition(".")[0]) for name in forget if "." in name}
    attributes = {name: vars(parent).pop(name.rpartition(".")[2], None) for name, parent in parents.items() if parent}
    for name in kept:
        del sys.modules[name]
    sys.modules.update(made)
    plug_in(machine)
    pointers.set_allocator(None)
    try:
        yield machine
        machine.reap()
        machine.memory.check(None, "something")
    finally:
        pointers.set_allocator(None)
        unplug(machine)
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, module in attributes.items():
            parent, child = parents[name], name.rpartition(".")[2]
            vars(parent).pop(child, None)
            if module is not None:
                setattr(parent, child, module)
