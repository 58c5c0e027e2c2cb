"""The kinds of statements about a table that can be tested, and when two numbers count as different.

A kind looks at the cells of a run and counts, for a statement about them, where it is true, where it is false, and
where it is open. The rule is one for all kinds: a is larger than b only if the whole 95 % interval of a lies above
that of b; overlapping intervals leave a comparison open, and so does a number without an interval. Times and memory
of a single run have no interval; they count as different beyond a factor of 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pandas as pd

from bench.report.results import groups_of, rows_of

MARGIN = 1.1
"""Factor beyond which single measurements of time count as different."""


@dataclass(frozen=True)
class Number:
    """One summarised number: mean with its 95 % interval (NaN where there is none)."""

    mean: float
    low: float
    high: float
    timing: bool = False

    @property
    def certain(self) -> bool:
        """Return whether the number has an interval."""
        return self.low <= self.high  # NaN where there is none

    def __gt__(self, other: Number) -> bool:
        if self.timing and not (self.certain and other.certain):
            return self.mean > MARGIN * other.mean
        return self.certain and other.certain and self.low > other.high

    @property
    def text(self) -> str:
        """Return the number as a table would print it."""
        return f"{self.mean:.3g} s" if self.timing else f"{100 * self.mean:.1f}"


@dataclass
class Count:
    """How often a statement was true, false or open, and the numbers that were compared."""

    yes: int = 0
    no: int = 0
    open: int = 0
    numbers: list[str] = field(default_factory=list)

    def add(self, verdict: bool | None, text: str) -> None:
        """Count one comparison; None: open."""
        if verdict is None:
            self.open += 1
        elif verdict:
            self.yes += 1
        else:
            self.no += 1
        self.numbers.append(f"{text}: {'open' if verdict is None else 'yes' if verdict else 'no'}")


@dataclass(frozen=True)
class Observed:
    """What a run offers to the tests.

    numbers: one row per measure, dataset, ipc, network, made (how it was made) and method, with mean, low, high,
    timing and distilled (the distillation network). memory: dataset, method, ipc, oom (bool) of every distillation.
    """

    numbers: pd.DataFrame
    memory: pd.DataFrame

    def cells(self, test: Mapping[str, Any], measure: str) -> Iterator[tuple[str, dict[str, Number]]]:
        """Yield (name, method -> number) of the cells of a measure that the test is about."""
        frame = self.numbers[self.numbers["measure"] == measure]
        for column, allowed in test.get("where", {}).items():
            frame = frame[frame[column].isin(allowed)]
        if "cells" in test:
            wanted = {(dataset, ipc) for dataset, ipc in test["cells"]}
            frame = frame.loc[[row.Index for row in rows_of(frame) if (row.dataset, row.ipc) in wanted]]
        for (dataset, ipc, network, _), rows in groups_of(frame, ["dataset", "ipc", "network", "made"]):
            name = f"{dataset} IPC {ipc}" + (f" {network}" if measure == "transfer" else "")
            yield name, {row.method: Number(row.mean, row.low, row.high, row.timing) for row in rows_of(rows)}


def ranked(seen: Observed, test: Mapping[str, Any]) -> Count:
    """`method` has `rank` among `among` (largest first; `smallest: true` turns the order).

    True where the intervals leave no other rank, false where they exclude this one. Cells that lack one of the
    methods are not compared.
    """
    count = Count()
    for name, numbers in seen.cells(test, test["measure"]):
        if not set(test["among"]) <= set(numbers):
            continue
        own = numbers[test["method"]]
        others = [numbers[other] for other in test["among"] if other != test["method"]]
        ahead = sum((own > other) if test.get("smallest") else (other > own) for other in others)
        behind = sum((other > own) if test.get("smallest") else (own > other) for other in others)
        best, worst = ahead + 1, len(others) - behind + 1
        rank = test["rank"]
        verdict = True if best == worst == rank else None if best <= rank <= worst else False
        listed = ", ".join(f"{other} {numbers[other].text}" for other in test["among"])
        count.add(verdict, f"{name} ({listed})")
    return count


def better(seen: Observed, test: Mapping[str, Any]) -> Count:
    """Each of `methods` is larger than each of `than`; every pair in every cell is one comparison."""
    count = Count()
    for name, one, two, text in _pairs(seen, test):
        count.add(True if one > two else False if two > one else None, f"{name} ({text})")
    return count


def differs(seen: Observed, test: Mapping[str, Any]) -> Count:
    """Each of `methods` differs from each of `than`, in either direction; overlapping intervals are a no."""
    count = Count()
    for name, one, two, text in _pairs(seen, test):
        known = one.timing or (one.certain and two.certain)
        count.add((one > two or two > one) if known else None, f"{name} ({text})")
    return count


def drops(seen: Observed, test: Mapping[str, Any]) -> Count:
    """From the first to the second network of each pair, `methods` lose at least the share `by` of their accuracy.

    True where even the smallest loss that the intervals allow is that large, false where the largest is not; for the
    methods `spared` the other way round. `distilled`: how the name of the distillation network must end.
    """
    count = Count()
    frame = seen.numbers[seen.numbers["measure"] == "transfer"]
    if "distilled" in test:
        frame = frame[frame["distilled"].str.endswith(test["distilled"])]
    spared = test.get("spared", [])
    networks = {network for pair in test["pairs"] for network in pair}
    frame = frame[frame["method"].isin([*test["methods"], *spared]) & frame["network"].isin(networks)]
    for (dataset, ipc, _, method), rows in groups_of(frame, ["dataset", "ipc", "made", "method"]):
        numbers = {row.network: Number(row.mean, row.low, row.high) for row in rows_of(rows)}
        for first, second in test["pairs"]:
            if not {first, second} <= set(numbers):
                continue
            one, two = numbers[first], numbers[second]
            least, most = 1 - two.high / one.low, 1 - two.low / one.high  # NaN without intervals: neither is true
            verdict = True if one > two and least >= test["by"] else False if most < test["by"] else None
            if method in spared and verdict is not None:
                verdict = not verdict
            count.add(verdict, f"{dataset} IPC {ipc} {method} ({first} {one.text}, {second} {two.text})")
    return count


def ratio(seen: Observed, test: Mapping[str, Any]) -> Count:
    """The measure is at most the share `at_most` of the measure `over`, for each of `methods` in each cell."""
    count = Count()
    wholes = dict(seen.cells(test, test["over"]))
    for name, numbers in seen.cells(test, test["measure"]):
        for method in test["methods"]:
            whole = wholes.get(name, {}).get(method)
            if method in numbers and whole is not None and whole.mean > 0:
                text = f"{name} {method} ({numbers[method].text} of {whole.text})"
                count.add(numbers[method].mean <= test["at_most"] * whole.mean, text)
    return count


def alike(seen: Observed, test: Mapping[str, Any]) -> Count:
    """All `methods` lie within a factor of each other; cells that lack one are not compared."""
    count = Count()
    for name, numbers in seen.cells(test, test["measure"]):
        if set(test["methods"]) <= set(numbers):
            means = [numbers[method].mean for method in test["methods"]]
            text = ", ".join(f"{method} {numbers[method].text}" for method in test["methods"])
            count.add(max(means) <= test["factor"] * min(means), f"{name} ({text})")
    return count


def first_out_of_memory(seen: Observed, test: Mapping[str, Any]) -> Count:
    """`method` runs out of memory at fewer images per class than all others of `among`; one comparison per dataset."""
    count = Count()
    for dataset, rows in groups_of(seen.memory, "dataset"):
        if not set(test["among"]) <= set(rows["method"]) or not rows["oom"].any():
            continue
        first = {name: cells[cells["oom"]]["ipc"].min() for name, cells in groups_of(rows, "method")}
        first = {name: int(ipc) for name, ipc in first.items() if not pd.isna(ipc) and name in test["among"]}
        own = first.get(test["method"])
        others = [ipc for name, ipc in first.items() if name != test["method"]]
        text = ", ".join(f"{name} from IPC {ipc}" for name, ipc in first.items())
        if first:
            count.add(own is not None and all(own < ipc for ipc in others), f"{dataset} ({text})")
    return count


KINDS: dict[str, Callable[[Observed, Mapping[str, Any]], Count]] = {
    "ranked": ranked,
    "better": better,
    "differs": differs,
    "drops": drops,
    "ratio": ratio,
    "alike": alike,
    "first_out_of_memory": first_out_of_memory,
}


def _pairs(seen: Observed, test: Mapping[str, Any]) -> Iterator[tuple[str, Number, Number, str]]:
    for name, numbers in seen.cells(test, test["measure"]):
        pairs: Sequence[tuple[str, str]] = list(product(test["methods"], test["than"]))
        for one, two in pairs:
            if one in numbers and two in numbers:
                yield name, numbers[one], numbers[two], f"{one} {numbers[one].text}, {two} {numbers[two].text}"
