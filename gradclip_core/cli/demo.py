"""``gradclip demo``: what clipping is for, shown on a network that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradclip_core.cli.atomic import check_target, replacing
from gradclip_core.cli.console import progress, say, table
from gradclip_core.cli.rnn import Corpus, corpus
from gradclip_core.cli.training import Run, Settings, train, verdict
from gradclip_core.errors import GradClipError

_USUAL = Settings()


def command(
    steps: Annotated[int, typer.Option(min=2, help="Steps of each of the two runs.")] = _USUAL.steps,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture, .png, .svg or .pdf.")] = Path("demo.png"),
    seed: Annotated[int, typer.Option(min=0, help="Of the parameters and the batches, for both runs.")] = _USUAL.seed,
    max_norm: Annotated[float, typer.Option(help="Bound on the gradient's norm.")] = _USUAL.max_norm,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = _USUAL.rate,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the network.")] = _USUAL.hidden,
    length: Annotated[int, typer.Option(min=1, max=4096, help="Characters in a sequence.")] = _USUAL.length,
) -> None:
    """Train an RNN with clipping and without, and draw both.

    The network is a tanh RNN in plain NumPy; the text is Python's own documentation. Both runs
    start from the same parameters and see the same batches.
    """
    from gradclip_core.cli import plot  # before the training: a missing matplotlib is known at once

    if out.suffix.lower() not in plot.SUFFIXES:
        seen = f"the suffix '{out.suffix}' is of no known picture"
        raise GradClipError(f"write {out}", seen, f"Name a file that ends in {', '.join(plot.SUFFIXES)}")
    check_target(out)
    settings = Settings(steps, seed, hidden=hidden, length=length, rate=rate, max_norm=max_norm)
    text = corpus()
    say(
        f"{text.data.size:,} characters of {text.source}, {len(text.symbols)} symbols: "
        f"a uniform guess costs {text.uniform:.2f} nats each, knowing how frequent each is {text.entropy:.2f}"
    )
    runs = _train(settings, text)
    with replacing(out) as file:
        plot.draw(runs, settings, text, file, out.suffix.lower())
    table("", ("", *("with clipping" if run.clips else "without" for run in runs)), (), _rows(runs, text))
    say(f"Wrote {out}")


def _train(settings: Settings, text: Corpus) -> list[Run]:
    runs = []
    with progress() as bar:
        for clips in (True, False):
            name = "with clipping" if clips else "without"
            task = bar.add_task(f"{name:13}", total=settings.steps)

            def show(run: Run, task: object = task, name: str = name) -> None:
                description = f"{name:13} loss {run.losses[-1]:6.2f}  norm {run.norms[-1]:8.2g}"
                bar.update(task, advance=1, description=description)  # type: ignore[arg-type]

            runs.append(train(settings, text, clips, show))
    return runs


def _rows(runs: list[Run], text: Corpus) -> list[list[str]]:
    return [
        ["final loss, nats/character", *(f"{run.final:.3f}" for run in runs)],
        ["steps", *(str(len(run.losses)) for run in runs)],
        ["steps clipped", *(f"{run.clipped} ({run.clipped / len(run.losses):.0%})" for run in runs)],
        ["largest gradient norm", *("{:.3g} at step {}".format(*run.largest) for run in runs)],
        ["what happened", *(verdict(run, text.entropy) for run in runs)],
    ]
