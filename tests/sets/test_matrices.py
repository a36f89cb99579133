"""The spectral and the nuclear ball, against matrices whose singular vectors are known to longdouble."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc
from gradclip_core import sets
from gradclip_core.errors import GradClipError, InvalidArgumentError

Array = npt.NDArray[Any]


def proof(info: gc.ClipInfo) -> sets.Certificate:
    """The certificate, which every projection has."""
    assert info.certificate is not None
    return info.certificate


DTYPES = [np.float64, np.float32, np.float16]
MADE = [sets.SpectralBall(0.9), sets.SpectralBall(0.9, method="newton_schulz"), sets.NuclearBall(1.7)]


def rotation(n: int, rng: np.random.Generator) -> Array:
    """An orthogonal matrix to longdouble's roundoff: a product of reflections."""
    q = np.eye(n, dtype=np.longdouble)
    for _ in range(min(n, 6)):
        v = rng.standard_normal(n).astype(np.longdouble)
        q = q - np.outer(q @ v, 2 * v / (v @ v))
    return q


def assemble(m: int, n: int, s: Array, rng: np.random.Generator) -> tuple[Array, Any]:
    """A matrix of given singular values, and the function that makes the one with others."""
    u, v = rotation(m, rng)[:, : s.size], rotation(n, rng)[:, : s.size]

    def of(values: Array) -> Array:
        return (u * values.astype(np.longdouble)) @ v.T

    return of(s), of


def on_l1(s: Array, radius: float) -> Array:
    """The projection of falling non-negative numbers on ``Σ <= radius``, in longdouble."""
    sums = np.cumsum(s.astype(np.longdouble)) - radius
    count = np.nonzero(s * np.arange(1, s.size + 1) > sums)[0][-1] + 1
    found: Array = np.maximum(s - max(sums[count - 1] / count, np.longdouble(0)), 0)
    return found


def norm_of(onto: Any, matrix: Array) -> float:
    """The set's norm, in float64."""
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return float(s[0] if isinstance(onto, sets.SpectralBall) else s.sum())


