"""The pictures of docs/projections.md: where the points of a plane go when they are projected on a set.

``python docs/projections/draw.py`` draws all of them, ``... draw.py L1Ball Simplex`` some, into this folder.
All that is drawn comes out of ``gc.clip_by_projection``: the places where points land, and the outline
of the set too, which is where a wide circle lands. Needs matplotlib: ``pip install -e '.[cli]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import gradclip_core as gc
from gradclip_core import sets

Points = npt.NDArray[np.float64]

_REACH, _FAR = 2.2, 30.0
_SIDE, _SLOT = 3.15, 3.8
"""Of a panel, in inches: the square that it shows, and its width with labels."""
_MOVED, _VANISHED, _INSIDE, _SET, _EDGE = "#1b6ca8", "#d1495b", "#6b7280", "#dfeaf3", "#0f3d5e"
_LABELS = {
    _INSIDE: "inside: comes back bit for bit",
    _MOVED: "moved",
    _VANISHED: "moved, and an element became exactly 0",
}


def as_vector(point: Points) -> Any:
    """The gradient (x, y)."""
    return point.copy()


def has_zero(gradient: Any) -> bool:
    """Whether an element is exactly 0."""
    return bool((np.asarray(gradient) == 0).any())


@dataclass(frozen=True)
class Panel:
    """One plane of gradients, and the set that they are projected on."""

    title: str
    onto: sets.Set
    axes: tuple[str, ...] = ("$g_1$", "$g_2$")
    gradient: Callable[[Points], Any] = as_vector
    """A point of the plane as a gradient."""
    point: Callable[[Any], Points] = np.asarray
    """The place of a gradient in the plane."""
    vanished: Callable[[Any], bool] = has_zero
    """Whether a gradient is drawn in red."""
    vanishing: str = _LABELS[_VANISHED]
    quadrant: bool = False
    """Whether the plane's coordinates are norms, which are not negative."""
    beside: Mapping[str, sets.Set] | None = None
    """Label -> a set whose outline is drawn too, dashed."""

    def land(self, point: Points, onto: sets.Set | None = None) -> tuple[Points, str]:
        """Where a point lands, and the colour that says what became of it."""
        gradient = self.gradient(point)
        landed, info = gc.clip_by_projection(gradient, onto or self.onto)
        if not info.clipped:
            return self.point(landed), _INSIDE
        new = self.vanished(landed) and not self.vanished(gradient)
        return self.point(landed), _VANISHED if new else _MOVED

    def outline(self, onto: sets.Set | None = None) -> Points:
        """Where a wide circle lands."""
        turn = np.linspace(0, np.pi / 2 if self.quadrant else 2 * np.pi, 181 if self.quadrant else 721)
        circle = _FAR * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        edge = np.array([self.land(point, onto)[0] for point in circle])
        return np.vstack([[0.0, 0.0], edge, [0.0, 0.0]]) if self.quadrant else edge

    def field(self) -> Points:
        """The points whose way is drawn: an even grid that avoids the axes."""
        ticks = np.linspace(0.1, _REACH, 10) if self.quadrant else np.linspace(-_REACH, _REACH, 12)
        return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)

    def draw(self, figure: Figure, place: tuple[float, float, float, float]) -> dict[str, str]:
        """Draw the plane. Returns colour -> label of what is in it."""
        axes: Any = figure.add_axes(place)
        axes.fill(*self.outline().T, facecolor=_SET, edgecolor=_EDGE, linewidth=1.6, zorder=1)
        for style, (label, other) in zip(("--", ":"), (self.beside or {}).items(), strict=False):
            axes.plot(*self.outline(other).T, style, color=_EDGE, linewidth=1.1, zorder=2, label=label)
        seen = set()
        for start in self.field():
            end, colour = self.land(start)
            seen.add(colour)
            if colour == _INSIDE:
                axes.plot(*start, ".", color=colour, markersize=3.5, zorder=3)
                continue
            axes.plot(*np.transpose([start, end]), color=colour, linewidth=0.8, alpha=0.55, zorder=3)
            axes.plot(*start, ".", color=colour, markersize=2.2, alpha=0.55, zorder=3)
            axes.plot(*end, "o", color=colour, markersize=3.6, markeredgecolor="white", markeredgewidth=0.4, zorder=4)
        self._finish(axes)
        labels = {**_LABELS, _VANISHED: self.vanishing}
        return {colour: label for colour, label in labels.items() if colour in seen}

    def _finish(self, axes: Any) -> None:
        low = -0.08 * _REACH if self.quadrant else -1.08 * _REACH
        axes.set(xlim=(low, 1.08 * _REACH), ylim=(low, 1.08 * _REACH), aspect="equal")
        axes.set_title(self.title, fontsize=10.5, loc="left")
        axes.set_xlabel(self.axes[0], fontsize=10, labelpad=1)
        axes.set_ylabel(self.axes[1], fontsize=10, labelpad=1)
        ticks = [0, 1, 2] if self.quadrant else [-2, -1, 0, 1, 2]
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.tick_params(labelsize=8, length=2, colors=_INSIDE)
        axes.axhline(0, color="#cbd5e1", linewidth=0.7, zorder=1.5)
        axes.axvline(0, color="#cbd5e1", linewidth=0.7, zorder=1.5)
        axes.spines[:].set_visible(False)
        if self.beside:
            axes.legend(loc="upper right", fontsize=8, framealpha=0.9, edgecolor="none", borderpad=0.3)


