"""The demo's picture: loss and gradient norm over the steps, both runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gradclip_core.cli.rnn import Corpus
from gradclip_core.cli.training import Run, Settings

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SUFFIXES = (".png", ".svg", ".pdf")
_WITH, _WITHOUT, _GREY = "#1b6ca8", "#d1495b", "#6b7280"


def draw(runs: Sequence[Run], settings: Settings, corpus: Corpus, file: BinaryIO, suffix: str) -> None:
    """Without pyplot, which would choose a window system and keep the figure."""
    figure = Figure(figsize=(10, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, norm = figure.subplots(1, 2)
    figure.suptitle(
        "A character RNN on Python's documentation, trained twice from the same seed"
        if "documentation" in corpus.source
        else "A character RNN on Python's sources, trained twice from the same seed",
        fontsize=12,
        fontweight="bold",
    )
    for run in sorted(runs, key=lambda run: run.clips):  # the clipped one on top
        colour = _WITH if run.clips else _WITHOUT
        share = run.clipped / len(run.losses)
        label = f"clipped at {settings.max_norm:g} (in {share:.0%} of the steps)" if run.clips else "not clipped"
        _mean(loss, run.losses, colour, label)
        _every(norm, run.norms, colour, label)
    _finish_loss(loss, runs, settings, corpus)
    _finish_norm(norm, runs, settings)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(file, format=suffix[1:])


def _points(values: Sequence[float]) -> tuple[IntArray, FloatArray]:
    """Steps and values, those left out that a logarithmic axis cannot show."""
    y = np.array(values)
    shown = np.isfinite(y) & (y > 0)
    return np.flatnonzero(shown) + 1, y[shown]


def _mean(axes: Any, values: Sequence[float], colour: str, label: str) -> None:
    """Every step thinly, and over it their running mean, of the logarithms as the axis is."""
    x, y = _points(values)
    axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.35)
    reach = min(8, y.size // 20)
    logs = np.log(y)
    means = [logs[max(0, i - reach) : i + reach + 1].mean() for i in range(y.size)]
    axes.plot(x, np.exp(means), color=colour, linewidth=1.9, label=label)


def _every(axes: Any, values: Sequence[float], colour: str, label: str) -> None:
    """Every step as it is: the single spike is what matters."""
    x, y = _points(values)
    axes.plot(x, y, color=colour, linewidth=0.9, label=label)


def _finish_loss(axes: Any, runs: Sequence[Run], settings: Settings, corpus: Corpus) -> None:
    axes.set_title("Loss, nats per character", loc="left", fontsize=10.5)
    _level(axes, corpus.entropy, "knowing only how frequent each character is", settings.steps)
    _axes(axes, settings)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _broken(axes, runs, [run.losses for run in runs])


def _finish_norm(axes: Any, runs: Sequence[Run], settings: Settings) -> None:
    axes.set_title("Norm of the gradient before clipping", loc="left", fontsize=10.5)
    _level(axes, settings.max_norm, f"threshold {settings.max_norm:g}", settings.steps)
    _axes(axes, settings)
    _broken(axes, runs, [run.norms for run in runs])


def _axes(axes: Any, settings: Settings) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, settings.steps * 1.01)
    axes.set_xlabel("step")
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _level(axes: Any, y: float, label: str, steps: int) -> None:
    axes.axhline(y, color=_GREY, linestyle="--", linewidth=1.1)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8}
    axes.annotate(
        label,
        (steps, y),
        xytext=(0, 3),
        textcoords="offset points",
        color=_GREY,
        fontsize=8.5,
        ha="right",
        va="bottom",
        bbox=box,
        zorder=5,
    )


def _broken(axes: Any, runs: Sequence[Run], values: Sequence[Sequence[float]]) -> None:
    """A cross where a run ended early, with the reason."""
    for run, series in zip(runs, values, strict=True):
        steps, shown = _points(series)
        if run.broken and shown.size:
            x, y = steps[-1], shown[-1]
            axes.plot(x, y, marker="X", markersize=9, color=_WITHOUT, markeredgecolor="white", clip_on=False)
            axes.annotate(
                f"not a number at step {len(run.losses)}",
                (x, y),
                xytext=(10, 0),
                textcoords="offset points",
                color=_WITHOUT,
                fontsize=9,
                va="center",
            )
