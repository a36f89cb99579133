"""A few small launches that take every kernel through what it can do, held to the reference and to plan.py.

Each scenario raises where one bit differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gradclip_core.device import Case, Strided
from gradclip_core.norms import scope_norms
from gradclip_core.passes import measure, measure_carries
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Buffer, FloatArray, Scopes, What
from gradclip_core.reference import BACKEND as REFERENCE
from gradclip_core.testing.memory import HostMemory
from tests.gpu.bugs.bench import Array, Bench, Rule, check, same

ALL = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)
BLOCK = 4096
SCENARIOS: dict[str, Callable[[Bench], None]] = {}
SLOW = ("deep", "crowd")
"""Some seconds; the others take a fraction of one."""


def scenario(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
    SCENARIOS[function.__name__] = function
    return function


def draw(*shape: int, seed: int = 0) -> FloatArray:
    """Ordinary gradients, some of them zero."""
    rng = np.random.default_rng([seed, *shape])
    values = rng.standard_normal(shape) * 0.01
    values[rng.random(shape) < 0.02] = 0
    return np.atleast_2d(values)


def put_in(values: FloatArray, **at: float) -> FloatArray:
    """A copy with elements replaced: ``_5=math.nan`` is the sixth of all."""
    values = values.copy()
    for place, value in at.items():
        values.reshape(-1)[int(place[1:])] = value
    return values


# ---- sums ------------------------------------------------------------------------------------------


@scenario
def siblings(bench: Bench) -> None:
    """Nine blocks of a segment, by the warps of two thread blocks; twice, for counters have to be zero again."""
    for seed in range(2):
        arrays = [Array(draw(8 * BLOCK + 5, seed=seed), FLOAT32), Array(draw(BLOCK + 1, seed=seed), FLOAT32)]
        bench.clip(arrays, Rule(0.25))


@scenario
def vectors(bench: Bench) -> None:
    """Full blocks of every type, where 16-byte loads are possible and where they are not."""
    for shift in (0, 1):
        bench.clip([Array(draw(4, BLOCK, seed=d.itemsize), d, shift) for d in ALL], Rule(0.5))
    bench.clip([Array(draw(BLOCK), d) for d in ALL], Rule(3.0, ord=1))


@scenario
def tails(bench: Bench) -> None:
    """Lengths around those of a thread, a warp and a block, none among them."""
    lengths = (0, 1, 255, BLOCK + 1)
    bench.clip([Array(draw(n), dtype, shift) for dtype in ALL for n in lengths for shift in (0, 1)], Rule(0.75))


@scenario
def leave(bench: Bench) -> None:
    """Nothing is over: a copy out of place, no access at all in place."""
    bench.clip([Array(draw(n), dtype) for dtype in ALL for n in (3, BLOCK + 9)], Rule(1e3), targets="memory new")
    bench.clip([Array(draw(9), FLOAT64)], Rule(1e3), targets="memory new")
    bench.clip([Array(np.zeros((1, BLOCK)), dtype) for dtype in ALL], Rule())


@scenario
def subnormals(bench: Bench) -> None:
    """Elements and products below the normal numbers, and factors beyond float32's."""
    tiny = draw(BLOCK) * 2.0**-125
    arrays = [Array(tiny, FLOAT32), Array(tiny, BFLOAT16), Array(draw(BLOCK) * 2.0**-17, FLOAT16)]
    arrays += [
        Array((1 + np.abs(tiny)) * 2.0**-122, BFLOAT16),
        Array(tiny[:, :99], FLOAT32, 1),
        Array(tiny[:, :40], BFLOAT16),
    ]
    for array in arrays:
        bench.clip([array], Rule(float(np.linalg.norm(array.stored().astype(float))) or 1.0, inverse=0.5))
        bench.clip([array], Rule(2.0**-130))
    bench.clip([Array(draw(300) * 1e38, FLOAT32)], Rule(1e-30))
    bench.clip([Array(draw(300) * 1e-38, FLOAT32)], Rule(1e300, inverse=2.0**130))
    bench.clip([Array(draw(300), FLOAT32)], Rule(1e300, inverse=2.0**-160))
    bench.clip([Array(draw(300), FLOAT32)], Rule(1e-60))


