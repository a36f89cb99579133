"""Half-spaces and hyperplanes: one dot product says how far to go along the normal.

Boyd and Vandenberghe 2004, *Convex Optimization*, section 8.1.1, https://web.stanford.edu/~boyd/cvxbook/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradclip_core import validate
from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.forms import Form
from gradclip_core.protocol import FLOAT64
from gradclip_core.reference import tree_sum
from gradclip_core.sets.base import Certificate, Moments, Set, View
from gradclip_core.sets.normals import Dots, Normal, dot_error, look, outline, refuse_beyond
from gradclip_core.tree import kept

MOMENTS_ALONG = ("wy", "w2", "y2", "d2", "rest2")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HalfSpace(Set):
    """``{y : <a, y> <= b}``: ``y = g - t·a`` with ``t = max(0, <a, g> - b) / ‖a‖²``.

    ``a`` is a container of the gradients' structure (matched by path and shape), any real floating
    dtypes, not zero; it is read at each projection and never written. ``b`` is finite, and may be negative.
    With the scopes "group" and "array" each scope has its own part of ``a``, and all the same ``b``.

    Close: the dots are float64 sums in a fixed order. The result is aimed inside by the bound of
    its own rounding, so that ``<a, y> <= b`` holds in exact arithmetic for float32 and float64, at
    a cost of some ``2^-24 · Σ|a_i·y_i|`` (float64: ``2^-45 · Σ|a_i|·(|y_i| + |t·a_i|)``) in
    ``<a, y>``; 16-bit results may be off by their rounding. Projecting twice is projecting once,
    to the bit, for float32 and float64.
    Elements where ``a_i`` is 0 keep their bits. The same bits on every backend.

    The certificate's ``feasibility`` is the distance outside, and its ``optimality`` the KKT
    residual: the larger of ``‖(g - y) - t·a‖`` and of the distance inside. Both are relative to
    ``‖y‖ + ‖g - y‖``.

    Errors: a scope in which ``a`` is zero, infinities and NaNs in ``a``, another structure, and a
    nearest point that the gradients' type cannot hold.

    >>> import numpy as np, gradclip_core as gc
    >>> from gradclip_core import sets
    >>> onto = sets.HalfSpace({"w": np.array([1.0, 1.0])}, b=2.0)
    >>> gc.clip_by_projection({"w": np.array([4.0, 1.0])}, onto)[0]["w"].round(6)
    array([ 2.5, -0.5])
    """

    a: Any
    b: float = 0.0

    moments = MOMENTS_ALONG

    def __post_init__(self) -> None:
        object.__setattr__(self, "b", _bound("HalfSpace", self.b))
        object.__setattr__(self, "a", kept(self.a))

    def __repr__(self) -> str:
        return f"HalfSpace(a={outline(self.a)}, b={self.b!r})"

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``."""
        return in_reach(view, self.a, self.b, "HalfSpace, a")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if view.size == 0 and self.b >= 0:
            return None
        normal, seen = look(view, self.a, "HalfSpace, a")
        if not normal.square:
            raise _no_direction("HalfSpace", self.b, view)
        return into_half_space(view, normal, seen, normal.scaled(self.b, view), 1.0, "HalfSpace")

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """The KKT conditions."""
        return certify_along(view, form, found)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Hyperplane(Set):
    """``{y : <a, y> = b}``: ``y = g - t·a`` with ``t = (<a, g> - b) / ‖a‖²``.

    ``a`` and ``b`` as in ``HalfSpace``; with ``b=0`` this takes a direction out of the gradients.

    Close: the dots are float64 sums in a fixed order, and t is corrected once by the dot with the
    result. Rounded elements meet the equation by chance alone, so a g is taken to lie on it where
    ``|<a, g> - b|`` is at most ``1.02 · 2^-24 · Σ|a_i·g_i|`` (float64: 2^-45). For float32 and
    float64 projecting twice is projecting once, to the bit, unless g is so close to a multiple of
    ``a`` that the result is the rounding of their difference; 16-bit results are off by their
    rounding. Elements where ``a_i`` is 0 keep their bits. The same bits on every backend. The
    certificate and the errors are those of ``HalfSpace``.

    >>> import numpy as np, gradclip_core as gc
    >>> from gradclip_core import sets
    >>> gc.clip_by_projection(np.array([3.0, 1.0]), sets.Hyperplane(np.array([1.0, 1.0])))[0]
    array([ 1., -1.])
    """

    a: Any
    b: float = 0.0

    moments = MOMENTS_ALONG

    def __post_init__(self) -> None:
        object.__setattr__(self, "b", _bound("Hyperplane", self.b))
        object.__setattr__(self, "a", kept(self.a))

    def __repr__(self) -> str:
        return f"Hyperplane(a={outline(self.a)}, b={self.b!r})"

    def prepared(self, view: View) -> View:
        """See ``Set.prepared``."""
        return in_reach(view, self.a, self.b, "Hyperplane, a")

    def decide(self, view: View) -> Form | None:
        """See ``Set.decide``."""
        if view.size == 0 and self.b == 0:
            return None
        normal, seen = look(view, self.a, "Hyperplane, a")
        if not normal.square:
            raise _no_direction("Hyperplane", self.b, view)
        bound = normal.scaled(self.b, view)
        excess = seen.value - bound
        if abs(excess) <= tolerance(view, normal, seen):
            return None
        step = excess / normal.square
        first = _probe(view, normal, step, "Hyperplane")
        step += (first.value - bound) / normal.square
        return view.form("along", step, bound, 0.0, companions=normal.companions)

    def certify(self, view: View, form: Form, found: Moments) -> Certificate:
        """The KKT conditions."""
        return certify_along(view, form, found)