class Solid(Panel):
    """A set in three dimensions, whose surface is where a wide sphere lands."""

    def draw(self, figure: Figure, place: tuple[float, float, float, float]) -> dict[str, str]:
        """Draw the solid, and the ways of points that lie on the viewer's side."""
        axes: Any = figure.add_axes(place, projection="3d")
        turn, rise = np.meshgrid(np.linspace(0, 2 * np.pi, 65), np.linspace(0, np.pi, 33), indexing="ij")
        sphere = np.stack([np.sin(rise) * np.cos(turn), np.sin(rise) * np.sin(turn), np.cos(rise)], axis=-1)
        surface = np.array([[self.land(_FAR * point)[0] for point in line] for line in sphere])
        axes.plot_surface(*np.moveaxis(surface, -1, 0), rstride=1, cstride=1, color=_SET, linewidth=0, alpha=0.75)
        axes.plot_wireframe(*np.moveaxis(surface, -1, 0), rstride=4, cstride=4, color=_EDGE, linewidth=0.3, alpha=0.5)
        axes.view_init(elev=18, azim=-52)
        seen = set()
        for start in _on_sphere(90, 1.9):
            if start @ _TOWARDS_THE_EYE < 0.2:
                continue
            end, colour = self.land(start)
            seen.add(colour)
            axes.plot(*np.transpose([start, end]), color=colour, linewidth=0.8, alpha=0.7)
            axes.plot(*start[:, None], ".", color=colour, markersize=2.2, alpha=0.7)
            axes.plot(*end[:, None], "o", color=colour, markersize=3.6, markeredgecolor="white", markeredgewidth=0.4)
        axes.set_title(self.title, fontsize=10.5, loc="left")
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), zlim=(-1.3, 1.3))
        for axis, name in zip((axes.xaxis, axes.yaxis, axes.zaxis), self.axes, strict=True):
            axis.set_label_text(name, fontsize=9)
            axis.labelpad = -10
            axis.set_ticks([-1, 0, 1])
            axis.set_pane_color("#f8fafc")
        axes.tick_params(labelsize=7, colors=_INSIDE, pad=-3)
        axes.set_box_aspect((1, 1, 1), zoom=1.05)
        labels = {**_LABELS, _VANISHED: self.vanishing}
        return {colour: label for colour, label in labels.items() if colour in seen}


_TOWARDS_THE_EYE = np.array([np.cos(np.radians(-52)), np.sin(np.radians(-52)), 0.3])


def _on_sphere(count: int, radius: float) -> Points:
    """Points spread evenly, on a spiral."""
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    return radius * np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)


def mixed(point: Points) -> Any:
    """The matrix [[x, y], [y, x]], whose singular values are |x + y| and |x - y|."""
    return np.array([point, point[::-1]])


def is_singular(matrix: Any) -> bool:
    """Whether the rank is not full, roundings aside."""
    return int(np.linalg.matrix_rank(matrix, 1e-9)) < len(matrix)


def of_matrices(name: str, onto: sets.Set) -> list[Panel]:
    """Two planes of symmetric matrices; projections of their points stay in them."""
    lower = "moved, to a lower rank"
    return [
        Panel(f"{name}(1), diag(x, y)", onto, ("x", "y"), np.diag, np.diag, is_singular, lower),
        Panel(f"{name}(1), [[x, y], [y, x]]", onto, ("x", "y"), mixed, lambda matrix: matrix[0], is_singular, lower),
    ]


def two_groups(point: Points) -> Any:
    """Two arrays of which x and y are the 2-norms."""
    return {"a": point[0] * np.array([0.6, 0.8]), "b": point[1] * np.array([0.6, 0.8])}


def lengths(gradient: Any) -> Points:
    """The 2-norms of the two groups."""
    return np.array([np.linalg.norm(gradient["a"]), np.linalg.norm(gradient["b"])])


def two_peaks(point: Points) -> Any:
    """Two arrays of which x and y are the largest elements."""
    return {"a": point[0] * np.array([0.5, 1.0]), "b": point[1] * np.array([0.5, 1.0])}


def peaks(gradient: Any) -> Points:
    """The largest magnitudes of the two groups."""
    return np.array([np.abs(gradient["a"]).max(), np.abs(gradient["b"]).max()])


def pair_and_single(point: Points) -> Any:
    """An array of two elements and one of a single element."""
    return {"a": point[:2].copy(), "b": point[2:].copy()}