@scenario
def orders(bench: Bench) -> None:
    """1, infinity and a general order, over all types, with and without what is not finite."""
    arrays = [Array(draw(n), dtype) for dtype in ALL for n in (0, 300, BLOCK + 3)]
    for bad in (0.0, math.inf, math.nan):
        for order in (1.0, math.inf, 3.5):
            more = [*arrays, Array(put_in(draw(50), _7=bad), FLOAT32), Array(np.zeros((2, 7)), FLOAT64)]
            for policy in ("propagate", "sanitize") if bad else ("raise",):
                bench.clip(more, Rule(0.02, ord=order, policy=policy))
    scopes = Scopes(np.arange(3), np.array([0.01, 1e-320, 1e300]))
    for order in (math.inf, 3.5):
        wide = [Array(draw(64), FLOAT64), Array(draw(64) * 1e-310, FLOAT64), Array(draw(64) * 1e307, FLOAT64)]
        bench.clip(wide, Rule(1.0, ord=order, scopes=scopes))
        bench.clip(wide, Rule(1e299, ord=order))
        bench.clip([Array(np.zeros((1, 5)), FLOAT32), Array(np.zeros((1, 5)), FLOAT64)], Rule(1.0, ord=order))
        bench.clip(wide[:1], Rule(1e-310, ord=order))


# ---- float64 ---------------------------------------------------------------------------------------


@scenario
def rescaled(bench: Bench) -> None:
    """float64 whose squares leave float64's range, by itself and beside others."""
    big, small, plain = draw(BLOCK + 2) * 1e200, draw(BLOCK) * 1e-200, draw(300)
    for order in (2.0, 1.0):
        bench.clip([Array(big, FLOAT64)], Rule(1e199, ord=order))
        bench.clip([Array(small, FLOAT64), Array(small, FLOAT64, 1)], Rule(1e-202, ord=order))
        bench.clip([Array(x, FLOAT64) for x in (big, small, plain, plain[:, :0])], Rule(1.0, ord=order))
    bench.clip([Array(np.zeros((1, 9)), FLOAT64), Array(big, FLOAT64), Array(plain, FLOAT32)], Rule(1.0))
    nothing = [Array(x, FLOAT64) for x in (big, plain * 0, plain * 0)]
    bench.clip(nothing, Rule(scopes=Scopes(np.array([0, 1, 1]), np.array([1.0, 1.0]))))
    extremes = [np.array([[5e-324]]), np.array([[1.7e308, 1.7e308]]), np.array([[2.0**-1022] * 3])]
    scopes = Scopes(np.array([0, 1, 2]), np.array([1e-300, 1.0, 1e-310]))
    bench.clip([Array(x, FLOAT64) for x in extremes], Rule(scopes=scopes))
    bench.clip([Array(big, FLOAT64)], Rule(1e-120))
    bench.clip([Array(put_in(big, _3=math.inf, _4=math.nan), FLOAT64)], Rule(1.0, policy="sanitize"))
    bench.clip([Array(np.array([[1e-300, -3e-300]]), FLOAT64)], Rule(1e-320))


