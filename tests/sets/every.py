"""Every set once, with what the general tests have to know of it. A new set adds its row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_core import sets
from gradclip_core.protocol import DTYPES

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Example:
    """One set. ``make(grads, size)`` gives one of about ``size`` times the reach of a gradient of unit normals."""

    make: Callable[[Arrays, float], sets.Set]
    excess: Callable[[Any, Arrays], float]
    """How far a point is outside, relatively, in float64 and by another way than the library's; 0 or less inside."""
    exact: bool
    """Whether all backends give the same bits."""
    tolerance: float = 2.0**-50
    """Relative, of the projection in float64, where it is not rounding alone."""
    shapes: tuple[tuple[int, ...], ...] = ((7, 5), (30,), ())
    """What gradients the general tests make for it."""
    permutes: bool = True
    """Whether permuting the elements of an array permutes the result."""
    odd: bool = True
    """Whether the projection of -g is minus that of g."""
    scales: bool = True
    """Whether ``make`` with ``c·size`` is the set with every length c times as long."""
    idempotent: bool = True
    """Whether projecting twice equals projecting once bit for bit, for float32 and float64."""
    gap: float = 32.0
    """How many roundoffs the certificate's optimality may be, besides ``tolerance``."""

    def certified(self, dtype: str) -> float:
        """The largest optimality residual of a projection that is one."""
        return self.tolerance + self.gap * DTYPES[dtype].roundoff


def flat(grads: Arrays) -> npt.NDArray[np.float64]:
    """All elements, in float64."""
    return np.concatenate([np.asarray(g, np.float64).ravel() for g in grads.values()])


def units(grads: Arrays) -> list[npt.NDArray[np.float64]]:
    """The rows of each array; what has at most one axis is one row."""
    made = [np.asarray(g, np.float64) for g in grads.values()]
    return [row.ravel() for g in made for row in (g if g.ndim > 1 else [g])]


def normal(grads: Arrays) -> Arrays:
    """A vector of the gradients' structure, the same for the same shapes."""
    rng = np.random.default_rng(4)
    return {name: rng.standard_normal(np.shape(g)) for name, g in grads.items()}


def along(onto: Any, grads: Arrays) -> float:
    """``<a, y> - b``, relative to ``‖a‖·‖y‖`` and ``|b|``, in extended precision."""
    a, y = flat(onto.a).astype(np.longdouble), flat(grads).astype(np.longdouble)
    size = np.linalg.norm(flat(onto.a)) * np.linalg.norm(flat(grads)) + abs(onto.b)
    return float((a @ y - onto.b) / (size or 1.0))


def singular_values(grads: Arrays) -> list[npt.NDArray[np.float64]]:
    """Those of each matrix."""
    found = [np.linalg.svd(np.asarray(g, np.float64), compute_uv=False) for g in grads.values()]
    return [row for s in found for row in s.reshape(-1, s.shape[-1])]


