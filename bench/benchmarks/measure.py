"""Times the two sides of a case in turns, in one process.

Other work on the machine slows both sides alike when they take turns, so the ratio is taken turn by turn and its
median and quartiles are told. Short calls are repeated until a turn takes `TURN` seconds. The first call of each side
(caches, compilation) is told apart. Beside the wall clock stands the time the cores spent on it, which other work on
the machine changes little.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.benchmarks.case import Case, Sides
from bench.lazy import torch
from bench.profile import MIB, host_peak_mib, reset_host_peak, resident_mib

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


def measure(case: Case, repeats: int) -> Row:
    """Make the sides of a case, time them in turns and read their memory."""
    sides = case.make()
    functions = {"fast": sides.fast} | ({"plain": sides.plain} if sides.plain else {})
    times = {name: Times() for name in functions}
    calls = {name: _warm_up(function, times[name]) for name, function in functions.items()}
    turns = case.repeats or repeats
    for _ in range(turns):
        for name, function in functions.items():
            _turn(function, calls[name], times[name])
    if case.memory:
        for name, function in functions.items():
            times[name].peak_MiB = peak(function)
    return _row(case, sides, turns, times)


def _warm_up(function: Callable[[], Any], times: Times) -> int:
    """Call twice, note the first; return how many calls make a turn, by the second."""
    seconds = 0.0
    for first in (True, False):
        begin = _now()
        function()
        seconds = _now() - begin
        if first:
            times.first = seconds
            if seconds > 50 * TURN:  # long enough to be a turn, even if it also warmed something up
                return 1
    return max(1, round(TURN / max(seconds, 1e-7)))


def _turn(function: Callable[[], Any], calls: int, times: Times) -> None:
    begin, cores = _now(), _cores()
    for _ in range(calls):
        function()
    times.seconds.append((_now() - begin) / calls)
    times.cores.append((_cores() - cores) / calls)


def _cores() -> float:
    """Return the seconds that cores spent on this process and on those it started and has seen end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(function: Callable[[], Any]) -> float:
    """Return by how many MiB the memory of the device (or of this process) rises at most during one call."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - allocated) / MIB
    with suppress(OSError, AttributeError):  # what was freed goes back to the system, or it would hide the rise
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_host_peak()
    before = resident_mib()
    function()
    return max(0.0, host_peak_mib() - before)


def _row(case: Case, sides: Sides, turns: int, times: dict[str, Times]) -> Row:
    found = {name: each.summary() for name, each in times.items()}
    row = Row(
        case.name, case.group, case.unit, turns, found["fast"], found.get("plain"), None, case.target, case.limit, None,
        dict(sides.facts),
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
