"""What is tried with CuPy's arrays, on a device or over the stand-in: ``cupy`` is whichever is there.

Each function raises where a bit differs from the reference.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import testing
from gradclip_core.rules import Rule
from gradclip_core.testing.memory import Memory
from tests.gpu.cupy.compare import POLICIES, check, contents, cp, fetch, on_device, some, told

Array = npt.NDArray[Any]
RULES: dict[str, Rule] = {
    "global": gc.GlobalNorm(1.0),
    "magnitudes": gc.GlobalNorm(1.0, 1),
    "largest": gc.GlobalNorm(0.5, math.inf),
    "nothing over": gc.GlobalNorm(1e6),
    "each array": gc.ArrayNorm(1.0),
    "groups": gc.GroupNorm({"x": 1.0, "y": None}, {"x": ["w", "one"], "y": ["b", "none"]}),
    "value": gc.Value(0.5),
    "interval": gc.Value((-0.1, 0.7)),
    "chain": gc.Chain(gc.Value(0.5), gc.GlobalNorm(1.0)),
}
DTYPES = ("float16", "float32", "float64")


def conformance(backend: Any, memory: Memory, *, thorough: bool) -> int:
    """The public suite. How many checks it had."""
    count = 0
    for one in testing.checks(backend, memory=memory, thorough=thorough):
        one.run()
        count += 1
    return count


def rules(dtype: str, rule: str) -> None:
    """In place, into new arrays, as a plan, under every policy, with what is not finite and without."""
    for policy in POLICIES:
        check(some(scale=3.0, dtype=np.dtype(dtype)), RULES[rule], nonfinite=policy, loss_scale=3.0)
        if policy != "raise":
            host = some(scale=3.0, dtype=np.dtype(dtype))
            host["w"][3, 3], host["b"][77] = math.nan, -math.inf
            check(host, RULES[rule], nonfinite=policy)


def units() -> None:
    """AGC, its weights on the device and on the host."""
    host, weights = some(scale=5.0), {name: np.asarray(x + 1) for name, x in some(1).items()}
    for axis in ("all_but_first", None):
        check(host, gc.UnitNorm(on_device(weights), 0.01, axis=axis))
        check(host, gc.UnitNorm(weights, 0.01, axis=axis))


def many_arrays() -> None:
    """More than a launch takes by value, again where they are, and elsewhere."""
    host = [np.full(17, 0.25 + i, np.float32) for i in range(300)]
    for _ in range(2):
        check(host, gc.GlobalNorm(1.0), nonfinite="skip")
        check(host, gc.ArrayNorm(1.0), nonfinite="skip")


def strided_arrays() -> None:
    """Packed, and put back."""
    base = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    check([base[:, ::2], base.T.copy()[::3, 5:]], gc.GlobalNorm(1.0))


def subnormals() -> None:
    """Float32 below its normal numbers: CuPy compiles with ``-ftz=true``, and the kernels must not care."""
    rng = np.random.default_rng(0)
    for scale in (2.0**-126, 2.0**-140):
        for size in (4096, 300):
            x = (rng.standard_normal(size) * scale).astype(np.float32)
            assert np.any((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny))
            norm = gc.global_norm(x, backend="numpy")
            assert gc.global_norm(on_device([x])) == norm > 0
            for bound in (2 * norm, norm / 2, norm / 1000):
                check([x], gc.GlobalNorm(bound), nonfinite="skip")


def device_loss_scale() -> None:
    """A loss scale that the host never sees, valid and not."""
    host = some(scale=64.0)
    check(host, gc.GlobalNorm(0.5), scale=cp().asarray(np.float32(64.0)), loss_scale=64.0, nonfinite="skip")
    grads = on_device(host)
    info = gc.clip_by_global_norm_(grads, 0.5, loss_scale=cp().asarray(np.float32(-1.0)), nonfinite="skip")
    with pytest.raises(gc.InvalidArgumentError, match="loss_scale"):
        info.norm  # noqa: B018
    assert contents(grads) == contents(host)


def side_stream(repeats: int = 20) -> None:
    """Work queued before, the clip, and work queued after, on a stream that waits for no other."""
    cupy = cp()
    host = some(scale=3.0)
    expected, expected_info = gc.clip(host, gc.GlobalNorm(1.0), backend="numpy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        source, grads = on_device(host), on_device({name: np.zeros_like(x) for name, x in host.items()})
        for _ in range(repeats):
            for name, x in grads.items():
                x[...] = source[name]
        info = gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        after = {name: x.copy() for name, x in grads.items()}
        for x in grads.values():
            x.fill(0)
        assert contents(after) == contents(expected)
        assert told(info) == told(expected_info)


def returns_at_once(elements: int) -> None:
    """The host is back while the device still works on what was queued before; a call that waits would not be."""
    cupy = cp()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        busy, other = cupy.zeros(elements, np.float32), cupy.ones(elements, np.float32)
        grads = on_device(some(scale=3.0))
        gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")  # compiles, allocates
        stream.synchronize()
        for _ in range(400):
            busy[...] = other
        for rule in (gc.GlobalNorm(1.0), gc.ArrayNorm(0.5), gc.Value(0.01)):
            gc.clip_(grads, rule, nonfinite="skip")
        assert not stream.done, "the host has waited for the device, or the device was not kept busy"
    stream.synchronize()


def graph() -> None:
    """Captured after one warm-up call, and replayed over new values: some are clipped, some are not."""
    cupy = cp()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        grads = on_device(some())
        gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        stream.synchronize()
        stream.begin_capture()
        info = gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        captured = stream.end_capture()
        for seed, scale in ((1, 5.0), (2, 1e-6), (3, 0.5)):
            host = some(seed, scale)
            for name, x in host.items():
                grads[name].set(x)
            captured.launch(stream)
            stream.synchronize()
            expected, expected_info = gc.clip(host, gc.GlobalNorm(1.0), backend="numpy")
            assert contents(grads) == contents(expected), f"the replay over values of {scale}"
        # The captured info is that of the last replay before it was read.
        assert info.norm == expected_info.norm


def other_device() -> None:
    """Arrays of a device that is not the current one; and of two, which is refused."""
    cupy = cp()
    with cupy.cuda.Device(1):
        grads = on_device(some(scale=3.0))
    expected, _ = gc.clip(some(scale=3.0), gc.GlobalNorm(1.0), backend="numpy")
    with cupy.cuda.Device(0):
        gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        here = on_device([np.ones(3, np.float32)])
    assert contents(grads) == contents(expected)
    with pytest.raises(gc.BackendError, match=r"cuda:0, cuda:1"):
        gc.clip_({"here": here, "there": grads}, gc.GlobalNorm(1.0))


def deterministic(runs: int) -> None:
    """The same bits each time, however the warps were scheduled."""
    host = {"many": np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32), **some()}
    first: object = None
    for _ in range(runs):
        grads = on_device(host)
        info = gc.clip_(grads, gc.GlobalNorm(1.0), nonfinite="skip")
        seen = contents(grads), told(info)
        first = seen if first is None else first
        assert seen == first


def long_array(elements: int) -> None:
    """Ones, of which the norm is known, with a last element that is another."""
    cupy = cp()
    x = cupy.ones(elements, np.float16)
    x[elements - 1 :].fill(2)
    norm = math.sqrt(elements + 3)
    info = gc.clip_by_global_norm_([x], norm / 4, nonfinite="skip")
    assert info.norm == norm
    factor = np.float32(info.scale)
    for start in (0, elements // 2, elements - 3):
        part = fetch([x[start : start + 3]])[0]
        expected = (np.array([1, 1, 2 if start == elements - 3 else 1], np.float32) * factor).astype(np.float16)
        assert part.tobytes() == expected.tobytes()


def cupy_backend() -> Any:
    """The backend over whichever CuPy is there now."""
    return importlib.import_module("gradclip_backends.cupy_raw").BACKEND