@pytest.mark.parametrize("decades", [0.0, 3.0, 16.0])
@pytest.mark.parametrize("shape", [(5, 5), (12, 7), (7, 12), (40, 40), (60, 90), (9, 1)])
def test_it_is_the_projection_to_the_error_that_is_stated(shape: tuple[int, int], decades: float) -> None:
    rng = np.random.default_rng(7)
    s = 10.0 ** -np.linspace(0, decades, min(shape)) * 3.0
    matrix, of = assemble(*shape, s, rng)
    given = matrix.astype(np.float64)
    unit = float(s[0])
    for radius in (2.9, 1.0, 1e-3):
        got, info = gc.clip_by_projection(given, sets.SpectralBall(radius))
        assert np.linalg.norm((got - of(np.minimum(s, radius))).astype(float)) <= 2.0**-44 * min(shape) ** 0.5 * unit
        assert proof(info).optimality < 1e-11
        got, info = gc.clip_by_projection(given, sets.NuclearBall(radius))
        error = np.linalg.norm((got - of(on_l1(s, radius))).astype(float))
        assert error <= 2.0**-44 * min(shape) ** 0.5 * unit
        assert proof(info).optimality < 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_every_dtype_stays_inside_and_in_place_is_the_same(onto: Any, dtype: Any, backend: str) -> None:
    rng = np.random.default_rng(3)
    roundoff = float(np.finfo(dtype).eps) / 2
    allowed = 1 + (roundoff if dtype == np.float16 else 0.0)
    for shape in ((6, 4), (4, 6), (20, 20), (1, 1)):
        g = (3 * rng.standard_normal(shape)).astype(dtype)
        y, info = gc.clip_by_projection(g, onto, backend=backend)
        assert y.dtype == dtype
        assert norm_of(onto, y) <= onto.radius * allowed
        assert proof(info).feasibility <= allowed - 1
        assert proof(info).moved == pytest.approx(np.linalg.norm(g.astype(float) - y.astype(float)), rel=1e-9)
        best = gc.clip_by_projection(g.astype(np.float64), onto)[0]
        assert np.linalg.norm(y - best) <= (4 * roundoff + 1e-9) * (np.linalg.norm(best) + onto.radius)
        written = g.copy()
        assert gc.clip_by_projection_(written, onto, backend=backend) == info
        assert np.array_equal(written, y)
        if dtype != np.float16:
            again, second = gc.clip_by_projection(y, onto, backend=backend)
            assert np.array_equal(again, y)
            assert not second.clipped


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_bfloat16_is_projected_in_float64_and_rounded_once(onto: Any) -> None:
    torch = pytest.importorskip("torch")
    g = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16) * 2
    y, _ = gc.clip_by_projection(g, onto)
    best = gc.clip_by_projection(g.double().numpy(), onto)[0]
    assert y.dtype == torch.bfloat16
    assert np.abs(y.double().numpy() - best).max() <= 2.0**-7 * np.abs(best).max()
    assert norm_of(onto, y.double().numpy()) <= onto.radius * (1 + 2.0**-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_in_a_stack_only_matrices_outside_change(onto: Any, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    g = rng.standard_normal((2, 3, 5, 4)).astype(dtype)
    small = np.zeros((2, 3), bool)
    small[0, 1] = small[1, 2] = True
    g[small] *= dtype(0.03)
    y, info = gc.clip_by_projection(g, onto)
    assert info.clipped
    assert np.array_equal(y[small], g[small])
    for matrix, before in zip(y[~small], g[~small], strict=True):
        assert not np.array_equal(matrix, before)
        alone = gc.clip_by_projection(before.copy(), onto)[0]
        assert np.allclose(matrix.astype(float), alone.astype(float), rtol=0, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_inside_nothing_is_written(onto: Any) -> None:
    g = np.random.default_rng(5).standard_normal((6, 4))
    g *= onto.radius / norm_of(onto, g) * (1 - 1e-14)
    g.flags.writeable = False
    y, info = gc.clip_by_projection({"a": g, "zero": np.zeros((3, 2)), "empty": np.zeros((0, 4))}, onto)
    assert np.array_equal(y["a"], g)
    assert (info.clipped, proof(info).optimality, proof(info).moved) == (False, 0.0, 0.0)


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_each_array_is_a_scope_of_its_own(onto: Any) -> None:
    """An array that is inside keeps its memory, whatever scope is named, though another is outside."""
    rng = np.random.default_rng(5)
    outside, inside = rng.standard_normal((6, 4)), rng.standard_normal((5, 5)) * 1e-3
    results = []
    cases: list[tuple[str, Any]] = [("global", None), ("array", None), ("group", lambda path: "all")]
    for scope, groups in cases:
        grads = {"a": outside.copy(), "b": inside.copy()}
        gc.clip_by_projection_(grads, onto, scope, groups=groups)
        assert np.array_equal(grads["b"], inside)
        results.append(grads["a"])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    with pytest.raises(InvalidArgumentError):
        gc.clip_by_projection({"a": outside}, onto, "group", groups={"x": ["nowhere"]})


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_any_layout_gives_the_same_matrix(onto: Any) -> None:
    rng = np.random.default_rng(5)
    g = rng.standard_normal((6, 9))
    best = gc.clip_by_projection(g, onto)[0]
    wide = np.zeros((12, 27))
    layouts = [np.asfortranarray(g), wide[::2, ::3], g.T.copy().T, np.ascontiguousarray(g[::-1])[::-1]]
    layouts[1][...] = g
    for laid in layouts:
        assert np.allclose(gc.clip_by_projection(laid, onto)[0], best, rtol=0, atol=1e-11)
        gc.clip_by_projection_(laid, onto)
        assert np.allclose(laid, best, rtol=0, atol=1e-11)
    stack = np.asfortranarray(rng.standard_normal((3, 4, 5)))
    each = [gc.clip_by_projection(matrix.copy(), onto)[0] for matrix in stack]
    assert np.allclose(gc.clip_by_projection(stack, onto)[0], each, rtol=0, atol=1e-11)


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_the_loss_scale_is_divided_out_first(onto: Any) -> None:
    rng = np.random.default_rng(5)
    g = rng.standard_normal((3, 5, 4))
    g[1] *= 1e-3
    for scale in (1024.0, 3.0):
        y, info = gc.clip_by_projection(g * scale, onto, loss_scale=scale)
        assert np.allclose(y, gc.clip_by_projection(g, onto)[0], rtol=0, atol=1e-11)
        assert proof(info).optimality < 1e-10


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("kind", [sets.SpectralBall, sets.NuclearBall, lambda r: sets.SpectralBall(r, "newton_schulz")])
def test_neither_tiny_nor_huge_matrices_lose_anything(kind: Any, size: float) -> None:
    g = np.random.default_rng(5).standard_normal((5, 4))
    y, info = gc.clip_by_projection(g * size, kind(1.3 * size))
    assert np.allclose(y / size, gc.clip_by_projection(g, kind(1.3))[0], rtol=0, atol=1e-10)
    assert proof(info).optimality < 1e-10


def test_the_nuclear_ball_gives_low_rank() -> None:
    g = np.random.default_rng(5).standard_normal((20, 15))
    s = np.linalg.svd(gc.clip_by_projection(g, sets.NuclearBall(2.0))[0], compute_uv=False)
    assert np.count_nonzero(s > 1e-12) < 5


def test_a_plan_writes_the_same() -> None:
    g = np.random.default_rng(5).standard_normal((3, 5, 4))
    made = gc.plan(g, gc.Project(sets.NuclearBall(1.0)))
    y, info = gc.clip_by_projection(g, sets.NuclearBall(1.0))
    assert np.array_equal(made.apply(g), y)
    assert made.info == info


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_vectors_are_refused_before_anything_is_written(onto: Any, shape: tuple[int, ...]) -> None:
    grads = {"w": 9 * np.ones((3, 3)), "b": np.ones(shape)}
    with pytest.raises(InvalidArgumentError, match=r"array 'b': its shape is .* a set of matrices"):
        gc.clip_by_projection_(grads, onto)
    assert (grads["w"] == 9).all()


@pytest.mark.parametrize("onto", MADE, ids=repr)
def test_matrices_with_nan_follow_the_policy(onto: Any) -> None:
    g = np.random.default_rng(5).standard_normal((4, 4))
    g[1, 2] = np.nan
    with pytest.raises(gc.NonFiniteGradientError):
        gc.clip_by_projection(g, onto)
    assert np.isnan(gc.clip_by_projection(g, onto, nonfinite="propagate")[0]).all()
    clean = np.nan_to_num(g)
    got = gc.clip_by_projection(g, onto, nonfinite="sanitize")[0]
    assert np.allclose(got, gc.clip_by_projection(clean, onto)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf, "1", None])
@pytest.mark.parametrize("kind", [sets.SpectralBall, sets.NuclearBall])
def test_a_radius_is_a_positive_number(kind: Any, radius: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="radius"):
        kind(radius)


@pytest.mark.parametrize("method", ["SVD", "", None, 3])
def test_a_method_is_one_of_two(method: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="svd, newton_schulz"):
        sets.SpectralBall(1.0, method=method)


def test_where_lapack_fails_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **how: Any) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fail)
    g = 9 * np.ones((3, 3))
    with pytest.raises(GradClipError, match="LAPACK found no SVD"):
        gc.clip_by_projection_(g, sets.NuclearBall(1.0))
    assert (g == 9).all()
