"""What every projection promises, for every row of ``every.py``: a new set is held to all of it."""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import protocol, sets
from gradclip_core.testing.protect import dies_when_protected

from .every import EVERY, Arrays, Example, flat

DTYPES = tuple(protocol.DTYPES)
WIDE = ("float32", "float64")
SCOPES = ("global", "group", "array")
SEEDS = (1, 2)

every_set = pytest.mark.parametrize("name", EVERY)


def numpy_dtype(dtype: str) -> Any:
    if dtype == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(dtype)


def draw(example: Example, dtype: str, seed: int, scale: float = 1.0) -> Arrays:
    """Normal numbers, with some of them zeros and some of them equal."""
    rng = np.random.default_rng(seed)
    grads: Arrays = {}
    for number, shape in enumerate(example.shapes):
        x = scale * rng.standard_normal(shape)
        if x.ndim == 1 and x.size > 8:
            x[3], x[5:8] = 0.0, x[5]
        grads[f"layer{number}"] = np.array(x, numpy_dtype(dtype))
    return grads


def project(grads: Arrays, onto: sets.Set, scope: str = "global", **how: Any) -> Arrays:
    return info_of(grads, onto, scope, **how)[0]


def info_of(grads: Arrays, onto: sets.Set, scope: str = "global", **how: Any) -> tuple[Arrays, gc.ClipInfo]:
    groups = (lambda path: path == "layer0") if scope == "group" else None
    made, info = gc.clip_by_projection(grads, onto, scope, groups=groups, **{"backend": "numpy", **how})
    return made, info


def bits(grads: Arrays) -> list[bytes]:
    return [np.ascontiguousarray(g).tobytes() for g in grads.values()]


def same(a: Arrays, b: Arrays) -> bool:
    """Equal numbers; -0 and 0 are."""
    return all(np.array_equal(x, b[path]) for path, x in a.items())


def times(grads: Arrays, factor: float) -> Arrays:
    return {path: np.asarray(g * g.dtype.type(factor), g.dtype) for path, g in grads.items()}


def roundoff(dtype: str) -> float:
    return protocol.DTYPES[dtype].roundoff


def slack(example: Example, dtype: str) -> float:
    """What the set's tolerance and the rounding of each element leave open, relatively."""
    return example.tolerance + 4 * roundoff(dtype)


def norm(x: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(x))


def close(a: Arrays, b: Arrays, example: Example, dtype: str, size: float) -> bool:
    return norm(flat(a) - flat(b)) <= slack(example, dtype) * size


def drawn(name: str, dtype: str, size: float = 0.3, seeds: tuple[int, ...] = SEEDS) -> Iterator[tuple[Arrays, Any]]:
    """Gradients outside of a set, and the set."""
    example = EVERY[name]
    for seed in seeds:
        grads = draw(example, dtype, seed)
        yield grads, example.make(grads, size)


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
        for number in range(len(point)):
            assert written(point, number, onto) is not True
    assert inside or not example.idempotent or dtype not in WIDE