@scenario
def carried(bench: Bench) -> None:
    """float64 over its limit: what rounding took is measured too, over several blocks and arrays."""
    arrays = [Array(draw(2 * BLOCK + 77), FLOAT64), Array(draw(500, seed=1), FLOAT64, 1)]
    norm = float(np.sqrt(sum((a.values**2).sum() for a in arrays)))
    for limit in (norm * 0.9, norm * (1 - 2.0**-53), norm * (1 - 2.0**-52)):
        bench.clip(arrays, Rule(limit))
    bench.clip(arrays, Rule(norm / 6, inverse=1 / 3))
    bench.clip(arrays, Rule(float(sum(np.abs(a.values).sum() for a in arrays)) * 0.999, ord=1.0))
    bench.clip([Array(put_in(draw(60), _1=math.nan, _2=-math.inf), FLOAT64)], Rule(1.0, policy="sanitize"))
    bench.clip([Array(put_in(draw(60), _1=math.nan), FLOAT64)], Rule(1.0))
    # Every addition rounds up: the rounded norm is over its limit, and carries know better.
    values = np.full((1, BLOCK), math.sqrt(0.75 * 2.0**-52))
    values[:, :256] = 1
    array = Array(values, FLOAT64)
    norm, rest = _norm(array)
    ulp = float(np.spacing(norm))
    check(rest < -ulp, f"a norm of {norm} is short of {rest}")
    answer = bench.clip([array], Rule(norm - math.floor(-rest / ulp) * ulp))
    check(answer.read().carried, "the carries are not asked")
    bench.clip([array], Rule(norm / 2))


def _norm(array: Array) -> tuple[float, float]:
    """The rounded norm, and what it is short of."""
    host = [HostMemory().put(array.stored(), array.dtype)]
    measured = measure_carries(REFERENCE, host, measure(REFERENCE, host, 2.0), sanitize=False)
    norms = scope_norms(measured, np.zeros(1, np.int64), 1)
    return float(norms.root[0]), float(norms.rest[0])


# ---- scopes ----------------------------------------------------------------------------------------


@scenario
def rows(bench: Bench) -> None:
    """AGC: every row by its weights."""
    shapes = [(5, 300, FLOAT32), (3, BLOCK, FLOAT16), (2, BLOCK + 7, FLOAT64), (1, 40, BFLOAT16), (4, 0, FLOAT32)]
    grads = [Array(draw(r, n) * np.arange(1, r + 1)[:, None], dtype) for r, n, dtype in shapes]
    weights = [Array(draw(r, n, seed=1) * 30, dtype) for r, n, dtype in shapes]
    bench.clip(grads, Rule(0.05, weights=weights))
    weights[0] = Array(weights[0].values * 0, FLOAT32)
    weights[2] = Array(weights[2].values * 1e200, FLOAT64)
    bench.clip(grads, Rule(1e-2, weights=weights, eps=1e-2))
    bench.clip([grads[2]], Rule(1e-2, weights=[Array(np.full((2, BLOCK + 7), 1.7e308), FLOAT64)]))
    weights[1] = Array(put_in(weights[1].values, _9=math.inf), FLOAT16)
    answer = bench.clip(grads, Rule(0.05, weights=weights))
    check(answer.read().fault == "weights", "infinite weights go through")
    grads[3] = Array(put_in(grads[3].values, _1=math.nan), BFLOAT16)
    bench.clip(grads, Rule(0.05, weights=weights, policy="zero"))


@scenario
def groups(bench: Bench) -> None:
    """Scopes of several arrays, one of them of float64 alone; each array on its own, alike and not."""
    arrays = [Array(draw(n, seed=n), d) for n, d in ((300, FLOAT64), (70, FLOAT32), (BLOCK + 1, FLOAT64), (9, FLOAT16))]
    bench.clip(arrays, Rule(scopes=Scopes(np.array([0, 1, 0, 1]), np.array([0.2, 0.05]))))
    bench.clip(arrays, Rule(scopes=Scopes(np.array([1, 0, 1, 2]), np.array([0.02, 1e9, 1.0]))))
    bench.clip(arrays, Rule(scopes=Scopes(np.arange(4), np.full(4, 0.1))))
    bench.clip(arrays, Rule(scopes=Scopes(np.arange(4), np.array([0.1, 1e9, 0.3, 0.01])), inverse=1 / 3))
    bench.clip(arrays, Rule(0.1, inverse=0.7))


