"""What a step costs in memory traffic, by the PTX that NVRTC makes: the gradients once, and nothing but them.

A million elements would tell no more than these, which fill every block of the grid and leave tails behind.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import Array, on_device
from tests.gpu.cupy.lanes import lane
from tests.gpu.standin import Machine

on_ptx = pytest.mark.parametrize("standin", [lane("ptx-90")], indirect=True)
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
BLOCK = 4096
VECTOR = {kind: re.compile(rf"{kind}\.global\.(v4\.[uf]32|v2\.f64)$") for kind in ("ld", "st")}
SIZES = (24 * BLOCK, 5 * BLOCK + 1000, BLOCK, 300, 1)
BLOCKS = 33


def host(dtype: Any, scale: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(n) * scale).astype(dtype) for n in SIZES]


@dataclass
class Counted:
    """By kernel, in bytes: the gradients' own memory, and new memory. All sectors, those of tables and records too."""

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    sectors: int = 0
    requests: int = 0
    bank_conflicts: int = 0


def count(standin: Machine, grads: list[Any], made: list[Any] | None = None) -> Counted:
    """Of the launches since the log was cleared."""
    own = {x.data.ptr for x in grads}
    new = {x.data.ptr for x in made or []}
    counted = Counted()
    for entry in standin.log.of("launch"):
        assert entry.traffic is not None
        name, traffic = entry.kernel.removesuffix("_inline"), entry.traffic
        for what, regions in ((counted.read, traffic.read), (counted.written, traffic.written)):
            for (address, _), size in regions.items():
                if address in own:
                    what[name] += size
                elif address in new:
                    assert what is counted.written, "what was just made is read"
                    counted.made[name] += size
        counted.sectors += sum(traffic.sectors.values())
        counted.requests += sum(traffic.requests.values())
        counted.bank_conflicts += traffic.bank_conflicts
    return counted


def sizes(grads: list[Any]) -> int:
    return sum(x.nbytes for x in grads)


@on_ptx
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_a_step_that_clips_nothing_reads_once(standin: Machine, dtype: Any) -> None:
    grads = on_device(host(dtype))
    gc.clip_by_global_norm_(grads, 1e9, nonfinite="skip")
    standin.log.clear()
    info = gc.clip_by_global_norm_(grads, 1e9, nonfinite="skip")
    assert not info.clipped
    counted = count(standin, grads)
    assert counted.read == {"measure_squares": sizes(grads)}
    assert counted.written == {}
    # What is left is the same for gradients of any size, but for a number or two for each block.
    assert counted.sectors - sizes(grads) / 32 <= (300 if dtype is not np.float64 else 700)
    assert counted.bank_conflicts == 0


@on_ptx
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_a_step_that_clips_reads_twice_and_writes_once(standin: Machine, dtype: Any) -> None:
    grads = on_device(host(dtype))
    standin.log.clear()
    info = gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    assert info.clipped
    counted, total = count(standin, grads), sizes(grads)
    # float64 over its limit is read once more, for what rounding took from its sum: README's promise is exact.
    extra = {"carries": total} if dtype is np.float64 else {}
    assert counted.read == {"measure_squares": total, "apply": total, **extra}
    assert counted.written == {"apply": total}
    assert counted.sectors - (counted.read.total() + counted.written.total()) / 32 <= 6 * BLOCKS + 700
    assert counted.bank_conflicts == 0


@on_ptx
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_accesses_are_16_bytes_wide_and_side_by_side(standin: Machine, dtype: Any) -> None:
    """A warp's request is 512 bytes in 16 sectors: as many as it takes, in as few requests as there can be."""
    grads = on_device([np.ones(16 * BLOCK, dtype)])
    gc.clip_by_norm_(grads, 1e9, nonfinite="skip")
    standin.log.clear()
    gc.clip_by_norm_(grads, 0.5, nonfinite="skip")
    vectors = sizes(grads) // 16
    for entry in standin.log.of("launch"):
        kinds = {"measure_squares_inline": ("ld",), "apply_inline": ("ld", "st")}.get(entry.kernel, ())
        for kind in kinds:
            assert entry.traffic is not None
            found = {name: n for name, n in entry.traffic.instructions.items() if VECTOR[kind].match(name)}
            assert list(found.values()) == [vectors]
            # What is left are a few numbers for each block.
            assert 0 <= entry.traffic.requests[kind] - vectors // 32 <= 100
            assert 0 <= entry.traffic.sectors[kind] - vectors // 2 <= 100


