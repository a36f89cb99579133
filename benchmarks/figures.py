"""Draw the figures from the CSV files: ``python -m benchmarks figures``.

``peers.png``: how many times as long each peer takes. ``sizes.png``: GB/s of one array of every size, beside the
memory's limit. ``arrays.png``: the time against the number of arrays. Colours are Okabe and Ito's, which everybody
can tell apart, and each peer has a mark of its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.bench_sizes import named
from benchmarks.harness import ROOT, latest
from gradclip_core.cli.bench_csv import Context
from gradclip_core.cli.bench_timing import LIMIT, OURS, Row, duration, times

FIGURES = ROOT / "benchmarks" / "figures"
Figures = Sequence[tuple[Context, Row]]

INK, GREY, FAINT = "#1f2933", "#6b7280", "#e5e7eb"
STYLES = {
    OURS: ("#D55E00", "o", "gradclip"),
    LIMIT: (GREY, "", "the memory's limit"),
    "torch": ("#0072B2", "o", "torch"),
    "optax, jit": ("#009E73", "s", "optax, jitted"),
    "timm": ("#CC79A7", "^", "timm"),
    "np.linalg.norm": ("#E69F00", "D", "np.linalg.norm"),
}
COLUMNS: tuple[dict[str, str], ...] = (
    {
        "global_norm": "clip by global norm",
        "small": "clip many small arrays by global norm",
        "norm": "the norm of one array alone",
    },
    {
        "amp": "mixed precision, GPT-2 124M",
        "optim": "clip and update, GPT-2 124M",
        "value": "clip by value",
        "agc": "adaptive clipping (AGC)",
    },
)
"""What is drawn on the left and on the right: the benchmarks, each with its heading."""


def draw(figures: Figures | None = None, folder: Path = FIGURES) -> list[Path]:
    """All for which there are rows."""
    found = latest() if figures is None else figures
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, make in (("peers", _peers), ("sizes", _sizes), ("arrays", _arrays)):
        figure = make(found)
        if figure is not None:
            FigureCanvasAgg(figure)
            drawn.append(folder / f"{name}.png")
            # Without the library's version in it, so that the same rows give the same file.
            figure.savefig(drawn[-1], metadata={"Software": None})
    return drawn


def _peers(found: Figures) -> Figure | None:
    columns = [[(c, r) for c, r in found if r.benchmark in names and _is_peer(r)] for names in COLUMNS]
    if not any(columns):
        return None
    lines = [_lines(*pair) for pair in zip(columns, COLUMNS, strict=True)]
    height = max(len(column) for column in lines)
    figure = Figure(figsize=(12, 1.7 + 0.235 * height), dpi=130, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.12, wspace=0.03, rect=(0, 0, 0.985, 1))
    figure.suptitle(
        "How many times as long as gradclip the others take", x=0.012, ha="left", fontsize=14, fontweight="bold"
    )
    ratios = [q for column in columns for _, r in column for q in (r.times_ours_q25, r.times_ours_q75)]
    reach = (min(0.28, 0.85 * min(ratios)), max(4, 1.15 * max(ratios)))
    marks: dict[str, Any] = {}
    for axes, column in zip(figure.subplots(1, 2), lines, strict=True):
        _dots(axes, column, reach, height, marks)
    _legend(figure, marks)
    _caption(figure, [pair for column in columns for pair in column], "Dots are medians of ratios, bars the quartiles.")
    return figure


def _is_peer(row: Row) -> bool:
    return row.who in STYLES and row.who not in (OURS, LIMIT) and row.ms_median > 0


def _lines(column: Figures, headings: dict[str, str]) -> list[tuple[str, list[Row]]]:
    """Headings, which have no rows, and under each what was timed."""
    made: list[tuple[str, list[Row]]] = []
    for benchmark, heading in headings.items():
        rows: dict[str, list[Row]] = {}
        for _, row in column:
            if row.benchmark == benchmark:
                rows.setdefault(_label(row), []).append(row)
        made += [(heading, []), *rows.items()] if rows else []
    return made


def _label(row: Row) -> str:
    if row.benchmark == "optim":
        return row.work
    _, _, step = row.work.partition(", ")
    data = row.data.replace("10^8", "10⁸")
    if row.benchmark == "amp":
        data = data.removeprefix("GPT-2 124M, ")
    if row.benchmark in ("agc", "small"):
        data = data.removesuffix(", float32")
    return f"{data}, {step}" if step else data


def _dots(axes: Any, lines: list[tuple[str, list[Row]]], reach: tuple[float, float], height: int, marks: Any) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*reach)
    axes.set_ylim(height - 0.4, -0.6)
    axes.axvspan(reach[0], 1, color="#f3f4f6", zorder=0)
    axes.axvline(1, color=INK, linewidth=1, zorder=1)
    for y, (label, rows) in enumerate(lines):
        bold = {} if rows else {"fontweight": "bold"}
        axes.text(-0.015, y, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5, **bold)
        if rows:
            axes.axhline(y, color=FAINT, linewidth=0.8, zorder=0.5)
        for place, row in enumerate(rows):
            colour, mark, name = STYLES[row.who]
            marks[name] = axes.plot(row.times_ours_median, y, mark, color=colour, markersize=6.5, zorder=3)[0]
            axes.plot((row.times_ours_q25, row.times_ours_q75), (y, y), color=colour, linewidth=2.2, alpha=0.45)
            axes.annotate(
                f"{times(row.times_ours_median)}×", (1, y), xycoords=axes.get_yaxis_transform(),
                xytext=(36 + 36 * place, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8.5, color=colour, fontweight="bold",
            )  # fmt: skip
    for side, words, at in (("right", "◂ slower", 0.94), ("left", "faster ▸", 1.06)):
        axes.text(at, 0, words, ha=side, va="center", fontsize=7.5, color=GREY)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel("the peer's time over gradclip's", fontsize=8.5)
    axes.tick_params(labelsize=8.5, length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _sizes(found: Figures) -> Figure | None:
    chosen = [(context, row) for context, row in found if row.benchmark == "sizes"]
    if not chosen:
        return None
    figure, axes = _one("Unclipped steps on one float32 array: gigabytes a second")
    for who in (LIMIT, OURS, "torch"):
        rows = sorted((row for _, row in chosen if row.who == who), key=lambda row: row.bytes)
        x = [row.bytes for row in rows]
        low, middle, high = (
            [r.bytes / ms / 1e6 for r, ms in zip(rows, column, strict=True)] for column in _columns(rows)
        )
        _line(axes, who, x, (high, middle, low))
    sizes = sorted({row.bytes for _, row in chosen})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [named(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes of gradient, read once")
    axes.set_ylabel("GB/s")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False, loc="upper left", fontsize=9.5)
    _caption(figure, chosen, "Lines are medians, bands the quartiles. Arrays that fit into a cache are read from it.")
    return figure


def _arrays(found: Figures) -> Figure | None:
    chosen = [(context, row) for context, row in found if row.benchmark == "arrays"]
    if not chosen:
        return None
    figure, axes = _one("Unclipped steps on many float32 arrays of 64 to 1,024 elements: time of a call")
    for who in (LIMIT, OURS, "torch"):
        rows = sorted((row for _, row in chosen if row.who == who), key=lambda row: row.arrays)
        if not rows:
            continue
        x = [row.arrays for row in rows]
        _line(axes, who, x, _columns(rows))
        each = f"{duration(rows[-1].ms_median / x[-1])} an array"
        axes.annotate(
            each, (x[-1], rows[-1].ms_median), xytext=(7, 0), textcoords="offset points",
            color=STYLES[who][0], va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.8, 1.25 * max(row.arrays for _, row in chosen))
    axes.set_xlabel("number of arrays")
    axes.set_ylabel("time of a call")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value).replace(".00", "").replace(".0", "")))
    axes.legend(frameon=False, loc="upper left", fontsize=9.5)
    _caption(figure, chosen, "Lines are medians, bands the quartiles.")
    return figure


def _one(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.5, 4.9), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=10)
    axes.grid(True, which="major", color=FAINT, linewidth=0.8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _columns(rows: list[Row]) -> tuple[list[float], list[float], list[float]]:
    return [r.ms_q25 for r in rows], [r.ms_median for r in rows], [r.ms_q75 for r in rows]


def _line(axes: Any, who: str, x: list[int], quartiles: tuple[list[float], list[float], list[float]]) -> None:
    low, middle, high = quartiles
    colour, mark, name = STYLES[who]
    style = "--" if who == LIMIT else "-"
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, middle, style, marker=mark, color=colour, markersize=4.5, linewidth=1.8, label=name)


def _legend(figure: Figure, marks: dict[str, Any]) -> None:
    names = [name for _, _, name in STYLES.values() if name in marks]
    figure.legend(
        [marks[name] for name in names], names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=10
    )


def _caption(figure: Figure, found: Figures, how: str) -> None:
    """Where it was measured, and of what."""
    machines, commits, dates, versions = (
        ", ".join(dict.fromkeys(getattr(context, name) for context, _ in found))
        for name in ("machine", "commit", "date", "versions")
    )
    threads = ", ".join(dict.fromkeys(str(row.threads) for _, row in found))
    text = f"{how} {machines}; {threads} threads each; commit {commits}, {dates}; {versions}"
    figure.supxlabel(textwrap.fill(text, int(16 * figure.get_figwidth())), x=0.012, ha="left", fontsize=7.5, color=GREY)
