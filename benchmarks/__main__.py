"""``python -m benchmarks [NAME ...]``, from the root of a checkout. Without names: everything that the CPU can do.

Each prints a table and appends its figures to ``results/NAME.csv``; peers that are not installed are
left out, and named. ``--quick`` takes small sizes and few rounds, and appends nothing.
``GRADCLIP_BENCH_LARGE=1`` adds the very large. Then:

    figures   draws figures/*.png from the CSV files
    readme    writes the tables of the README, docs/speed.md, docs/optimizers.md and docs/frameworks.md from them

By name alone: ``projection-search`` times the ways to an L1 ball's threshold, ``gpu`` needs a CUDA
device, PyTorch for CUDA and CuPy, ``gpu-host`` needs CuPy and no device, and appends with ``--save``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from benchmarks import (
    bench_agc,
    bench_amp,
    bench_dock,
    bench_global_norm,
    bench_jit,
    bench_memory,
    bench_norm,
    bench_optim,
    bench_projection,
    bench_sizes,
    bench_small,
    bench_value,
)
from benchmarks.harness import Settings, append, confine, settle
from gradclip_core.cli import bench_machine
from gradclip_core.cli.bench_timing import COLUMNS, NUMBERS, Row, table_of
from gradclip_core.cli.console import progress, say, table


class Timed(Protocol):
    """What ``Case`` and ``MemoryCase`` have in common."""

    @property
    def work(self) -> str:
        """What is done."""

    @property
    def data(self) -> str:
        """To what."""

    @property
    def rounds(self) -> int:
        """How often it says that it has come further."""

    def rows(self, threads: int, after_round: Callable[[], None]) -> list[Row]:
        """See ``Case.rows``."""


ON_THE_CPU: dict[str, Callable[[Settings], Sequence[Timed]]] = {
    "global-norm": bench_global_norm.cases,
    "value": bench_value.cases,
    "agc": bench_agc.cases,
    "norm": bench_norm.cases,
    "amp": bench_amp.cases,
    "optim": bench_optim.cases,
    "small": bench_small.cases,
    "arrays": bench_small.counted,
    "sizes": bench_sizes.cases,
    "memory": bench_memory.cases,
    "projection": bench_projection.cases,
    "dock": bench_dock.cases,
    "jit": bench_jit.cases,
}
PACKAGES = {"dock": bench_dock.packages}
"""Whose versions are noted, where those are not the usual ones."""
MISSING = {"agc": bench_agc.missing, "projection": bench_projection.missing}
ALONE = ("figures", "readme", "projection-search", "gpu", "gpu-host")


def main(argv: Sequence[str]) -> None:
    """Run what was named."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*ON_THE_CPU, *ALONE]))
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it runs; appends nothing")
    parser.add_argument("--threads", type=int, default=2, help="for everybody, and as many processors (2)")
    parser.add_argument("--rounds", type=int, help="of each case (21)")
    parser.add_argument("--save", action="store_true", help="for gpu-host, which otherwise appends nothing")
    asked = parser.parse_args(argv)
    for name in asked.names:
        if name not in (*ON_THE_CPU, *ALONE):
            parser.error(f"there is no benchmark {name!r}; there are {', '.join([*ON_THE_CPU, *ALONE])}")
    for name in [name for name in asked.names if name in ALONE]:
        alone(name)
    if names := [name for name in asked.names or ON_THE_CPU if name in ON_THE_CPU]:
        confine(asked.threads, [word for word in argv if word not in ALONE])
        settings, missing = settle(asked.threads, asked.rounds, asked.quick)
        for sentence in [*missing, *(why for name in names if name in MISSING for why in MISSING[name]())]:
            say(sentence, "yellow")
        say(f"{bench_machine.machine()}; {bench_machine.versions()}; {settings.threads} threads each")
        say("times ours: the peer's time over ours in the same round. Of the limit: against the simplest loop")
        say("that moves the same bytes. All of it takes about twenty minutes, --quick two.")
        for name in names:
            run(name, names, settings)


def run(name: str, names: Sequence[str], settings: Settings) -> None:
    """Time, print and append. What one case held is given back before the next one is prepared."""
    cases = ON_THE_CPU[name](settings)
    if not cases:
        say(f"{name}: nothing to time, for want of what it is compared with", "yellow")
        return
    rows: list[Row] = []
    with progress() as bar:
        task = bar.add_task("", total=sum(case.rounds for case in cases))
        for case in cases:
            place = f"{names.index(name) + 1} of {len(names)}, {name}"
            bar.update(task, description=f"{place}: {case.work}, {case.data}")
            rows += case.rows(settings.threads, lambda: bar.advance(task))
    table(name, COLUMNS, NUMBERS, table_of(rows))
    if settings.quick:
        say("not appended: the sizes are a hundredth of what their names say, to see that it runs")
    else:
        packages = PACKAGES[name]() if name in PACKAGES else ()
        say(f"appended to {append(name.replace('-', '_'), rows, packages=packages)}")
    say()


def alone(name: str) -> None:
    """What has a way of its own. Imported when it is wanted: some of it needs what not everybody has."""
    if name == "figures":
        from benchmarks import figures

        for path in figures.draw():
            say(f"wrote {path}")
    elif name == "readme":
        from benchmarks import docked, goals, readme

        say(f"wrote {', '.join(map(str, [*readme.write(), goals.write(), docked.write()]))}")
    elif name == "projection-search":
        bench_projection.search()
    elif name == "gpu":
        from benchmarks import bench_gpu

        bench_gpu.run()
    else:
        from benchmarks import bench_gpu_host

        bench_gpu_host.run()


if __name__ == "__main__":
    main(sys.argv[1:])