@on_ptx
def test_out_of_place(standin: Machine) -> None:
    grads = on_device(host(np.float32))
    for limit in (1e9, 1.0):
        standin.log.clear()
        made, info = gc.clip_by_global_norm(grads, limit, nonfinite="skip")
        assert info.clipped == (limit == 1.0)
        counted, total = count(standin, grads, made), sizes(grads)
        assert counted.read == {"measure_squares": total, "apply": total}
        assert (counted.written, counted.made) == ({}, {"apply": total})


@on_ptx
@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize"])
def test_what_is_not_finite(standin: Machine, policy: str) -> None:
    arrays = host(np.float32)
    arrays[0][99] = math.nan
    grads = on_device(arrays)
    standin.log.clear()
    info = gc.clip_by_global_norm_(grads, 1e9, nonfinite=policy)
    assert info.nonfinite == 1
    counted, total = count(standin, grads), sizes(grads)
    # The block with the NaN is looked at again, for what is in it.
    read = {"measure_squares": total + 4 * BLOCK}
    assert counted.read == ({**read, "apply": grads[0].nbytes} if policy == "sanitize" else read)
    assert counted.written == {"skip": {}, "zero": {"apply": total}, "sanitize": {"apply": grads[0].nbytes}}[policy]


@on_ptx
def test_by_value_and_by_array_write_what_they_change(standin: Machine) -> None:
    arrays = host(np.float32, 0.01)
    arrays[1][5000] = 7
    grads = on_device(arrays)
    standin.log.clear()
    info = gc.clip_by_value_(grads, 1.0, nonfinite="skip")
    counted, total, one = count(standin, grads), sizes(grads), grads[1].nbytes
    # The norm after is measured on what was written.
    assert counted.read == {"measure_squares": 2 * total, "apply": one}
    assert counted.written == {"apply": one}
    assert info.clipped
    standin.log.clear()
    gc.clip_by_value_(grads, 1.0, nonfinite="skip")
    counted = count(standin, grads)
    assert (counted.read, counted.written) == ({"measure_squares": total}, {})
    arrays[1][5000] = 700
    grads = on_device(arrays)
    standin.log.clear()
    gc.clip_by_norm_(grads, 500.0, nonfinite="skip")
    counted = count(standin, grads)
    assert counted.read == {"measure_squares": total, "apply": one}
    assert counted.written == {"apply": one}


@on_ptx
def test_adaptive(standin: Machine) -> None:
    arrays = [x[: x.size // 64 * 64].reshape(-1, 64) for x in host(np.float32)[:3]]
    grads, weights = on_device(arrays), on_device(arrays)
    standin.log.clear()
    gc.adaptive_clip_(grads, weights, 2.0, axis="all_but_first", nonfinite="skip")
    counted, total = count(standin, grads), sizes(grads)
    assert (counted.read, counted.written) == ({"measure_squares": total}, {})
    standin.log.clear()
    gc.adaptive_clip_(grads, weights, 0.5, axis="all_but_first", nonfinite="skip")
    counted = count(standin, grads)
    assert counted.read == {"measure_squares": total, "apply": total}
    assert counted.written == {"apply": total}
    weighed = count(standin, weights)
    assert (weighed.read, weighed.written) == ({"measure_squares": total}, {})


@on_ptx
def test_a_plan_and_a_norm_write_nothing(standin: Machine) -> None:
    grads = on_device(host(np.float32))
    standin.log.clear()
    gc.plan(grads, gc.GlobalNorm(1.0), nonfinite="skip")
    gc.global_norm(grads)
    counted = count(standin, grads)
    assert (counted.read, counted.written) == ({"measure_squares": 2 * sizes(grads)}, {})