EVERY: dict[str, Example] = {
    "box": Example(
        lambda grads, size: sets.Box(-0.25 * size, 0.5 * size),
        lambda onto, grads: float(max(-(flat(grads) - onto.low).min(), (flat(grads) - onto.high).max())),
        exact=True,
        odd=False,
    ),
    "ellipsoid": Example(
        lambda grads, size: sets.Ellipsoid(
            {name: np.abs(w) + 0.1 for name, w in normal(grads).items()}, size * 0.7 * flat(grads).size ** 0.5
        ),
        lambda onto, grads: float(np.linalg.norm(np.sqrt(flat(onto.weights)) * flat(grads)) / onto.radius - 1),
        exact=True,
        tolerance=2.0**-43,
        permutes=False,
        shapes=((7, 5), (30,)),
    ),
    "halfspace": Example(
        lambda grads, size: sets.HalfSpace(normal(grads), -4 * size * flat(grads).size ** 0.5),
        along,
        exact=True,
        tolerance=2.0**-44,
        permutes=False,
        odd=False,
        shapes=((7, 5), (30,)),
    ),
    "hyperplane": Example(
        lambda grads, size: sets.Hyperplane(normal(grads), 4 * size * flat(grads).size ** 0.5),
        lambda onto, grads: abs(along(onto, grads)),
        exact=True,
        tolerance=2.0**-44,
        permutes=False,
        odd=False,
        shapes=((7, 5), (30,)),
    ),
    "intersection": Example(
        lambda grads, size: sets.Intersection(
            sets.L1Ball(size * 0.5 * flat(grads).size), sets.LinfBall(size), sets.L2Ball(size * flat(grads).size ** 0.5)
        ),
        lambda onto, grads: max(
            float(np.abs(flat(grads)).sum() / onto.sets[0].radius - 1),
            float(np.abs(flat(grads)).max() / onto.sets[1].radius - 1),
            float(np.linalg.norm(flat(grads)) / onto.sets[2].radius - 1),
        ),
        exact=False,
        tolerance=1e-8,
    ),
    "l1": Example(
        lambda grads, size: sets.L1Ball(size * 0.8 * flat(grads).size),
        lambda onto, grads: float(np.abs(flat(grads)).sum() / onto.radius - 1),
        exact=True,
    ),
    "l1inf": Example(
        lambda grads, size: sets.L1InfBall(size * 0.7 * len(grads)),
        lambda onto, grads: sum(float(np.abs(g).max(initial=0)) for g in grads.values()) / onto.radius - 1,
        exact=True,
        tolerance=2.0**-44,
    ),
    "l1inf, rows": Example(
        lambda grads, size: sets.L1InfBall(size * 6.0, axis="all_but_first"),
        lambda onto, grads: sum(float(np.abs(v).max(initial=0)) for v in units(grads)) / onto.radius - 1,
        exact=True,
        tolerance=2.0**-44,
        permutes=False,
    ),
    "l1l2": Example(
        lambda grads, size: sets.L1L2Ball(size * 2.0 * len(grads)),
        lambda onto, grads: sum(float(np.linalg.norm(np.asarray(g, float))) for g in grads.values()) / onto.radius - 1,
        exact=True,
        tolerance=2.0**-44,
    ),
    "l1l2, rows": Example(
        lambda grads, size: sets.L1L2Ball(size * 6.0, axis="all_but_first"),
        lambda onto, grads: sum(float(np.linalg.norm(v)) for v in units(grads)) / onto.radius - 1,
        exact=True,
        tolerance=2.0**-44,
        permutes=False,
    ),
    "l1capl2": Example(
        lambda grads, size: sets.L1capL2(size * 0.5 * flat(grads).size, size * 0.7 * flat(grads).size ** 0.5),
        lambda onto, grads: (
            max(float(np.abs(flat(grads)).sum() / onto.radius1), float(np.linalg.norm(flat(grads)) / onto.radius2)) - 1
        ),
        exact=True,
        tolerance=2.0**-44,
    ),
    "l2": Example(
        lambda grads, size: sets.L2Ball(size * flat(grads).size ** 0.5),
        lambda onto, grads: float(np.linalg.norm(flat(grads)) / onto.radius - 1),
        exact=True,
    ),
    "linf": Example(
        lambda grads, size: sets.LinfBall(2 * size),
        lambda onto, grads: float(np.abs(flat(grads)).max() / onto.radius - 1),
        exact=True,
    ),
    "lp, 1.5": Example(
        lambda grads, size: sets.LpBall(size * flat(grads).size ** (1 / 1.5) * 0.7, 1.5),
        lambda onto, grads: float((np.abs(flat(grads)) ** 1.5).sum() ** (1 / 1.5) / onto.radius - 1),
        exact=False,
        tolerance=1e-11,
    ),
    "lp, 4": Example(
        lambda grads, size: sets.LpBall(size * flat(grads).size ** (1 / 4), 4),
        lambda onto, grads: float((flat(grads) ** 4).sum() ** (1 / 4) / onto.radius - 1),
        exact=False,
        tolerance=1e-11,
    ),
    "nuclear": Example(
        lambda grads, size: sets.NuclearBall(size * 4.0),
        lambda onto, grads: max(float(v.sum()) / onto.radius - 1 for v in singular_values(grads)),
        exact=False,
        tolerance=2.0**-44,
        shapes=((7, 5), (2, 4, 6)),
        permutes=False,
    ),
    "simplex": Example(
        lambda grads, size: sets.Simplex(size * 0.4 * flat(grads).size),
        lambda onto, grads: float(max(abs(flat(grads).sum() / onto.total - 1), -flat(grads).min() / onto.total)),
        exact=True,
        odd=False,
    ),
    "spectral": Example(
        lambda grads, size: sets.SpectralBall(size * 2.0),
        lambda onto, grads: max(float(v[0]) / onto.radius - 1 for v in singular_values(grads)),
        exact=False,
        tolerance=2.0**-44,
        shapes=((7, 5), (2, 4, 6)),
        permutes=False,
    ),
    "spectral, products": Example(
        lambda grads, size: sets.SpectralBall(size * 2.0, method="newton_schulz"),
        lambda onto, grads: max(float(v[0]) / onto.radius - 1 for v in singular_values(grads)),
        exact=False,
        tolerance=2.0**-35,
        shapes=((7, 5), (2, 4, 6)),
        permutes=False,
    ),
}
