"""Times the two sides of a case in turns and tells their ratio.

Each side lives in a process of its own, as it would outside: the fast side with the heap of a cell, the plain side
with that of any process (`bench.heap`; a heap once kept cannot be undone), and the memory of one is not that of the
other. They take turns, so that other work on the machine slows both alike; the ratio is taken turn by turn, its
median and quartiles are told. Short calls are repeated until a turn takes `TURN` seconds. The first call of each side
(caches, compilation) is told apart. Beside the wall clock stands the time the cores spent, which other work on the
machine changes little.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.benchmarks.case import Case
from bench.benchmarks.side import Apart, Side

TURN = 0.02
"""Least seconds of a turn."""


@dataclass
class Times:
    """Seconds per call of one side: the first call, then the median and the least over the turns; peak memory."""

    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    peak_MiB: float | None = None

    def whole(self, share: float) -> float:
        """Return the seconds of the whole run, of which a call does this share."""
        usual = statistics.median(self.seconds)
        return usual / share + max(0.0, self.first - usual)

    def summary(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "first": self.first,
            "median": statistics.median(self.seconds),
            "least": min(self.seconds),
            "cores": statistics.median(self.cores),
            "peak_MiB": self.peak_MiB,
        }


@dataclass
class Row:
    """What was measured for a case, as plain JSON values; `ratio` is plain / fast.

    ratio: median, lower and upper quartile over the turns; of_least: ratio of the least times; of_cores: of the
    median times the cores spent; whole: of the whole run that the case is a part of, with all that the first call of
    each side cost (compilation). holds: whether the claim of the case holds, None where it makes none.
    """

    name: str
    group: str
    unit: str
    turns: int
    fast: dict[str, Any]
    plain: dict[str, Any] | None = None
    ratio: dict[str, float] | None = None
    target: float | None = None
    limit: float | None = None
    holds: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Return the row as a mapping."""
        return asdict(self)


def measure(case: Case, repeats: int, threads: int = 1, make: Callable[[Case, str, int], Side] = Apart) -> Row:
    """Make the sides of a case, time them in turns and read their memory."""
    sides: dict[str, Side] = {}
    try:
        sides["fast"] = make(case, "fast", threads)
        if sides["fast"].paired:
            sides["plain"] = make(case, "plain", threads)
        times = {name: Times() for name in sides}
        calls = {name: _warm_up(side, times[name]) for name, side in sides.items()}
        turns = min(repeats, case.repeats or repeats)
        for _ in range(turns):
            for name, side in sides.items():
                seconds, cores = side.run(calls[name])
                times[name].seconds.append(seconds / calls[name])
                times[name].cores.append(cores / calls[name])
        if case.memory:
            for name, side in sides.items():
                times[name].peak_MiB = side.peak()
        return _row(case, sides["fast"].facts, turns, times)
    finally:
        for side in sides.values():
            side.close()


def _warm_up(side: Side, times: Times) -> int:
    """Call twice, note the first; return how many calls make a turn, by the second."""
    times.first = side.run(1)[0]
    if times.first > 50 * TURN:  # long enough to be a turn, even if it also warmed something up
        return 1
    return max(1, round(TURN / max(side.run(1)[0], 1e-7)))


def _row(case: Case, facts: dict[str, Any], turns: int, times: dict[str, Times]) -> Row:
    found = {name: each.summary() for name, each in times.items()}
    row = Row(
        case.name, case.group, case.unit, turns, found["fast"], found.get("plain"), None, case.target, case.limit, None,
        facts,
    )  # fmt: skip
    if "plain" in times:
        fast, plain = times["fast"], times["plain"]
        each = sorted(p / f for p, f in zip(plain.seconds, fast.seconds, strict=True))
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        row.ratio = {
            "median": middle,
            "low": low,
            "high": high,
            "of_least": min(plain.seconds) / min(fast.seconds),
            "of_cores": statistics.median(plain.cores) / max(statistics.median(fast.cores), 1e-9),
        }
        if case.share is not None:
            row.ratio["whole"] = plain.whole(case.share) / fast.whole(case.share)
    if case.target is not None and row.ratio:
        row.holds = row.ratio.get("whole", middle) >= case.target
    if case.limit is not None:
        row.holds = row.fast["median"] <= case.limit
    return row
