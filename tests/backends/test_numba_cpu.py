"""What the CPU backend promises beyond the conformance suite: threads, forks, caches, old CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import registry

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parents[2]
NORM = """
import numpy as np, gradclip_core as gc
rng = np.random.default_rng(0)
g = [rng.standard_normal(1_500_000).astype(t) for t in ("f2", "f4", "f8")]
info = gc.clip_by_global_norm_(g, 0.1, backend="numba_cpu")
print(info.norm.hex(), info.scale.hex(), hash(g[0].tobytes() + g[1].tobytes() + g[2].tobytes()))
"""


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter on this source tree, and return what it prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    fixed = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **fixed, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.jit
def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = {python(NORM, GRADCLIP_NUM_THREADS=str(n)) for n in (1, 2, 3, 7)}
    assert len(results) == 1


@pytest.mark.jit
def test_a_cpu_without_half_precision_conversions_gives_the_same_bits() -> None:
    """Numba compiles for a plain x86-64, where LLVM would call a function that is not there."""
    assert python(NORM, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="") == python(NORM)


@pytest.mark.jit
def test_an_unwritable_home_only_costs_the_cache(tmp_path: Path) -> None:
    """``cache=True`` raises at import where neither the package nor the home can be written."""
    import shutil

    site = tmp_path / "site"
    for package in (ROOT / "gradclip_core", ROOT / "backends" / "gradclip_backends"):
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    # Root may write anywhere, so the places for the cache are taken by files instead.
    (site / "gradclip_backends" / "numba_cpu" / "__pycache__").write_text("")
    home = tmp_path / "home"
    home.write_text("")
    environment = {"PYTHONPATH": str(site), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", NORM],
        env={**{k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}, **environment, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == python(NORM)


@pytest.mark.jit
def test_a_kernel_is_compiled_anew_when_another_file_of_the_room_has_changed(tmp_path: Path) -> None:
    """The sum is in kernels.py, what it is folded by in folds.py: Numba by itself looks at the first alone."""
    import shutil

    for package in (ROOT / "gradclip_core", ROOT / "backends" / "gradclip_backends"):
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import numpy as np, gradclip_core as gc; print(gc.global_norm(np.ones(1, np.float32), backend='numba_cpu'))"
    environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert python(code, **environment) == python(code, **environment) == "1.0"
    folds = tmp_path / "gradclip_backends" / "numba_cpu" / "folds.py"
    text = folds.read_text()
    whole = "return b.fadd(b.fadd(one[0], one[2]), b.fadd(one[1], one[3]))"
    assert whole in text
    folds.write_text(text.replace(whole, whole.replace("one[1]", "one[0]")))
    assert python(code, **environment) == repr(2**0.5)


@pytest.mark.jit
def test_threads_that_clip_at_once() -> None:
    arrays = [np.random.default_rng(i).standard_normal(700_000).astype(np.float32) for i in range(6)]
    expected = [gc.global_norm([a], backend="numpy") for a in arrays]
    found: dict[tuple[int, int], float] = {}

    def work(i: int) -> None:
        for repeat in range(10):
            found[i, repeat] = gc.global_norm([arrays[i]], backend="numba_cpu")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert all(norm == expected[i] for (i, _), norm in found.items())


FORK = """
import os, warnings
import numpy as np, gradclip_core as gc
warnings.simplefilter("ignore", DeprecationWarning)
g = [np.random.default_rng(0).standard_normal(3_000_000).astype("f4")]
before = gc.global_norm(g, backend="numba_cpu")
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if gc.global_norm(g, backend="numba_cpu") == before else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert gc.global_norm(g, backend="numba_cpu") == before
print(codes)
"""


@pytest.mark.jit
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_children_of_a_fork_clip_too() -> None:
    """The parent's pool has threads by then; the child inherits the object without them."""
    assert python(FORK, GRADCLIP_NUM_THREADS="2") == "[0, 0, 0]"


EXIT = """
import atexit
import numpy as np, gradclip_core as gc
g = [np.ones(3_000_000, "f4")]
gc.global_norm(g, backend="numba_cpu")
atexit.register(lambda: print(gc.global_norm(g, backend="numba_cpu")))
"""


