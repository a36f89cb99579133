"""The lane that runs nothing: what NVRTC makes of a unit. Loads of the right kind, no spills, no contraction."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from tests.gpu.bugs.mutant import Bug
from tests.gpu.engine import CompileFault
from tests.gpu.standin import install
from tests.gpu.standin.python_engine import PythonEngine
from tests.gpu.toolkit import nvrtc

_ARCH = 90
_ENTRY = re.compile(r"^\.visible \.entry (\w+)\(.*?^\}", re.MULTILINE | re.DOTALL)
# A generic access asks the hardware which memory it is. Ours are all known.
_GENERIC = re.compile(r"^\s*(?:@\S+ )?(?:ld|st)\.(?!global|param|local|shared|const|volatile\.global)\S+", re.MULTILINE)
_WIDE = {kind: re.compile(rf"\b{kind}\.global\S*\.v[24]\.(?:[ub]32|[ub]64|f32|f64)") for kind in ("ld", "st")}
_NEEDS_WIDE = {"measure_squares": ("ld",), "measure_magnitudes": ("ld",), "apply": ("ld", "st")}


def complaints(bug: Bug | None, units: list[str]) -> Iterator[str]:
    """What is wrong with the units, compiled as CuPy compiles them."""
    with install(PythonEngine(), forget=["gradclip_backends.cupy_raw"]):
        sources = importlib.import_module("gradclip_backends.cupy_raw.sources")
        texts = {unit: sources.source(unit) for unit in units}
        options = (*sources.OPTIONS, "-ftz=true")
    for unit, text in texts.items():
        seeded = text if bug is None else bug.seed(text)
        ptx = nvrtc.compile(seeded, (*options, f"-arch=compute_{_ARCH}"), "ptx")[0].decode()
        for entry in _ENTRY.finditer(ptx):
            yield from _of_kernel(entry[1], entry[0])
        strict = ("--ptxas-options=--warn-on-spills", "--ptxas-options=--warning-as-error")
        try:
            nvrtc.compile(seeded, (*options, f"-arch=sm_{_ARCH}", *strict), "cubin")
        except CompileFault as fault:
            yield f"{unit} does not assemble: {fault}"


def _of_kernel(name: str, ptx: str) -> Iterator[str]:
    generic = _GENERIC.findall(ptx)
    if generic:
        yield f"{name} has {len(generic)} generic accesses, the first: {generic[0].strip()}"
    for kind in _NEEDS_WIDE.get(name.rpartition("_")[0], ()):
        if not _WIDE[kind].search(ptx):
            yield f"{name} has no 16-byte {kind}.global"
