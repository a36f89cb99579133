"""Dykstra's algorithm over projections of float64 vectors, and what makes it fast enough.

Boyle and Dykstra 1986, "A method for finding projections onto the intersection of convex sets in
Hilbert spaces", Lecture Notes in Statistics 37, https://doi.org/10.1007/978-1-4613-9940-7_3.

A round is coordinate descent on the dual problem: each increment in turn is replaced by the best
one beside the others (Han 1988, "A successive projection method", Mathematical Programming 40).
So a round may begin with any increments, and none makes the dual objective larger. Far from the
sets the rounds alone are slow: on curved sets the error falls by a factor ``1 - O(radius/‖g‖)``.

Two things help. Anderson's mixing (Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", SIAM
Journal on Numerical Analysis 49) proposes the increments to go on with, from those of the last
rounds; a proposal after which the dual objective is larger than before is dropped. And where that is
not enough, the increments to start with come from afar: they are found for ``g/2^j`` first, where
few rounds do, and at 2·g they are close to where those at g/2 and at g lead in a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gradclip_core.protocol import FloatArray

ROUNDING = 2.0**-46
"""Beside ‖g‖, what float64 arithmetic on vectors of its length leaves behind."""
_PLAIN, _MEMORY, _SOON = 4, 6, 50
"""Rounds before the first proposal; how many a proposal is made of; how many before a start from afar."""
_SAME = 2.0**-30
"""Steps that differ by no more than this are one step."""

_ENDLESS = 2.0**40
"""Increments that are longer than this, beside ‖g‖, leave nothing of y: they grow where no point is common."""

Projection = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Point:
    """Where the rounds stopped."""

    y: FloatArray
    increments: list[FloatArray]
    products: list[float]
    """For each set ``<increment, the set's own point>``."""


def nearest(
    projections: Sequence[Projection], g: FloatArray, tolerance: float, most: int
) -> tuple[Point | None, Rounds]:
    """The point of the intersection nearest to g, after at most so many rounds; None where they were too few."""
    last = Rounds(projections, g, tolerance)
    start = [np.zeros_like(g) for _ in projections]
    point = last.run(start, min(most, _SOON))
    left, near = most - _SOON, float(np.linalg.norm(last.y))
    if point is not None or left <= 0:
        return point, last
    kept = last.increments
    if 0 < near < last.length / 2:
        before, kept = start, start
        for halvings in range(min(60, math.frexp(last.length / near)[1]), 0, -1):
            here = Rounds(projections, g * 0.5**halvings, tolerance)
            here.run(kept, min(left, _SOON))
            left -= here.done
            last.done += here.done
            kept = [p + 2 * (p - q) for p, q in zip(here.increments, before, strict=True)]
            before = here.increments
    return last.run(kept, max(left, 0)), last


class Rounds:
    """The rounds, and where they are: ``y``, how far it ``travelled`` within the last, and the best ``increments``."""

    def __init__(self, projections: Sequence[Projection], g: FloatArray, tolerance: float) -> None:
        self.projections, self.g, self.tolerance = projections, g, tolerance
        self.y, self.travelled = g, math.inf
        self.length = float(np.linalg.norm(g))
        self.increments: list[FloatArray] = []
        self.done = 0

    def run(self, start: list[FloatArray], most: int) -> Point | None:
        """The point, after at most so many rounds from these increments; None where they were too few."""
        mixing, best = Mixing(), math.inf
        self.increments = start
        for number in range(most):
            self.done += 1
            increments, products = self._round(start)
            if self._is_there(increments, products):
                self.increments = increments
                return Point(self.y, increments, products)
            if max(map(float, map(np.linalg.norm, increments))) > _ENDLESS * self.length:
                return None
            half = 0.5 * float(self.y @ self.y)
            dual = half + math.fsum(products)
            roundoff = 2.0**-50 * (half + math.fsum(map(abs, products)))
            if number and start is not self.increments and dual > best + roundoff:
                start = self.increments
                mixing.forget()
                continue
            self.increments, best = increments, dual
            # The first set's increment follows from the others: a round begins with it.
            proposal = mixing.propose(np.concatenate(start[1:]), np.concatenate(increments[1:])) if start[1:] else None
            if number < _PLAIN or proposal is None:
                start = self.increments
            else:
                start = [increments[0], *np.split(proposal, len(self.projections) - 1)]
        return None

    def _round(self, start: Sequence[FloatArray]) -> tuple[list[FloatArray], list[float]]:
        increments, products, travelled = [], [], 0.0
        y = self.g - sum(start[1:], start=np.zeros_like(self.g))
        for k, project in enumerate(self.projections):
            point = y + start[k] if k else y
            new = project(point)
            travelled += float(np.linalg.norm(new - y)) if k else 0.0
            increments.append(point - new)
            products.append(float(increments[k] @ new))
            y = new
        self.y, self.travelled = y, travelled
        return increments, products

    def _is_there(self, increments: Sequence[FloatArray], products: Sequence[float]) -> bool:
        y = self.y
        near = max(self.tolerance * float(np.linalg.norm(y)), ROUNDING * self.length)
        if not self.travelled <= near:
            return False
        if not 2.0**-52 * max(map(float, map(np.linalg.norm, increments))) <= near:
            return False  # y does not move because it is rounding alone
        gap = math.fsum(products) - math.fsum(float(p @ y) for p in increments)
        return gap <= near * float(np.linalg.norm(self.g - y))


class Mixing:
    """Anderson's mixing: the affine combination of the last rounds whose steps cancel best."""

    def __init__(self) -> None:
        self._states: list[FloatArray] = []
        self._steps: list[FloatArray] = []
        self._reach = 1.0

    def forget(self) -> None:
        """Begin anew."""
        self._states, self._steps, self._reach = [], [], 1.0

    def propose(self, before: FloatArray, after: FloatArray) -> FloatArray | None:
        """Where to go on, after a round that led from ``before`` to ``after``; None while there is one round alone."""
        self._states = [*self._states[-_MEMORY:], after]
        self._steps = [*self._steps[-_MEMORY:], after - before]
        if len(self._steps) < 2:
            return None
        step = self._steps[-1]
        changes = [step - earlier for earlier in self._steps[:-1]]
        gram = np.array([[float(a @ b) for b in changes] for a in changes])
        sizes, length = np.sqrt(np.diag(gram)), float(np.linalg.norm(step))
        if not math.isfinite(length) or not np.isfinite(gram).all():
            return None
        if sizes[-1] <= _SAME * length:
            # On the facet of a polyhedron each round makes the same step: many at once.
            self._reach *= 2
            return after + self._reach * step
        sizes = np.maximum(sizes, sizes.max() * 2.0**-500)
        right = np.array([float(a @ step) for a in changes]) / sizes
        scaled = gram / np.outer(sizes, sizes)
        if not (np.isfinite(scaled).all() and np.isfinite(right).all()):
            return None
        weights = np.linalg.lstsq(scaled, right, rcond=1e-13)[0] / sizes
        for weight, earlier in zip(weights, self._states[:-1], strict=True):
            after = after - weight * (self._states[-1] - earlier)
        return after
