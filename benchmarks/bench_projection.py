"""Projections on the CPU: L1 ball and simplex against optax, jaxopt, pyproximal and a NumPy sort.

Every call returns a new array, as the peers do. ``GRADCLIP_BENCH_LARGE=1`` adds 10^8 elements. None
of the peers has an L1,inf ball (pyproximal 0.13, optax 0.2.8, jaxopt 0.8.5): ours is timed beside
the sort of all rows that a peer would need. ``search`` counts and times the ways to the threshold.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from gradclip_backends.numba_cpu.passes import PASSES

import gradclip_core as gc
from benchmarks.harness import Settings
from gradclip_core import sets
from gradclip_core.cli.bench_limits import Memory
from gradclip_core.cli.bench_machine import imported
from gradclip_core.cli.bench_timing import LIMIT, OURS, Call, Case, Prepared, timed
from gradclip_core.forms import Form, Reading
from gradclip_core.protocol import FLOAT64, Buffer
from gradclip_core.sets.threshold import find_threshold

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
PEERS = ("jax", "optax", "jaxopt", "pyproximal")
_MODULES = {"optax": "optax.projections"}
Calls = Callable[[Any, float, dict[str, Any]], dict[str, Call]]
SPECTRAL = ((64, 64), (256, 256), (1024, 256), (512, 512))


def cases(settings: Settings) -> list[Case]:
    """Balls and simplices of every size, a matrix by rows, and spectral balls."""
    peers = {name: module for name in PEERS if (module := _peer(name)) is not None}
    sizes = SIZES[:3] if settings.quick else (*SIZES, 10**8) if settings.large else SIZES
    made = []
    for n in sizes:
        rounds = min(settings.rounds, 21 if n < 10**7 else 7 if n == 10**7 else 3)
        for name, radius, calls in (("L1Ball", n / 1000, l1_calls), ("Simplex", 1.0, simplex_calls)):
            prepare = partial(_vector, n, settings.threads, calls, radius, peers)
            made.append(Case("projection", f"{name}({radius:g})", f"{n} float32", prepare, rounds))
    made.append(Case("projection", "L1InfBall", "2000x1000 float32", _l1inf, min(settings.rounds, 11)))
    for shape in SPECTRAL[: 2 if settings.quick else None]:
        data, rounds = f"{shape[0]}x{shape[1]} float32", min(settings.rounds, 7)
        made.append(Case("projection", "SpectralBall(half)", data, partial(_spectral, shape), rounds))
    return made


def missing() -> list[str]:
    """A sentence for each peer that is not installed, or cannot be imported."""
    return [why for name in PEERS if (why := imported(_MODULES.get(name, name))[1])]


def _normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _vector(n: int, threads: int, calls: Calls, radius: float, peers: dict[str, Any]) -> Prepared:
    x = _normal(n)
    made: dict[str, Call] = {LIMIT: Memory(x.nbytes, threads).read, **calls(x, radius, peers), "copy": x.copy}
    return Prepared(made, 1, x.nbytes)


def _l1inf() -> Prepared:
    x = _normal(2000, 1000)
    radius = float(np.abs(x).max(axis=1).sum()) / 10
    calls: dict[str, Call] = {
        OURS: _ours(x, sets.L1InfBall(radius, axis=1)),
        "NumPy sort of rows": partial(np.sort, x, axis=1),
    }
    return Prepared(calls, 1, x.nbytes)


def _spectral(shape: tuple[int, ...]) -> Prepared:
    x = _normal(*shape)
    radius = float(np.linalg.norm(x, 2)) / 2
    calls: dict[str, Call] = {
        OURS: _ours(x, sets.SpectralBall(radius, "svd")),
        "gradclip, Newton-Schulz": _ours(x, sets.SpectralBall(radius, "newton_schulz")),
    }
    return Prepared(calls, 1, x.nbytes)


def search() -> None:
    """The ways to a simplex's threshold: passes over the memory, and time, on kind and on unkind values."""
    n = 10**7
    kind = np.abs(np.random.default_rng(0).standard_normal(n))
    for data, x, total in (("normal", kind, n / 1000), ("unkind", _unkind(n), 0.5)):
        buffer = Buffer(x.ctypes.data, x.size, FLOAT64, owner=x)
        ways: dict[str, Call] = {
            "Michelot, passes of sums": partial(michelot, buffer, total),
            "histograms, exact": partial(find_threshold, PASSES, [buffer], Reading(), Fraction(total), signed=True),
            "sort and cumsum": partial(_sorted_threshold, x, total),
        }
        for name, times in timed(ways, 7).items():
            passes = f"{michelot(buffer, total)[1]} passes" if name.startswith("Michelot") else ""
            print(f"{data:10} {name:26} {1e3 * np.median(times):8.1f} ms {passes}")