def written(point: Arrays, number: int, onto: sets.Set, loss_scale: float = 1.0) -> bool | None:
    """Whether projecting in place writes to one of the arrays, which has a page of its own."""
    path, x = list(point.items())[number]
    page = mmap.mmap(-1, mmap.PAGESIZE * (1 + x.nbytes // mmap.PAGESIZE))
    alone = np.frombuffer(page, x.dtype, x.size).reshape(x.shape)
    alone[...] = x
    grads = {**{other: y.copy() for other, y in point.items()}, path: alone}

    def call() -> None:
        for scope in ("global", "array") if len(point) == 1 else ("global",):
            gc.clip_by_projection_(grads, onto, scope, loss_scale=loss_scale, backend="numpy")

    return dies_when_protected(alone.ctypes.data, len(page), call)


def test_the_protection_would_notice() -> None:
    point = draw(EVERY["l1"], "float64", 3)
    # The call is made once unprotected: what it leaves is outside again, by the loss scale.
    expected = True if hasattr(os, "fork") else None
    assert written(point, 0, sets.L1Ball(1e-3), loss_scale=0.5) is expected


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


# ---- Moreau ----------------------------------------------------------------------------------------


def by_bisection(excess: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def prox_of_largest_magnitude(g: Any, r: float) -> Any:
    """Of ``r·max |x_i|``: the largest magnitudes are cut down until ``r`` is gone."""
    if np.abs(g).sum() <= r:
        return np.zeros_like(g)
    top = by_bisection(lambda t: float(np.maximum(np.abs(g) - t, 0).sum()) - r, 0.0, float(np.abs(g).max()))
    return np.clip(g, -top, top)


def prox_of_largest(g: Any, s: float) -> Any:
    """Of ``s·max x_i``."""
    low = float(g.min()) - s
    return np.minimum(g, by_bisection(lambda t: float(np.maximum(g - t, 0).sum()) - s, low, float(g.max())))


def moreau(g: Any, name: str, onto: Any) -> Any:
    """The prox of the support function of a set, written down on its own; None where there is no such row."""
    if name == "l1":
        return prox_of_largest_magnitude(g, onto.radius)
    if name == "simplex":
        return prox_of_largest(g, onto.total)
    if name == "linf":
        return np.sign(g) * np.maximum(np.abs(g) - onto.radius, 0)
    if name == "l2":
        return g * max(0.0, 1 - onto.radius / norm(g))
    if name == "box":
        return np.maximum(g - onto.high, 0) + np.minimum(g - onto.low, 0)
    return None


@pytest.mark.parametrize("name", ["box", "l1", "l2", "linf", "simplex"])
@pytest.mark.parametrize("size", [0.05, 0.5, 3.0])
def test_moreau(name: str, size: float) -> None:
    """``P_C(g) + prox of C's support function (g) = g``."""
    for grads, onto in drawn(name, "float64", size):
        g = flat(grads)
        assert np.allclose(flat(project(grads, onto)) + moreau(g, name, onto), g, rtol=1e-13, atol=1e-13)


def test_moreau_for_cones() -> None:
    """A half-space through 0, and the ray of its normal; a hyperplane through 0, and its line."""
    if not hasattr(sets, "HalfSpace"):
        pytest.fail("there are no half-spaces")
    for seed in range(10):
        grads, normal = (draw(EVERY["l1"], "float64", s) for s in (seed, seed + 100))
        g, a = flat(grads), flat(normal)
        share = float((a @ g) / (a @ a))
        assert np.allclose(
            flat(project(grads, sets.HalfSpace(normal, 0.0))) + max(0.0, float(share)) * a, g, rtol=1e-12, atol=1e-12
        )
        assert np.allclose(flat(project(grads, sets.Hyperplane(normal, 0.0))) + share * a, g, rtol=1e-12, atol=1e-12)


# ---- every way to ask ------------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", SCOPES)
def test_in_place_new_and_planned_are_one(name: str, dtype: str, scope: str, backend: str) -> None:
    groups = (lambda path: path == "layer0") if scope == "group" else None
    for size in (0.3, 4.0):
        for grads, onto in drawn(name, dtype, size, SEEDS[:1]):
            before = bits(grads)
            made, info = info_of(grads, onto, scope, backend=backend)
            plan = gc.plan(grads, gc.Project(onto, scope, groups), backend=backend)
            assert bits(grads) == before
            assert plan.info == info
            assert bits(plan.apply(grads)) == bits(made)
            here, there = ({path: g.copy() for path, g in grads.items()} for _ in range(2))
            assert gc.clip_by_projection_(here, onto, scope, groups=groups, backend=backend) == info
            plan.apply_(there)
            assert bits(here) == bits(made)
            assert bits(there) == bits(made)


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_scopes_are_each_on_their_own(name: str, dtype: str) -> None:
    for grads, onto in drawn(name, dtype):
        of_arrays, of_groups = project(grads, onto, "array"), project(grads, onto, "group")
        for path, g in grads.items():
            assert bits(project({path: g}, onto)) == bits({path: of_arrays[path]})
        first, rest = {"layer0": grads["layer0"]}, {path: g for path, g in grads.items() if path != "layer0"}
        for part in (first, rest):
            if part:
                assert bits(project(part, onto)) == bits({path: of_groups[path] for path in part})


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.jit
def test_backends_agree(name: str, dtype: str) -> None:
    pytest.importorskip("numba")
    example = EVERY[name]
    for size in (0.05, 0.6):
        for grads, onto in drawn(name, dtype, size):
            ours, info = info_of(grads, onto, backend="numba_cpu")
            theirs, other = info_of(grads, onto, backend="numpy")
            if example.exact:
                assert bits(ours) == bits(theirs)
                assert info.certificate == other.certificate
                assert (info.norm, info.clipped_norm) == (other.norm, other.clipped_norm)
            assert close(ours, theirs, example, dtype, norm(flat(grads)))


@every_set
def test_memory_of_any_layout(name: str) -> None:
    """Fortran order, strides, a read-only array: the same numbers."""
    example = EVERY[name]
    for grads, onto in drawn(name, "float32"):
        expected = project(grads, onto)
        for lay in (np.asfortranarray, strided, read_only):
            made = project({path: lay(g) for path, g in grads.items()}, onto)
            assert close(made, expected, example, "float32", norm(flat(grads)))


def strided(x: Any) -> Any:
    return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x.copy()


def read_only(x: Any) -> Any:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


# ---- loss scale and policies -----------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.3, 4.0])
def test_loss_scale(name: str, dtype: str, size: float) -> None:
    """A power of two is no other question; 3 is one more rounding of each element."""
    example = EVERY[name]
    for grads, onto in drawn(name, dtype, size):
        expected, info = info_of(grads, onto)
        for scale in (2.0**6, 0.5):
            made, seen = info_of(times(grads, scale), onto, loss_scale=scale)
            assert same(made, expected)
            assert (seen.norm, seen.clipped_norm) == (info.norm, info.clipped_norm)
            assert seen.certificate == info.certificate
        made = project(grads, onto, loss_scale=3.0)
        third = {path: np.asarray(g, np.float64) / 3 for path, g in grads.items()}
        assert close(made, project(third, onto), example, dtype, norm(flat(grads)))


def spoiled(grads: Arrays) -> Arrays:
    spoiled = {path: g.copy() for path, g in grads.items()}
    flattened = spoiled["layer0"].reshape(-1)
    flattened[0] = np.nan
    flattened[-1] = -np.inf
    return spoiled


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_raise_skip_and_zero(name: str, dtype: str, backend: str) -> None:
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        for policy in ("raise", "skip", "zero"):
            bad = spoiled(grads)
            if policy == "raise":
                with pytest.raises(gc.NonFiniteGradientError, match="'layer0'"):
                    gc.clip_by_projection_(bad, onto, backend=backend)
            else:
                info = gc.clip_by_projection_(bad, onto, nonfinite=policy, backend=backend)
                assert (info.skipped, info.nonfinite, info.certificate) == (True, 2, None)
            if policy == "zero":
                assert not any(np.asarray(g, np.float64).any() for g in bad.values())
            else:
                assert bits(bad) == bits(spoiled(grads))


@every_set
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sanitize(name: str, dtype: str) -> None:
    """As if NaNs had been 0, and infinities the largest finite value."""
    example = EVERY[name]
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        mended = spoiled(grads)
        flattened = mended["layer0"].reshape(-1)
        flattened[0] = 0.0
        flattened[-1] = -protocol.DTYPES[dtype].largest
        made, info = info_of(spoiled(grads), onto, nonfinite="sanitize")
        assert (info.nonfinite, info.skipped) == (2, False)
        expected = project(mended, onto)
        if example.exact:
            assert same(made, expected)
        assert close(made, expected, example, dtype, norm(flat(mended)))


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_propagate(name: str, dtype: str) -> None:
    """A scope with a NaN has NaNs, and no certificate; the others are as they would be without it."""
    for grads, onto in drawn(name, dtype, seeds=SEEDS[:1]):
        made, info = info_of(spoiled(grads), onto, "array", nonfinite="propagate")
        assert np.isnan(made["layer0"].reshape(-1)[0])
        assert info.certificate is None
        expected = project(grads, onto, "array")
        for path in grads:
            if path != "layer0":
                assert bits({path: made[path]}) == bits({path: expected[path]})
