"""What every projection promises, for every row of ``every.py``: a new set is held to all of it."""

from __future__ import annotations

import itertools
import math
import mmap
import os

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.testing.protect import dies_when_protected

from .drawing import (
    DTYPES,
    SCOPES,
    WIDE,
    bits,
    close,
    draw,
    drawn,
    every_set,
    info_of,
    norm,
    project,
    same,
    slack,
    times,
)
from .every import EVERY, Arrays, flat

# ---- where the result is ---------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_feasible_and_certified(name: str, dtype: str) -> None:
    example, clipped = EVERY[name], 0
    for size in (0.01, 0.3, 0.9):
        for grads, onto in drawn(name, dtype, size):
            made, info = info_of(grads, onto)
            assert [(y.shape, y.dtype) for y in made.values()] == [(g.shape, g.dtype) for g in grads.values()]
            assert example.excess(onto, made) <= slack(example, dtype) + 2.0**-48
            assert info.certificate is not None
            assert 0 <= info.certificate.feasibility <= slack(example, dtype) + 2.0**-46
            # The rounding of y counts beside what was moved, which may be little.
            moved = norm(flat(grads) - flat(made))
            share = max(1.0, norm(flat(made)) / moved) if moved else 1.0
            assert 0 <= info.certificate.optimality <= example.certified(dtype) * share
            if info.certificate.moved is not None:
                assert math.isclose(info.certificate.moved, moved, rel_tol=1e-6, abs_tol=slack(example, dtype) * 10)
            clipped += info.clipped
    assert clipped, "nothing was projected"


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_variational_inequality(name: str, dtype: str) -> None:
    """``<g - y, z - y> <= 0`` for points z of the set: projections of random points, near and far."""
    example = EVERY[name]
    for grads, onto in drawn(name, dtype):
        g, y = flat(grads), flat(project(grads, onto))
        for seed, scale in itertools.product((11, 12, 13), (0.05, 1.0, 30.0)):
            z = flat(project(draw(example, "float64", seed, scale), onto))
            assert (g - y) @ (z - y) <= slack(example, dtype) * norm(g - y) * (norm(z) + norm(y) + norm(g))


@every_set
def test_nearer_than_any_other_point_of_the_set(name: str) -> None:
    example = EVERY[name]
    for grads, onto in drawn(name, "float64"):
        g, y = flat(grads), flat(project(grads, onto))
        for seed, scale in itertools.product((11, 12), (0.05, 0.3, 1.0)):
            z = flat(project(draw(example, "float64", seed, scale), onto))
            for step in (1.0, 0.1, 0.001):
                assert norm(g - y) <= norm(g - (y + step * (z - y))) + slack(example, "float64") * norm(g)


# ---- what the map does -----------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", SCOPES)
def test_twice_is_once(name: str, dtype: str, scope: str) -> None:
    example = EVERY[name]
    for grads, onto in drawn(name, dtype):
        once = project(grads, onto, scope)
        twice = project(once, onto, scope)
        if dtype in WIDE and example.idempotent:
            assert bits(twice) == bits(once)
        assert close(twice, once, example, dtype, norm(flat(grads)))


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_point_inside_is_left_alone_and_not_written(name: str, dtype: str) -> None:
    """The memory is write-protected meanwhile: small gradients, and what projecting settles on."""
    example, inside = EVERY[name], 0
    grads = draw(example, dtype, 3)
    onto = example.make(grads, 1.0)
    settled = grads
    for _ in range(4):
        settled = project(settled, onto)
    for point in (times(grads, 2.0**-6), settled):
        if info_of(point, onto)[1].clipped:
            continue
        inside += 1
        made, info = info_of(point, onto)
        assert bits(made) == bits(point)
        assert info.certificate is not None
        assert (info.certificate.feasibility, info.certificate.optimality, info.certificate.moved) == (0, 0, 0)
        assert written(point, onto) is not True
    assert inside or not example.idempotent or dtype not in WIDE


def written(point: Arrays, onto: sets.Set, loss_scale: float = 1.0) -> bool | None:
    """Whether projecting in place writes to any of the arrays, whose pages are theirs alone."""
    pages = mmap.mmap(-1, mmap.PAGESIZE * (1 + sum(x.nbytes for x in point.values()) // mmap.PAGESIZE))
    grads, start = {}, 0
    for path, x in point.items():
        grads[path] = np.frombuffer(pages, x.dtype, x.size, start).reshape(x.shape)
        grads[path][...] = x
        start += x.nbytes

    def call() -> None:
        for scope in ("global", "array") if len(point) == 1 else ("global",):
            gc.clip_by_projection_(grads, onto, scope, loss_scale=loss_scale, backend="numpy")

    return dies_when_protected(np.frombuffer(pages, np.uint8).ctypes.data, len(pages), call)


def test_the_protection_would_notice() -> None:
    point = draw(EVERY["l1"], "float64", 3)
    # The call is made once unprotected: what it leaves is outside again, by the loss scale.
    expected = True if hasattr(os, "fork") else None
    assert written(point, sets.L1Ball(1e-3), loss_scale=0.5) is expected


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_expansive(name: str, dtype: str) -> None:
    example = EVERY[name]
    for grads, onto in drawn(name, dtype):
        for step in (2.0, 0.1, 1e-3):
            other = {
                path: np.asarray(g + np.asarray(step * d, g.dtype), g.dtype)
                for (path, g), d in zip(grads.items(), draw(example, "float64", 21).values(), strict=True)
            }
            distance = norm(flat(grads) - flat(other))
            apart = norm(flat(project(grads, onto)) - flat(project(other, onto)))
            assert apart <= distance + slack(example, dtype) * (norm(flat(grads)) + norm(flat(other)))


@every_set
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("c", [4.0, 2.0**-9, 3.0])
def test_scaling(name: str, dtype: str, c: float) -> None:
    """``P_cC(c·g) = c·P_C(g)``, to the bit for powers of two."""
    example = EVERY[name]
    if not example.scales:
        return
    for grads, onto in drawn(name, dtype):
        expected = times(project(grads, onto), c)
        made = project(times(grads, c), example.make(grads, 0.3 * c))
        if math.frexp(c)[0] == 0.5 and example.exact:
            assert same(made, expected)
        assert close(made, expected, example, dtype, c * norm(flat(grads)))


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd(name: str, dtype: str) -> None:
    example = EVERY[name]
    if not example.odd:
        return
    for grads, onto in drawn(name, dtype):
        expected = times(project(grads, onto), -1.0)
        made = project(times(grads, -1.0), onto)
        if example.exact:
            assert same(made, expected)
        assert close(made, expected, example, dtype, norm(flat(grads)))


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_permutations(name: str, dtype: str) -> None:
    example = EVERY[name]
    if not example.permutes:
        return
    for grads, onto in drawn(name, dtype):
        orders = {path: np.random.default_rng(g.size).permutation(g.size) for path, g in grads.items()}
        shuffled = {path: g.ravel()[orders[path]].reshape(g.shape) for path, g in grads.items()}
        expected = {path: y.ravel()[orders[path]].reshape(y.shape) for path, y in project(grads, onto).items()}
        assert close(project(shuffled, onto), expected, example, dtype, norm(flat(grads)))