def _unkind(n: int) -> Any:
    """Falling values of which each of Michelot's rounds drops but one, the last of them many times."""
    values = [Fraction(1)]
    for k in range(1, 100):
        tau = (sum(values) - Fraction(1, 2)) / k
        gap = tau - values[-1] if k > 1 else Fraction(-1, 4)
        values.append(Fraction(float(values[-1] - k * max(gap, Fraction(0)) * Fraction(9, 8) - Fraction(3, 4))))
    x = np.full(n, float(values[-1]))
    x[: len(values)] = [float(value) for value in values]
    return x


def michelot(buffer: Buffer, total: float) -> tuple[float, int]:
    """Michelot 1986: the threshold of what is above the last one, until nothing more falls out. And its passes."""
    ((least,),) = PASSES.map([buffer], None, Reading(), Form.of("same", 1), ["low_y"], rounded=False)
    tau, before, passes = 2 * least - 1 if least < 0 else -1.0, -1.0, 0
    while True:
        form = Form.of("shift", 1, tau)
        ((above,), (count,)) = PASSES.map([buffer], None, Reading(), form, ["sum", "count"], rounded=False)
        passes += 1
        if count == before:
            return float(tau), passes
        tau, before = tau + (above - total) / count, count


def _sorted_threshold(x: Any, total: float) -> float:
    falling = np.sort(x)[::-1]
    sums = np.cumsum(falling)
    above = np.flatnonzero(falling * np.arange(1, x.size + 1) > sums - total)[-1]
    return float((sums[above] - total) / (above + 1))


def _peer(name: str) -> Any:
    os.environ.setdefault("CUPY_PYLOPS", "0")  # pyproximal's pylops fails on a CuPy without a device
    return imported(_MODULES.get(name, name))[0]


def _ours(x: Any, onto: sets.Set, **more: Any) -> Call:
    return lambda: gc.clip_by_projection(x, onto, **more)


def duchi(x: Any, total: float) -> Any:
    """The simplex, Duchi 2008 figure 1, in NumPy: float32 sorted, sums in float64."""
    falling = np.sort(x)[::-1]
    sums = np.cumsum(falling, dtype=np.float64)
    above = np.flatnonzero(falling * np.arange(1, x.size + 1) > sums - total)[-1]
    return np.maximum(x - np.float32((sums[above] - total) / (above + 1)), np.float32(0))


def duchi_l1(x: Any, radius: float) -> Any:
    """The L1 ball by ``duchi``."""
    magnitude = np.abs(x)
    if magnitude.sum(dtype=np.float64) <= radius:
        return x
    return np.copysign(duchi(magnitude, radius), x)


def _on_jax(peers: dict[str, Any], x: Any, call: Callable[[Any], Any]) -> Call:
    jitted, there = peers["jax"].jit(call), peers["jax"].numpy.asarray(x)
    return lambda: jitted(there).block_until_ready()


def l1_calls(x: Any, radius: float, peers: dict[str, Any]) -> dict[str, Call]:
    """What is timed for the L1 ball, in turn."""
    calls: dict[str, Call] = {OURS: _ours(x, sets.L1Ball(radius))}
    if x.size <= 10**6:
        calls["gradclip, NumPy alone"] = _ours(x, sets.L1Ball(radius), backend="numpy")
    calls["NumPy sort"] = lambda: duchi_l1(x, radius)
    if "optax" in peers:
        calls["optax, jit"] = _on_jax(peers, x, lambda v: peers["optax"].projection_l1_ball(v, radius))
    if "jaxopt" in peers and x.size <= 10**7:  # as slow as optax
        calls["jaxopt, jit"] = _on_jax(peers, x, lambda v: peers["jaxopt"].projection.projection_l1_ball(v, radius))
    if "pyproximal" in peers and x.size <= 10**7:
        calls["pyproximal"] = partial(peers["pyproximal"].projection.L1BallProj(x.size, radius), x)
    return calls


def simplex_calls(x: Any, total: float, peers: dict[str, Any]) -> dict[str, Call]:
    """What is timed for the simplex, in turn."""
    calls: dict[str, Call] = {OURS: _ours(x, sets.Simplex(total))}
    if x.size <= 10**6:
        calls["gradclip, NumPy alone"] = _ours(x, sets.Simplex(total), backend="numpy")
    calls["NumPy sort"] = lambda: duchi(x, total)
    if "optax" in peers:
        calls["optax, jit"] = _on_jax(peers, x, lambda v: peers["optax"].projection_simplex(v, total))
    if "jaxopt" in peers and x.size <= 10**7:
        calls["jaxopt, jit"] = _on_jax(peers, x, lambda v: peers["jaxopt"].projection.projection_simplex(v, total))
    if "pyproximal" in peers and x.size <= 10**7:
        calls["pyproximal"] = partial(peers["pyproximal"].projection.SimplexProj(x.size, total), x)
    return calls
