"""Who runs next: the threads at the lowest place of the code, or, with a seed, some warps by chance.

The lowest place first lets paths that parted come together again. No thread may starve, as none does on a GPU from
sm_70 on, so that a group which spins is put aside after a while for the one that has waited longest.
"""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.grid import Grid
from tests.gpu.ptx.types import Array

END = 1 << 62
PATIENCE = 2000
"""Instructions that a group may run while others are ready."""


class Schedule:
    """The threads that can run, by their place in the code."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.ready: dict[int, Array] = {}
        self.since: dict[int, int] = {}
        """Place -> when the first of its threads came there, in turns."""
        self.turn = 0
        self.starved = False
        self.lowest_first = grid.random is None
        """Whether the group that runs lets those at lower places go before it."""

    def put(self, place: int, index: Array) -> None:
        """These threads go on there; they join those that are there already."""
        others = self.ready.get(place)
        if others is None:
            self.ready[place], self.since[place] = index, self.turn
        else:
            self.ready[place] = np.sort(np.concatenate((others, index)), kind="stable")

    def stop(self, place: int) -> int:
        """Up to where a group that is at that place may run: there it joins others, or lets them go first."""
        if self.lowest_first:
            return min(self.ready, default=END)
        return min((other for other in self.ready if other >= place), default=END)

    def take(self) -> tuple[int, Array, int]:
        """A group, its place, and how many instructions it may run."""
        if self.grid.random is not None:
            return self._take_by_chance(self.grid.random)
        self.turn += 1
        self.lowest_first = not self.starved
        place = min(self.ready, key=self.since.__getitem__) if self.starved else min(self.ready)
        self.starved = False
        return place, self.ready.pop(place), PATIENCE

    def _take_by_chance(self, random: np.random.Generator) -> tuple[int, Array, int]:
        places = sorted(self.ready)
        chosen = int(random.integers(len(places)))
        index = self.ready.pop(places[chosen])
        may_run = np.ones(self.grid.warps, bool)
        for place in places[:chosen]:
            may_run[self.ready[place] >> 5] = False  # in its warp, a lower place goes first
        some = may_run & (random.random(self.grid.warps) < random.choice((0.1, 0.5, 1.0)))
        taken = some[index >> 5]
        if not taken.any():
            taken = may_run[index >> 5]
        if not taken.any():  # then the lowest: there, nobody is before them
            self.ready[places[chosen]] = index
            return places[0], self.ready.pop(places[0]), int(random.integers(1, 40))
        if not taken.all():
            self.ready[places[chosen]] = index[~taken]
        return places[chosen], index[taken], int(random.integers(1, 40))
