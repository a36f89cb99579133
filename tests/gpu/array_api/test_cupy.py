"""CuPy's arrays on a device: where they are found, their device and stream, and their arithmetic by integers.

The stand-in's arrays have none of CuPy's own operations that are needed here. NumPy's take their place, on the
stand-in's memory; so these tests say nothing of CuPy's kernels, which nobody has run.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import protocol, registry
from gradclip_core.protocol import Buffer
from gradclip_core.rules import Rule
from tests.gpu.array_api.ways import Ways, layouts
from tests.gpu.cupy.compare import POLICIES, cp, some, upload
from tests.gpu.standin import Machine

BFLOAT16 = ml_dtypes.bfloat16
REAL = (np.float16, BFLOAT16, np.float32, np.float64)


@pytest.fixture
def ways(standin: Machine, monkeypatch: pytest.MonkeyPatch) -> Ways:
    backend: Any = importlib.import_module("gradclip_backends.array_api.backend")
    frameworks: Any = importlib.import_module("gradclip_backends.array_api.frameworks")

    class OnStandIn(frameworks.CupyFramework):  # type: ignore[misc]
        """CuPy's guards and its floats, with NumPy's operations on the same memory."""

        def plain(self, x: Any) -> Any:
            device, stream = cp().cuda.Device().id, cp().cuda.get_current_stream().ptr
            seen.append((device, stream))
            return x._host()

        def on_host(self, x: Any) -> Any:
            return np.asarray(x, np.float64)

    seen: list[tuple[int, int]] = []
    ours, real = OnStandIn(frameworks.framework_of(np.ones(1)).xp), backend.framework_of
    monkeypatch.setattr(cp().ndarray, "__module__", "cupy")  # as the real one's is
    monkeypatch.setattr(backend, "framework_of", lambda x: ours if type(x) is cp().ndarray else real(x))

    def on_second(x: Any) -> Any:
        with cp().cuda.Device(1):
            return upload(x)

    ways = Ways(on_second, lambda x: x.get())
    ways.seen = seen  # type: ignore[attr-defined]
    return ways


@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_rules_and_policies(ways: Ways, dtype: Any) -> None:
    rules: list[Rule] = [gc.GlobalNorm(1.0), gc.GlobalNorm(1e6), gc.ArrayNorm(1.0, 1), gc.Value((-0.1, 0.7))]
    for rule in rules:
        for policy in POLICIES:
            ways.check(some(scale=3.0, dtype=dtype), rule, nonfinite=policy, loss_scale=3.0)
    weights = some(seed=1, dtype=dtype)
    unit = (gc.UnitNorm(where, 0.05, axis="all_but_last") for where in (weights, ways.up(weights)))
    ways.check(some(scale=5.0, dtype=dtype), *unit)


def test_subnormals(ways: Ways) -> None:
    """What float32 holds below its normal numbers, and makes of normal ones."""
    small = (np.arange(-500, 500) * 2.0**-149).astype(np.float32)
    info = ways.check({"tiny": small, "large": np.ones(9, np.float32)}, gc.ArrayNorm(1e-43))
    assert info.clipped
    ways.check([np.float32(2.0**-126) * np.arange(9, dtype=np.float32)], gc.GlobalNorm(1e-40))


@pytest.mark.parametrize("name", layouts(negative=True))
def test_layouts(ways: Ways, name: str) -> None:
    host = {name: layouts(negative=True)[name]}
    for rule in (gc.GlobalNorm(1.0), gc.GlobalNorm(1e9)):
        ways.check(host, rule, nonfinite="skip")
    weights = {key: np.ones(x.shape, x.dtype) for key, x in host.items()}
    for axis in ("all_but_first", "all_but_last"):
        ways.check(host, *(gc.UnitNorm(where, 0.1, axis=axis) for where in (weights, ways.up(weights))))


def test_work_is_put_on_the_arrays_device_and_on_the_current_stream(ways: Ways) -> None:
    with cp().cuda.Device(1):
        stream = cp().cuda.Stream(non_blocking=True)
    grads = ways.up(some(scale=3.0))
    ways.seen.clear()  # type: ignore[attr-defined]
    gc.clip_by_global_norm_(grads, 1.0)
    assert set(ways.seen) == {(1, 1)}  # type: ignore[attr-defined]
    ways.seen.clear()  # type: ignore[attr-defined]
    with cp().cuda.Device(1), stream:
        gc.clip_by_global_norm_(grads, 0.5)
    assert set(ways.seen) == {(1, stream.ptr)}  # type: ignore[attr-defined]
    assert cp().cuda.Device().id == 0


def test_memory_that_is_not_aligned_is_refused(ways: Ways) -> None:
    with cp().cuda.Device(1):
        x = cp().ndarray((5,), np.float32, cp().asarray(np.zeros(64, np.uint8)).data + 2)
    with pytest.raises(gc.BackendError, match="it is not aligned to its dtype"):
        gc.clip_by_global_norm_([x], 1.0)


def test_memory_without_an_array_is_refused(ways: Ways) -> None:
    backend: Any = importlib.import_module("gradclip_backends.array_api").BACKEND
    with pytest.raises(gc.BackendError, match="its owner has no array to work through"):
        backend.measure([Buffer(64, 3, protocol.FLOAT32, device="cuda:0")], protocol.What())


def test_a_process_where_cuda_does_not_start(ways: Ways, standin: Machine) -> None:
    request = protocol.Request(frozenset({"cuda:1"}), frozenset({"float32"}), frozenset({"cupy"}))
    assert registry.reasons_against("array_api", request) == []
    standin.faults.no_driver = True
    (reason,) = registry.reasons_against("array_api", request)
    assert reason.startswith("CUDA does not start in this process (cudaErrorInsufficientDriver")
    standin.faults.no_driver = False


def test_every_name_is_one_of_cupys() -> None:
    """CuPy imports without a device, and array-api-compat's namespace of it too: by a process of its own."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    pytest.importorskip("array_api_compat")
    folder = Path(importlib.import_module("gradclip_backends.array_api").__file__ or "").parent
    # The exact passes: what is for arrays without memory, CuPy never sees.
    passes = [folder / f"{name}.py" for name in ("apply", "floats", "measure", "rows", "sums")]
    names = sorted(set(re.findall(r"\bxp\.([a-z_0-9]+)", "".join(path.read_text() for path in passes))))
    assert "concat" in names
    code = f"import array_api_compat.cupy as xp; print([n for n in {names} if not hasattr(xp, n)])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