@pytest.mark.jit
def test_clipping_while_the_interpreter_exits() -> None:
    assert float(python(EXIT, GRADCLIP_NUM_THREADS="2")) == float(np.sqrt(3_000_000.0))


def test_without_numba_numpy_serves_and_says_why() -> None:
    code = """
import sys
sys.modules["numba"] = None
import numpy as np, gradclip_core as gc
info = gc.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)
print(info.backend, info.passed_over["numba_cpu"])
try:
    gc.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0, backend="numba_cpu")
except gc.BackendError as error:
    print(error)
"""
    first, second = python(code).splitlines()
    assert first.startswith("numpy ['it cannot be imported")
    assert "pip install numba" in first
    assert "backend='numba_cpu': it cannot be imported" in second


def test_every_kernel_agrees_with_the_reference_as_plain_python() -> None:
    """The Python twins of the LLVM conversions, over the codes of both 16-bit types and both of 8 bits."""
    code = """
import numpy as np
from gradclip_backends.numba_cpu import elements
from gradclip_core.protocol import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16
from gradclip_core.reference import narrow, widen
sixteen = np.arange(0, 65536, 7, dtype=np.uint16)
eight = np.arange(256, dtype=np.uint8)
rng = np.random.default_rng(0)
with np.errstate(all="ignore"):
    values = np.concatenate([rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32),
                             widen(sixteen.view(np.float16), FLOAT16) * np.float32(1 + 2.0**-12)])
    for dtype, tag in ((FLOAT16, np.uint16(0)), (BFLOAT16, np.int16(0)),
                       (FLOAT8_E4M3FN, np.uint8(0)), (FLOAT8_E5M2, np.int8(0))):
        codes = sixteen if dtype.itemsize == 2 else eight
        stored = codes.view(tag.dtype)
        ours = np.array([elements.widen(x) for x in stored])
        assert np.array_equal(ours, widen(codes.view(dtype.view), dtype), equal_nan=True)
        ours = np.array([elements.narrow(x, tag) for x in values]).view(codes.dtype)
        theirs = narrow(values, dtype).view(codes.dtype)
        nan = np.isnan(values)
        assert (ours[~nan] == theirs[~nan]).all()
print("ok")
"""
    assert python(code, NUMBA_DISABLE_JIT="1") == "ok"


@pytest.mark.jit
@pytest.mark.parametrize("features", [{}, {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}])
def test_conversions_over_every_code(features: dict[str, str]) -> None:
    """All but the widest: all codes to float32, and float32 around every rounding boundary back."""
    code = """
import numba, numpy as np
from gradclip_backends.numba_cpu.elements import narrow, widen
from gradclip_core.protocol import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16
from gradclip_core import reference

@numba.njit
def widen_all(x):
    return [widen(v) for v in x]

@numba.njit
def narrow_all(x, tag):
    return [narrow(v, tag) for v in x]

for dtype, tag in ((FLOAT16, np.uint16(0)), (BFLOAT16, np.int16(0)),
                   (FLOAT8_E4M3FN, np.uint8(0)), (FLOAT8_E5M2, np.int8(0))):
    codes = np.arange(1 << 8 * dtype.itemsize).astype(f"u{dtype.itemsize}")
    wide = reference.widen(codes.view(dtype.view), dtype)
    assert np.array_equal(np.array(widen_all(codes.view(tag.dtype)), np.float32), wide, equal_nan=True)
    bits = wide.view(np.uint32)
    with np.errstate(all="ignore"):
        half = (wide[:-1] + wide[1:]) / np.float32(2)
        some = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
        around = [np.nextafter(half, np.float32(toward)) for toward in (0, 9e9)]
        values = np.concatenate([wide, half, some, *around])
        expected = reference.narrow(values, dtype).view(codes.dtype)
    found = np.array(narrow_all(values, tag)).astype(tag.dtype).view(codes.dtype)
    finite = ~np.isnan(values)
    assert (found[finite] == expected[finite]).all()
    assert np.isnan(reference.widen(found[~finite].view(dtype.view), dtype)).all()
print("ok")
"""
    assert python(code, **features) == "ok"


def test_the_backend_is_the_default_for_host_memory() -> None:
    info = gc.clip_by_global_norm([np.ones(3)], 1.0)[1]
    assert info.backend == registry.PREFERENCE["cpu"][0] == "numba_cpu"
    assert info.passed_over == {}