@scenario
def by_value(bench: Bench) -> None:
    """Clamped, by limits on both sides alike or not, over all types."""
    for bad in (0.0, math.inf, math.nan, -math.inf):
        arrays = [Array(put_in(draw(n), _0=0.5, _2=bad), d, s) for d in ALL for n, s in ((BLOCK, 0), (9, 1))]
        for policy in ("propagate", "sanitize"):
            for bounds in ((-0.02, 0.02), (-0.01, 0.03), (-math.inf, 0.02), (-1e300, 1e300), (0.0, math.inf)):
                bench.clip(arrays, Rule(bounds=bounds, policy=policy))
    arrays = [Array(draw(n), d) for d in ALL for n in (0, 20, BLOCK)]
    bench.clip(arrays, Rule(bounds=(-9.0, 9.0)))
    bench.clip(arrays, Rule(bounds=(-9.0, 8.0)))
    for inverse in (1 / 3, 4.0):
        bench.clip(arrays, Rule(bounds=(-0.02, 0.02), inverse=inverse, ord=1.0))
        bench.clip(arrays, Rule(bounds=(-0.01, 0.02), scale=Array(np.array([[1 / inverse]]), FLOAT32)))
    bench.clip([Array(draw(30) * 1e250, FLOAT64)], Rule(bounds=(-1e248, 1e248)))


@scenario
def policies(bench: Bench) -> None:
    """What becomes of infinities and NaNs, and of the rule that comes after."""
    clean = [Array(draw(BLOCK), FLOAT16), Array(draw(300), FLOAT64)]
    dirty = [
        Array(put_in(draw(BLOCK), _3=math.inf, _9=math.nan, _4000=-math.inf), FLOAT16),
        Array(put_in(draw(33), _8=math.nan), BFLOAT16, 1),
        Array(put_in(draw(BLOCK), _8=-math.inf), FLOAT32),
        Array(put_in(draw(BLOCK), _1=-math.inf, _2=math.nan), FLOAT64),
        Array(draw(40), FLOAT32),
        Array(draw(BLOCK), BFLOAT16, 1),
    ]
    for policy in ("raise", "skip", "zero", "sanitize", "propagate"):
        for rule in (Rule(0.1, policy=policy), Rule(bounds=(-0.02, 0.02), policy=policy)):
            bench.clip(clean, rule)
            first = bench.clip(dirty, rule)
            bench.clip(dirty, Rule(0.05), after=first)
            bench.clip(dirty, Rule(0.05, policy="zero"), after=first)
    bench.clip(dirty[4:], Rule(0.05), after=bench.clip(dirty[4:], Rule(0.1)))
    scopes = Scopes(np.arange(6), np.full(6, 1e60))
    bench.clip(dirty, Rule(scopes=scopes, policy="sanitize"))


@scenario
def loss_scales(bench: Bench) -> None:
    """A loss scale that the device alone knows, of every type; and what is none."""
    arrays = [Array(draw(300) * 64, FLOAT16), Array(draw(40) * 64, FLOAT64)]
    for dtype in ALL:
        for scale in (64.0, 48.0):
            bench.clip(arrays, Rule(0.1, scale=Array(np.array([[scale]]), dtype, 1)))
    for scale in (0.0, -2.0, math.inf, math.nan):
        rule = Rule(0.1, policy="zero", scale=Array(np.array([[scale]]), FLOAT32))
        bench.clip([*arrays, Array(np.array([[math.inf]]), FLOAT32)], rule)
        answer = bench.clip(arrays, rule)
        check(answer.read().fault == "loss_scale", f"a loss scale of {scale} goes through")


# ---- memory ----------------------------------------------------------------------------------------


@scenario
def strides(bench: Bench) -> None:
    """Packed, acted on, and put back where the answer asks for it; every size of an item."""
    for dtype, itemsize in ((FLOAT16, 2), (FLOAT32, 4), (FLOAT64, 8), (FLOAT64, 16)):
        base = Array(draw(1, 6 * 5 * itemsize // dtype.itemsize), dtype)
        for limit in (0.01, 1e3):
            through_strides(bench, base, itemsize, (5, 1, 6), (1, 7, 5), limit)
            through_strides(bench, base, itemsize, (3, 5), (10, 1), limit)
    through_strides(bench, Array(draw(1, 30), FLOAT16), 1, (3, 5, 2), (20, 2, 1), 0.01)
    through_strides(bench, Array(draw(1, 600), FLOAT32), 4, (300, 1), (2, 1), 1e-9, rows=300)


def through_strides(
    bench: Bench,
    base: Array,
    itemsize: int,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    limit: float,
    rows: int = 1,
) -> None:
    """``steps`` are strides in items."""
    array, kind = bench.memory.put(base), base.dtype.view
    items = base.stored().reshape(-1).view(np.dtype((np.void, itemsize)))
    axes = np.meshgrid(*(np.arange(n) * step for n, step in zip(shape, steps, strict=True)), indexing="ij")
    index = np.sum(axes, axis=0).reshape(-1)
    length = index.size * itemsize // kind.itemsize // rows
    like = Buffer(0, length, base.dtype, rows, "cuda:0", None, 1)
    strided = Strided(array.pointer, shape, tuple(step * itemsize for step in steps), itemsize, like)
    packed, again = bench.backend.pack(strided), bench.backend.pack(strided)
    host = [HostMemory().put(items[index].view(kind).reshape(rows, length), base.dtype)]
    scopes = Scopes(np.arange(rows), np.full(rows, limit))
    answer = bench.backend.decide([packed], Case(2.0, "propagate", 1.0, scopes=scopes))
    bench.backend.act([packed], [packed], answer)
    REFERENCE.apply(host, host, answer.read().actions)
    bench.machine.log.clear()
    bench.backend.unpack(packed, strided, answer, 0)
    for entry in bench.launches() if limit > 1 else ():
        written = entry.traffic.written if entry.traffic else ()
        check(not any(r[0] <= array.pointer < r[0] + r[1] for r in written), "an array that is left alone is written")
    expected = items.copy()
    expected[index] = host[0].as_numpy().reshape(-1).view(items.dtype)
    same("strided ", bench.memory.get(array)[0], expected.view(kind))
    bench.backend.unpack(again, strided, None, 0)
    same("put back ", bench.memory.get(array), base.stored())


# ---- the protocol's own passes ---------------------------------------------------------------------


@scenario
def protocol(bench: Bench) -> None:
    """``measure`` with bounds, units, exponents and carries that the caller chose."""
    arrays = [Array(draw(2, n, seed=n), d) for d in ALL for n in (BLOCK, 30)]
    device = [bench.memory.put(a) for a in arrays]
    host = [HostMemory().put(a.stored(), a.dtype) for a in arrays]
    count = 2 * len(arrays)
    float64 = np.repeat([a.dtype is FLOAT64 for a in arrays], 2)
    bounds = np.linspace(-0.03, -0.005, count), np.linspace(0.01, 0.03, count)
    exponents = np.where(float64, np.arange(count) - 13, 0).astype(np.int64)
    for what in (
        What(bounds=bounds),
        What(1.0, exponents=exponents, carry=True),
        What(exponents=exponents, carry=True, sanitize=True),
        What(exponents=exponents * 6000, carry=True),
    ):
        ours, theirs = bench.backend.measure(device, what), REFERENCE.measure(host, what)
        for name in ("sums", "largest", "infs", "nans", "outside", "carries"):
            same(f"{name} ", getattr(ours, name), getattr(theirs, name))


# ---- large -----------------------------------------------------------------------------------------


@scenario
def deep(bench: Bench) -> None:
    """A segment of more than 4096 blocks: two levels above them, a node without siblings among them."""
    base = draw(1 << 16)[0]
    bench.clip([Array(np.resize(base, BLOCK * BLOCK + 1), FLOAT16)], Rule(1e9), targets="")


@scenario
def crowd(bench: Bench) -> None:
    """More segments in a scope than a block of the tree holds."""
    bench.clip([Array(draw(BLOCK + 40, 1), FLOAT64)], Rule(0.01), targets="")