def lost_a_group(gradient: Any) -> bool:
    """Whether a group is 0."""
    return any(not array.any() for array in gradient.values())


def of_groups(name: str, onto: sets.Set, measure: str, spread: Callable[..., Any], read: Callable[..., Any]) -> Any:
    """What two groups have in common with two elements, and a solid with a group of two elements and one of one."""
    lost = "moved, and a group became exactly 0"
    plane = Panel(
        f"{name}(1), two groups",
        onto,
        (f"{measure} of the first group", f"{measure} of the second"),
        spread,
        read,
        lost_a_group,
        lost,
        quadrant=True,
    )
    title, names = f"{name}(1), groups $(g_1, g_2)$ and $(g_3)$", ("$g_1$", "$g_2$", "$g_3$")
    return [plane, Solid(title, onto, names, pair_and_single, in_space, lost_a_group, lost)]


def in_space(gradient: Any) -> Points:
    """The place of what ``pair_and_single`` makes."""
    return np.concatenate([gradient["a"], gradient["b"]])


def two_at_once() -> dict[str, sets.Set]:
    """The parts of the picture of an intersection."""
    return {"Box(-0.5, 1.5)": sets.Box(-0.5, 1.5), "L2Ball(1.2)": sets.L2Ball(1.2)}


PICTURES: dict[str, Callable[[], Sequence[Panel]]] = {
    "L2Ball": lambda: [Panel("L2Ball(1)", sets.L2Ball(1.0))],
    "LinfBall": lambda: [Panel("LinfBall(1)", sets.LinfBall(1.0))],
    "Box": lambda: [Panel("Box(-0.5, 1.5)", sets.Box(-0.5, 1.5))],
    "L1Ball": lambda: [Panel("L1Ball(1)", sets.L1Ball(1.0))],
    "Simplex": lambda: [Panel("Simplex(1)", sets.Simplex(1.0))],
    "L1L2Ball": lambda: of_groups("L1L2Ball", sets.L1L2Ball(1.0), "2-norm", two_groups, lengths),
    "L1InfBall": lambda: of_groups("L1InfBall", sets.L1InfBall(1.0), "largest element", two_peaks, peaks),
    "L1capL2": lambda: [
        Panel(
            "L1capL2(1.25, 1)",
            sets.L1capL2(1.25, 1.0),
            beside={"L1Ball(1.25)": sets.L1Ball(1.25), "L2Ball(1)": sets.L2Ball(1.0)},
        )
    ],
    "LpBall": lambda: [Panel(f"LpBall(1, p={p:g})", sets.LpBall(1.0, p)) for p in (1.5, 4.0)],
    "Ellipsoid": lambda: [Panel("Ellipsoid(weights=[0.5, 3], 1)", sets.Ellipsoid(np.array([0.5, 3.0]), 1.0))],
    "RadialEllipsoid": lambda: [
        Panel("RadialEllipsoid(weights=[0.5, 3], 1)", sets.RadialEllipsoid(np.array([0.5, 3.0]), 1.0))
    ],
    "SpectralBall": lambda: of_matrices("SpectralBall", sets.SpectralBall(1.0)),
    "NuclearBall": lambda: of_matrices("NuclearBall", sets.NuclearBall(1.0)),
    "HalfSpace": lambda: [Panel("HalfSpace(a=[1, 2], b=0.75)", sets.HalfSpace(np.array([1.0, 2.0]), 0.75))],
    "Hyperplane": lambda: [Panel("Hyperplane(a=[1, 2], b=0.75)", sets.Hyperplane(np.array([1.0, 2.0]), 0.75))],
    "Intersection": lambda: [
        Panel("Intersection of two sets", sets.Intersection(*two_at_once().values()), beside=two_at_once())
    ],
}
"""Name of a set -> the panels of its picture, made when they are drawn."""


def _handle(colour: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", markersize=4, linewidth=0 if colour == _INSIDE else 1)


def draw(name: str, folder: Path) -> Path:
    """Draw the picture of one set. Without pyplot, which would choose a window system."""
    panels = PICTURES[name]()
    labels: dict[str, str] = {}
    width, height = _SLOT * len(panels), _SIDE + 1.25
    figure = Figure(figsize=(width, height), dpi=100 if len(panels) == 1 else 75)
    FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        place = ((_SLOT * i + 0.5) / width, 0.95 / height, _SIDE / width, _SIDE / height)
        labels.update(panel.draw(figure, place))
    figure.legend(
        [_handle(colour) for colour in labels],
        list(labels.values()),
        loc="lower center",
        fontsize=8,
        frameon=False,
        ncols=len(panels),
    )
    path = folder / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})
    return path


def main(names: Sequence[str]) -> None:
    """Draw the pictures of these sets, or of all, beside this file."""
    for name in names or PICTURES:
        print(draw(name, Path(__file__).resolve().parent))


if __name__ == "__main__":
    main(sys.argv[1:])
