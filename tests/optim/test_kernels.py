"""The kernels give the reference's bits: every update, every pair of dtypes, odd sizes, any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip_core import registry
from gradclip_core.plan import actions_of
from gradclip_core.protocol import FLOAT32, LEAVE, SCALE, ZERO, Buffer, DType, FloatArray
from gradclip_core.updates import UPDATES, compute_type, updates_of
from tests.optim.common import DTYPES, drawn

ROOT = Path(__file__).resolve().parents[2]
SIZES = (0, 1, 7, 255, 4096, 4097, 9000)
jit = pytest.mark.jit


def numbers_for(kind: str, rng: np.random.Generator, arrays: int) -> FloatArray:
    """Something for each of the update's numbers; where there is a penalty, also arrays without it."""
    rows = [rng.uniform(0.001, 1.0, arrays) for _ in UPDATES[kind].numbers]
    if "l2" in UPDATES[kind].numbers:
        rows[0][::2] = 0.0
    return np.array(rows)


def buffer(stored: Any, dtype: DType) -> Buffer:
    return Buffer(stored.ctypes.data, stored.size, dtype, owner=stored)


def bits(stored: Any, dtype: DType) -> bytes:
    """As stored, but that every NaN is the same."""
    if dtype.coded:
        nan = (stored & 0x7FFF) > 0x7F80
        return np.where(nan, 0x7FC0, stored).astype(np.uint16).tobytes()
    return np.where(np.isnan(stored), np.nan, stored).astype(stored.dtype).tobytes()


def run(
    backend: str,
    kind: str,
    seed: int,
    dtypes: Sequence[tuple[DType, DType]],
    sizes: Sequence[int],
    steps: int = 2,
    wild: bool = True,
) -> list[bytes]:
    """Parameters and state after some steps, the second without the first array."""
    rng = np.random.default_rng(seed)
    params = [drawn(rng, n, dtype, wild=wild) for n, (dtype, _) in zip(sizes, dtypes, strict=True)]
    types = [compute_type(dtype) for dtype, _ in dtypes]
    state = [
        [np.abs(drawn(rng, n, dtype, wild=wild)) for n, dtype in zip(sizes, types, strict=True)]
        for _ in UPDATES[kind].state
    ]
    bound = updates_of(registry.load(backend)).bind(
        kind,
        [buffer(p, dtype) for p, (dtype, _) in zip(params, dtypes, strict=True)],
        [[buffer(s, dtype) for s, dtype in zip(row, types, strict=True)] for row in state],
    )
    for step in range(steps):
        index = np.arange(min(step, 1), len(sizes))[::-1]
        grads = [drawn(rng, sizes[i], dtypes[i][1], wild=wild) for i in index]
        op = rng.choice([LEAVE, SCALE, SCALE, ZERO], index.size).astype(np.uint8)
        factor = np.where(op == LEAVE, 1.0, np.where(op == ZERO, 0.0, rng.choice([0.5, 0.3, 2.0**-140], index.size)))
        factor = factor.astype(np.float32).astype(np.float64)
        buffers = [buffer(g, dtypes[i][1]) for g, i in zip(grads, index, strict=True)]
        bound.step(index, buffers, actions_of(op, factor), numbers_for(kind, rng, index.size))
    made = [bits(p, dtype) for p, (dtype, _) in zip(params, dtypes, strict=True)]
    return made + [bits(s, dtype) for row in state for s, dtype in zip(row, types, strict=True)]


def test_both_backends_know_every_update() -> None:
    for backend in ("numpy", *(["numba_cpu"] if "numba" in sys.modules else [])):
        for kind in UPDATES:
            assert run(backend, kind, 0, [(FLOAT32, FLOAT32)], [3]) != run(backend, kind, 1, [(FLOAT32, FLOAT32)], [3])


@jit
@pytest.mark.parametrize("grad", DTYPES, ids=str)
@pytest.mark.parametrize("param", DTYPES, ids=str)
def test_bits_of_every_pair_of_dtypes(param: DType, grad: DType) -> None:
    pytest.importorskip("numba")
    for kind in UPDATES:
        case: Any = (kind, 3, [(param, grad)] * len(SIZES), SIZES)
        assert run("numba_cpu", *case) == run("numpy", *case), kind


@jit
@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(list(UPDATES)),
    seed=st.integers(0, 2**32 - 1),
    arrays=st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 5000)), max_size=6),
)
def test_bits_of_mixed_arrays(kind: str, seed: int, arrays: list[tuple[DType, DType, int]]) -> None:
    pytest.importorskip("numba")
    case: Any = (kind, seed, [(p, g) for p, g, _ in arrays], [n for _, _, n in arrays])
    assert run("numba_cpu", *case) == run("numpy", *case)


@jit
@pytest.mark.parametrize("kind", UPDATES)
def test_bits_do_not_depend_on_threads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    case: Any = (kind, 5, [(FLOAT32, FLOAT32)] * 3, (300_000, 5, 100_001))
    made = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("GRADCLIP_NUM_THREADS", threads)
        made.append(run("numba_cpu", *case))
    assert made[0] == made[1] == made[2] == run("numpy", *case)


_PLAIN = """
import sys
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from gradclip_core.updates import UPDATES
from tests.optim.test_kernels import run
pairs = [(FLOAT32, FLOAT32), (FLOAT16, FLOAT16), (BFLOAT16, BFLOAT16), (FLOAT64, FLOAT32), (FLOAT32, FLOAT64)]
for kind in UPDATES:
    case = kind, 11, pairs, (70, 33, 1, 40, 20)
    assert run("numba_cpu", *case) == run("numpy", *case), kind
print("same")
"""


def test_bits_as_plain_python() -> None:
    """The kernels without the compiler."""
    pytest.importorskip("numba")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", _PLAIN], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr
