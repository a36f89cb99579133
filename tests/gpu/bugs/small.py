"""More scenarios: for tables, for single bugs, and for lanes in which every launch takes its time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradclip_core.device import Case, Strided
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Buffer, Scopes
from tests.gpu.bugs.bench import Array, Bench, Rule, check, same
from tests.gpu.cupy.scenarios import ALL, BLOCK, SCENARIOS, draw, put_in, scenario, through_strides


@scenario
def tables(bench: Bench) -> None:
    """More arrays than go by value."""
    many = [Array(draw(n % 9, seed=n), ALL[n % 4], n % 2) for n in range(90)]
    bench.clip(many, Rule(0.1))


@scenario
def limits(bench: Bench) -> None:
    """A limit for each of many rows."""
    bench.clip([Array(draw(700, 2), FLOAT32)], Rule(scopes=Scopes(np.arange(700), np.linspace(1e-3, 0.1, 700))))


@scenario
def wide_tables(bench: Bench) -> None:
    """Every kernel that has a form for tables in memory."""
    many = [Array(draw(n % 5, seed=n), ALL[n % 4]) for n in range(81)]
    for rule in (Rule(0.01, ord=1.0), Rule(0.01, ord=3.5), Rule(bounds=(-0.01, 0.01))):
        bench.clip(many, rule)
    wide = [Array(draw(4, seed=n) * 1e180, FLOAT64) for n in range(81)]
    bench.clip(wide, Rule(1.0))
    bench.clip(wide, Rule(1.0, scopes=Scopes(np.arange(81) % 2, np.array([1e3, 1e300]))))


@scenario
def ties(bench: Bench) -> None:
    """Products halfway between two numbers of 16 bits."""
    steps = np.arange(1.0, 256.0, 2.0)[None, :]
    for dtype, unit in ((BFLOAT16, 2.0**-8), (FLOAT16, 2.0**-11)):
        for factor in (0.75, 0.625):
            bench.clip(
                [Array(1 + steps * 2 * unit, dtype), Array(1 + steps * 4 * unit, dtype)], Rule(1e9, inverse=factor)
            )


@scenario
def just_below(bench: Bench) -> None:
    """A norm within its limit by less than a product's rounding."""
    for dtype in (FLOAT32, FLOAT64):
        array = Array(draw(300), dtype)
        norm = float(np.sqrt((array.stored().astype(float) ** 2).sum()))
        for inverse in (1 / 3, 0.5):
            for away in (2.0**-50, 2.0**-25, 2.0**-20):
                bench.clip([array], Rule(norm * inverse * (1 + away), inverse=inverse))


@scenario
def second_strided(bench: Bench) -> None:
    """A strided array that is not the answer's first."""
    array = bench.memory.put(Array(np.full((1, 8), 9.0), FLOAT32))
    like = Buffer(0, 4, FLOAT32, 1, "cuda:0", None, 1)
    strided = Strided(array.pointer, (4,), (8,), 4, like)
    buffers = [bench.memory.put(Array(np.full((1, 3), 1e-3), FLOAT32)), bench.backend.pack(strided)]
    answer = bench.backend.decide(buffers, Case(2.0, "raise", 1.0, scopes=Scopes(np.arange(2), np.array([1.0, 3.0]))))
    bench.backend.act(buffers, buffers, answer)
    bench.backend.unpack(buffers[1], strided, answer, 1)
    actions = answer.read().actions
    expected = np.full((1, 8), 9.0, np.float32)
    expected[0, ::2] *= actions.coarse[1]
    check(actions.op.tolist() == [0, 1], f"op {actions.op}")
    same("strided ", bench.memory.get(array), expected)


@scenario
def two_culprits(bench: Bench) -> None:
    """Two arrays that are not finite, each by one element, seen by two warps."""
    bench.clip([Array(put_in(draw(BLOCK), _3=math.nan), FLOAT32) for _ in range(2)], Rule(policy="skip"), targets="")


@scenario
def halves(bench: Bench) -> None:
    """float16 in blocks and tails, aligned or not: clipped, and set to zero."""
    kinds = ((BLOCK, 0), (BLOCK, 0), (BLOCK, 1), (255, 1), (255, 0))
    arrays = [Array(draw(n), FLOAT16, shift) for n, shift in kinds]
    bench.clip(arrays, Rule(0.1))
    bench.clip([*arrays, Array(np.array([[math.nan]]), FLOAT16)], Rule(policy="zero"))


@scenario
def tiny(bench: Bench) -> None:
    """Factors of one half, of subnormals."""
    array = Array(draw(40) * 2.0**-125, FLOAT32)
    bench.clip([array], Rule(1e9, inverse=0.5), targets="memory")


@scenario
def every_kernel(bench: Bench) -> None:
    """Each kernel once or twice, over several warps that finish a segment together."""
    bad = Array(put_in(draw(BLOCK + 9), _3=math.nan, _4099=-math.inf), FLOAT32)
    two = [Array(draw(2 * BLOCK + 9), FLOAT16), bad, Array(draw(BLOCK + 9) * 1e200, FLOAT64)]
    bench.clip(two, Rule(0.1, policy="sanitize"), targets="memory")
    bench.clip(two[2:], Rule(0.1))
    bench.clip(two[:1], Rule(0.1, ord=3.5), targets="memory")
    bench.clip(two[:1], Rule(0.1, ord=1.0, weights=two[:1]), targets="memory")
    bench.clip(two, Rule(bounds=(-0.01, 0.02), policy="zero"), targets="memory")
    bench.clip(two[:1], Rule(bounds=(-0.01, 0.02)), targets="memory")
    bench.clip([Array(draw(3, seed=n), ALL[n % 4]) for n in range(82)], Rule(0.01), targets="memory")
    through_strides(bench, Array(draw(1, 60), FLOAT32), 4, (3, 5), (10, 1), 0.01)


def run(bench: Bench, names: Sequence[str]) -> None:
    """Some scenarios, each named in what it raises."""
    for name in names:
        try:
            SCENARIOS[name](bench)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