def into_half_space(view: View, normal: Normal, seen: Dots, bound: float, sign: float, asked: str) -> Form | None:
    """The projection on ``{y : sign·<w, y> <= bound}``; None inside. The form's b and c are bound and sign."""
    excess = sign * seen.value - bound
    if excess <= 0:
        return None
    step = sign * excess / normal.square
    first = _probe(view, normal, step, asked)
    over = sign * first.value - bound
    # Rounding: of the result to its storage type, of t·w and the difference, of the dots; and subnormals.
    shave, error = 2.0**-24 if view.narrow else 2.0**-53, dot_error(view) + 2.0**-51
    inside = (shave + error) * (first.magnitude + 2 * abs(over)) + 2.0**-51 * abs(step) * normal.square
    inside += view.scaled(2.0**-150 if view.narrow else FLOAT64.smallest) * math.sqrt(view.size) * normal.length
    step += sign * (over + inside) / normal.square
    return view.form("along", step, bound, sign, companions=normal.companions)


def _probe(view: View, normal: Normal, step: float, asked: str) -> Dots:
    """The dots with ``u - step·w``, which has to be within the range of the gradients' types."""
    seen = view.probe(view.form("along", step, companions=normal.companions), "wy", "abs_wy", "max_y")
    refuse_beyond(view, seen["max_y"], asked)
    return Dots(tree_sum(seen["wy"]), tree_sum(seen["abs_wy"]))


def tolerance(view: View, normal: Normal, seen: Dots) -> float:
    """What rounding each element of a point of the plane can change of ``<w, y>``, and the dot's own error.

    For 16-bit types it is that of float32: theirs, in the worst case, would take any two long
    vectors that are hardly correlated for orthogonal ones.
    """
    roundoff, smallest = (2.0**-24, 2.0**-149) if view.narrow else (FLOAT64.roundoff, FLOAT64.smallest)
    relative = 1.01 * roundoff + dot_error(view) + 2.0**-46
    return relative * seen.magnitude + view.scaled(smallest) * math.sqrt(view.size) * normal.length


def certify_along(view: View, form: Form, found: Moments) -> Certificate:
    """Of ``y = u - t·w``, from the moments ``MOMENTS_ALONG``; ``form.c`` is the sign, 0 for a hyperplane."""
    sums = {name: tree_sum(found[name]) for name in MOMENTS_ALONG}
    bound, sign = float(form.b[0]), float(form.c[0])
    moved = math.sqrt(sums["d2"])
    size = math.sqrt(sums["y2"]) + moved
    outside = ((sign or 1.0) * sums["wy"] - bound) / math.sqrt(sums["w2"])
    rest = max(math.sqrt(sums["rest2"]), -outside)
    if not sign:
        rest, outside = max(rest, abs(outside)), abs(outside)
    if not size:
        return Certificate(0.0, 0.0, 0.0)
    return Certificate(max(0.0, outside) / size, max(0.0, rest) / size, view.original(moved))


def in_reach(view: View, container: Any, bound: float, asked: str) -> View:
    """The view in units that hold ``|b|/‖a‖``, the least length that a point of the plane has."""
    companions = view.beside(container, asked) if bound and view.size else []
    if not companions:
        return view
    wide = {buffer.dtype for buffer in companions} == {FLOAT64} or not 2.0**-200 <= abs(bound) <= 2.0**200
    if not wide and not view.reading.exponent:
        return view  # no float32 vector is so short or so long
    normal, _ = look(view, container, asked)
    if not normal.square:
        return view
    reach = math.frexp(bound)[1] - normal.exponent - math.frexp(normal.length)[1]
    if view.largest:
        reach = max(reach, math.frexp(view.largest)[1] + view.reading.exponent)
    exponent = 0 if -400 <= reach <= 400 else reach
    return view if exponent == view.reading.exponent else view.in_units(exponent)


def _bound(name: str, b: Any) -> float:
    cure = "Pass a finite number; it may be negative, or 0"
    bound = validate.number(f"{name}, b", b, cure)
    if bound != bound or abs(bound) == math.inf:
        raise InvalidArgumentError(f"{name}, b={show(b)}", "it is not finite", cure)
    return bound + 0.0  # -0.0 is 0


def _no_direction(name: str, b: float, view: View) -> InvalidArgumentError:
    where = "" if len(view.arrays.members) != 1 else f", array '{view.arrays.paths[0]}'"
    seen = "the normal is zero there" if view.size else "a scope without elements has no normal"
    everything = b >= 0 if name == "HalfSpace" else b == 0
    meaning = "every point is in the set" if everything else "no point is in the set"
    cure = "Pass a normal that is not zero in any scope, or choose a scope in which it is not"
    return InvalidArgumentError(f"{name}, a{where}", f"{seen}, so {meaning}", cure)
