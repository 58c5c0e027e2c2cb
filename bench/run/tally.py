"""How far a run is, and how long the rest will take: a pure function of what happened and when.

    seconds left = expected seconds of the cells that are left / cells that run at once

Cells of one sort (kind, what they compute, dataset) are expected to take what those did that were computed in this run:
the same for each and more for its weight, by least squares, or in proportion to the weight where all weights were
equal. Where none of the sort was computed, those of the kind tell, else all in proportion to their weights. But weights
know nothing of starting a process, so no cell is expected to take less than the shortest so far, or a second where all
took longer. Of a running cell counts what its steps say, or else what is not over yet. Seconds are those between start
and end as the runner sees them; how many cells run at once is measured, apart for timed cells.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FINAL = frozenset({"ok", "cached", "failed", "diverged", "oom", "timeout", "killed", "skipped"})
START_SECONDS = 1.0
"""What a cell may take for its start alone, where all that were computed took longer."""
FRESH = 1.0
"""Seconds for which an estimate stays: it is asked for at the end of every cell."""

Sort = tuple[str, str, str, bool]


class Happening(Protocol):
    """What is read of `bench.run.scheduler.Event`."""

    cell: Any
    state: str
    reason: str
    seconds: float | None
    progress: Any


@dataclass
class _Group:
    """Cells of one sort: how many are left with what weight, and sums over those that were computed.

    sums: of 1, weight, weight squared, seconds, weight times seconds.
    """

    left: int = 0
    weight_left: float = 0.0
    sums: tuple[float, ...] = (0.0,) * 5

    def took(self, *sums: float) -> None:
        self.sums = tuple(one + more for one, more in zip(self.sums, sums, strict=True))

    def line(self) -> tuple[float, float]:
        """Return the seconds of a cell and those per weight; neither is negative."""
        count, weight, squares, seconds, products = self.sums
        if not weight:
            return seconds / count, 0.0
        spread = squares - weight**2 / count
        if spread <= 1e-9 * squares:
            return 0.0, seconds / weight
        slope = min(max(0.0, (products - weight * seconds / count) / spread), seconds / weight)
        return (seconds - slope * weight) / count, slope


@dataclass
class _Running:
    """A running cell: since when; when it told of its first step and of its latest, and which of how many they were."""

    cell: Any
    begin: float
    first: tuple[float, int] | None = None
    last: tuple[float, int, int] | None = None

    def tell(self, now: float, step: int, steps: int) -> None:
        if steps:
            self.first = self.first or (now, step)
            self.last = now, step, steps

    def left(self, now: float, expected: float) -> float:
        """Return its seconds left; expected: of the whole cell where its steps say nothing."""
        if self.first and self.last and self.last[1] > self.first[1]:
            at, step, steps = self.last
            return max(0.0, (at - self.first[0]) / (step - self.first[1]) * (steps - step) - (now - at))
        return max(0.0, expected - (now - self.begin))


class Tally:
    """Takes events in and says how far a run is. clock: monotonic seconds."""

    def __init__(self, cells: Sequence[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.failed = len(cells), 0
        self.finished: set[str] = set()
        self._clock = clock
        self._groups: dict[Sort, _Group] = defaultdict(_Group)
        self._running: dict[str, _Running] = {}
        self._shortest = float("inf")
        self._looked = clock()
        self._count = {True: 0, False: 0}  # by whether timed: cells that run now
        self._busy = {True: 0.0, False: 0.0}  # seconds of all cells that ran
        self._wall = {True: 0.0, False: 0.0}  # seconds in which any ran
        self._estimate: tuple[float, float] | None = None
        for cell in cells:
            self._leave(cell, 1)

    def note(self, event: Happening) -> None:
        """Take an event into account."""
        now, cell, key = self._look(), event.cell, event.cell.key
        if event.state == "running":
            if key not in self._running:
                self._running[key] = _Running(cell, now)
                self._count[bool(cell.timed)] += 1
            running = self._running[key]
            if event.progress is not None:
                running.tell(now, event.progress.step, event.progress.steps)
            return
        begun = self._running.pop(key, None)
        self._count[bool(cell.timed)] -= begun is not None
        if event.state == "damaged" and key in self.finished:  # it will be computed again
            self.finished.discard(key)
            self._leave(cell, 1)
        if event.state not in FINAL or key in self.finished:
            return
        self.finished.add(key)
        self._leave(cell, -1)
        self.failed += event.state not in ("ok", "cached")
        if event.state == "ok" and event.seconds is not None:
            seconds = max(event.seconds, now - begun.begin if begun else 0.0)
            weight = float(cell.weight)
            self._groups[sort(cell)].took(1, weight, weight**2, seconds, weight * seconds)
            self._shortest = min(self._shortest, seconds)

    def time_left(self) -> float | None:
        """Return the expected seconds until the end, None while nothing has been computed."""
        now = self._clock()
        if self._shortest == float("inf"):
            return None
        if len(self.finished) == self.total:
            return 0.0
        if self._estimate is None or now - self._estimate[0] >= FRESH:
            self._look()
            self._estimate = now, self._expected(now)
        return max(0.0, self._estimate[1] - (now - self._estimate[0]))

    def _expected(self, now: float) -> float:
        floor, whole = min(self._shortest, START_SECONDS), _Group()
        kinds: dict[str, _Group] = defaultdict(_Group)
        lines: dict[Sort, tuple[float, float]] = {}
        for name, group in self._groups.items():
            for wider in (kinds[name[0]], whole):
                wider.took(*group.sums)
        rest = {True: 0.0, False: 0.0}
        for name, group in self._groups.items():
            measured = next((one for one in (group, kinds[name[0]]) if one.sums[0]), None)
            each, rate = lines[name] = measured.line() if measured else (0.0, whole.sums[3] / max(whole.sums[1], 1e-9))
            rest[name[3]] += max(group.left * each + group.weight_left * rate, group.left * floor)
        longest = 0.0
        for running in self._running.values():
            name = sort(running.cell)
            expected = max(lines[name][0] + float(running.cell.weight) * lines[name][1], floor)
            left = running.left(now, expected)
            rest[name[3]] += left - expected
            longest = max(longest, left)
        return max(longest, sum(max(0.0, seconds) / self._at_once(timed) for timed, seconds in rest.items()))

    def _at_once(self, timed: bool) -> float:
        """Return how many cells ran at once, timed or not, while there were any."""
        if not self._wall[timed]:
            return 1.0
        return max(1.0, self._busy[timed] / self._wall[timed])

    def _look(self) -> float:
        """Book the seconds since the last look on the cells that ran in them; return the present time."""
        now = self._clock()
        for timed, count in self._count.items():
            self._busy[timed] += count * (now - self._looked)
            self._wall[timed] += (count > 0) * (now - self._looked)
        self._looked = now
        return now

    def _leave(self, cell: Any, count: int) -> None:
        group = self._groups[sort(cell)]
        group.left += count
        group.weight_left += count * float(cell.weight)


def sort(cell: Any) -> Sort:
    """Return what a cell is of: kind, what it computes, dataset, and whether it is timed."""
    config = cell.config
    name = config.get("evaluator") or config.get("artifact") or config.get("method") or ""
    return str(cell.kind), str(name), str(cell.coords.get("dataset", "")), bool(cell.timed)
