"""A run against a baseline: what changed, and what is only noise.

Accuracy is worse where the mean difference is below minus `margin` and its 95 % t interval lies below zero. Where both
have the same seeds the differences are paired: over sets, or over networks where there is one set. Their spread is
pooled over the IPCs and networks of one method, because two or three seeds alone say too little; without a seed in
common it is Welch's interval. Where one set alone is judged by several kinds of networks, the networks of a kind do not
tell how far rounding moves such a set on that kind (a VGG of width 8 by up to 14 points): a loss on some of them fails
the check only if their mean is worse in the same sense, with the kinds as observations. A run that gives the same
digits again, as it does on one machine, has no difference.

A cost is worse where its ratio to the baseline is above the limit and outside the noise band: the one-sided t bound of
a new run, at a risk of `RISK` for a false alarm anywhere in the check. Spread of a cost is its own or the pooled one,
whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench import stats
from bench.errors import UserError
from bench.regression.baseline import SECONDS, Baseline, Known
from bench.regression.measured import Cost, Measured, Values, Where
from bench.report.results import DONE
from bench.run.usage import SHORT

RISK = 0.01
"""Probability that the check of an unchanged run calls any of its costs worse."""

Verdict = Literal["ok", "better", "new", "skipped", "unclear", "worse", "missing"]
FAILS = ("worse", "missing")
FEW = 3
"""Kinds of networks from which on those of one set are judged together."""
NO_SPREAD = "the baseline has measured no noise: give --update several runs, or one with several seeds"


@dataclass(frozen=True)
class Limits:
    """What counts. margin: fraction of accuracy; slower, larger: ratios to the baseline. wall: judge wall clock."""

    margin: float = 0.02
    slower: float = 1.3
    larger: float = 1.3
    only_accuracy: bool = False
    wall: bool = False


@dataclass(frozen=True)
class Finding:
    """The verdict on one cell, accuracy, time or memory, with its numbers as text."""

    kind: Literal["cell", "accuracy", "time", "memory"]
    name: str
    verdict: Verdict
    before: str = ""
    now: str = ""
    change: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it fails the check."""
        return self.verdict in FAILS


def check(measured: Measured, baseline: Baseline, limits: Limits | None = None) -> list[Finding]:
    """Return a verdict on everything that the baseline or the run has. Raises `UserError` for another suite."""
    limits = limits or Limits()
    if (measured.suite, measured.preset) != (baseline.suite, baseline.preset):
        raise UserError(
            f"the run is of {measured.suite} ({measured.preset}), the baseline of {baseline.suite} ({baseline.preset})",
            hint="only runs of one suite and preset can be compared",
        )
    found = [*_cells(measured, baseline), *_accuracies(measured, baseline, limits.margin)]
    if not limits.only_accuracy:
        found += [*_times(measured, baseline, limits), *_memory(measured, baseline, limits)]
    return found


def _cells(measured: Measured, baseline: Baseline) -> Iterator[Finding]:
    """Judge that every evaluation that had a result has one."""
    for name in baseline.cells:
        state, reason = measured.cells.get(name, ("missing", "the run does not have this cell"))
        if state in DONE:
            yield Finding("cell", name, "ok")
        else:
            yield Finding("cell", name, "missing", "ok", state, reason=reason)
    known = set(baseline.cells)
    for name, (state, _) in measured.cells.items():
        if name not in known:
            yield Finding("cell", name, "new", now=state)


# ------------------------------------------------------------------------------------ accuracy


def _accuracies(measured: Measured, baseline: Baseline, margin: float) -> list[Finding]:
    """Judge every accuracy; those of one method whose differences are of one kind lend each other their spread."""
    found: dict[Where, Finding] = {}
    groups: dict[tuple[str, ...], dict[Where, np.ndarray]] = {}
    for one in baseline.accuracy:
        where = one.where
        now = measured.accuracy.get(where)
        before = one.values
        if now is None:
            found[where] = _finding(where, "missing", before, {}, reason="the run has no such number")
        elif (pairs := paired(before, now)) is not None:
            over, differences = pairs
            group = (where.dataset, where.label, where.evaluator, where.metric, where.tags, over)
            groups.setdefault(group, {})[where] = differences
            found[where] = _finding(where, "ok", before, now)
        else:
            found[where] = _judged(_finding(where, "ok", before, now), unpaired(before, now), margin, sets_differ=True)
    for (*_, kind), members in groups.items():
        for where, difference in zip(members, stats.pooled_paired(list(members.values())), strict=True):
            found[where] = _judged(found[where], difference, margin)
        if kind == "networks":
            for own in _by_set(members):
                found |= {where: _on_the_whole(found[where], own, margin) for where in own}
    new = [_finding(where, "new", {}, now) for where, now in measured.accuracy.items() if where not in found]
    return [*found.values(), *new]


def _by_set(members: Mapping[Where, np.ndarray]) -> list[dict[Where, float]]:
    """Return the mean differences of each set that several kinds of networks were trained on."""
    sets: dict[object, dict[Where, float]] = {}
    for where, differences in members.items():
        made = where.ipc, where.distil_network, where.recipe, where.selection
        sets.setdefault(made, {})[where] = float(differences.mean())
    return [own for own in sets.values() if len(own) >= FEW]


def _on_the_whole(finding: Finding, own: Mapping[Where, float], margin: float) -> Finding:
    """Return a loss as unclear where the set has not lost on the mean over its kinds of networks."""
    whole = stats.summary(list(own.values()))
    if finding.verdict != "worse" or (whole.mean < -margin and whole.high is not None and whole.high < 0):
        return finding
    text = f"one set, which has changed by {100 * whole.mean:+.1f} points on the mean of {len(own)} kinds of networks"
    return replace(finding, verdict="unclear", reason=text)


def paired(before: Values, now: Values) -> tuple[str, np.ndarray] | None:
    """Return (sets or networks, differences now - before [n]) over what both have; None without a common seed."""
    seeds = sorted(before.keys() & now.keys())
    rows = []
    for seed in seeds:
        common = sorted(before[seed].keys() & now[seed].keys())
        rows.append(np.array([now[seed][e] - before[seed][e] for e in common]))
    rows = [row for row in rows if row.size]
    if len(rows) > 1:
        return "sets", np.array([row.mean() for row in rows])
    return ("networks", rows[0]) if rows else None


def unpaired(before: Values, now: Values) -> stats.Paired:
    """Compare the means of the sets, now - before."""
    means = [[float(np.mean(list(own.values()))) for own in values.values()] for values in (now, before)]
    return stats.welch(*means)


def _judged(finding: Finding, difference: stats.Paired, margin: float, sets_differ: bool = False) -> Finding:
    """Return the finding with its verdict.

    A loss beyond the margin whose interval reaches zero is unclear: too few sets to fail the check, too much to hide.
    Without an interval the margin alone decides, except between single sets of different seeds: they differ anyway.
    """
    low, high, mean = difference.low, difference.high, difference.mean
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    verdict: Verdict = "ok"
    if mean and abs(mean) > margin:
        if low is None or high is None:
            verdict = "skipped" if sets_differ else ("worse" if mean < 0 else "better")
        elif high < 0 or low > 0:
            verdict = "worse" if mean < 0 else "better"
        elif mean < 0:
            verdict = "unclear"
    reason = "no common seed and a single set: nothing can be said" if verdict == "skipped" else ""
    return replace(finding, verdict=verdict, change=f"{100 * mean:+.1f}{interval} points", reason=reason)


def _finding(where: Where, verdict: Verdict, before: Values, now: Values, reason: str = "") -> Finding:
    network = f" on {where.network}" if where.network else ""
    more = [text for text in (where.recipe, where.tags, "" if where.selection == "last" else where.selection) if text]
    ipc = "" if where.ipc is None else f", ipc {where.ipc}"
    name = f"{where.evaluator}/{where.metric} of {where.label}, {where.dataset}{ipc}{network}"
    name += f" ({', '.join(more)})" if more else ""
    return Finding("accuracy", name, verdict, _percent(before), _percent(now), reason=reason)


def _percent(values: Values) -> str:
    means = [np.mean(list(own.values())) for own in values.values()]
    return f"{100 * np.mean(means):.1f} %" if means else ""


# ------------------------------------------------------------------------------------ time and memory


def _times(measured: Measured, baseline: Baseline, limits: Limits) -> Iterator[Finding]:
    """Judge the time of every cell: CPU seconds, on a GPU or on request wall clock, in steps of the calibration."""
    for one, cost, count in _pairs(measured, baseline):
        kind = "wall" if limits.wall or "device cpu" not in one.hardware else "cpu"
        finding = _compared(Finding("time", one.name, "ok"), kind, one, cost, measured, baseline, limits.slower, count)
        unit = SECONDS[kind]
        if cost is None:
            yield finding
        elif max(one.seconds[unit], now := cost.median(unit) or 0.0) < SHORT:
            yield replace(finding, verdict="ok", change="", reason=f"less than {SHORT:g} s")
        else:
            yield replace(finding, before=f"{one.seconds[unit]:.2f} s", now=f"{now:.2f} s")


def _memory(measured: Measured, baseline: Baseline, limits: Limits) -> Iterator[Finding]:
    """Judge the peak of memory of every distillation that had one."""
    for one, cost, count in _pairs(measured, baseline):
        if "MiB" in one.values:
            yield _compared(
                Finding("memory", one.name, "ok"), "MiB", one, cost, measured, baseline, limits.larger, count
            )


def _pairs(measured: Measured, baseline: Baseline) -> Iterator[tuple[Known, Cost | None, int]]:
    """Yield every cost of the baseline with that of the run, and how many such pairs there are."""
    there = {(cost.name, cost.digest, cost.hardware): cost for cost in measured.costs}
    pairs = [(one, there.get((one.name, one.digest, one.hardware))) for one in baseline.costs]
    count = sum(cost is not None for _, cost in pairs)
    return ((one, cost, count) for one, cost in pairs)


def _compared(
    finding: Finding,
    kind: str,
    one: Known,
    cost: Cost | None,
    measured: Measured,
    baseline: Baseline,
    limit: float,
    count: int,
) -> Finding:
    """Return the finding with its verdict, numbers and ratio, or with why there is none."""
    now = cost.median(kind) if cost else None
    if cost is None or now is None:
        return replace(finding, verdict="skipped", reason=_why(one, measured))
    if kind not in baseline.spread:
        return replace(finding, verdict="skipped", reason=NO_SPREAD)
    before = math.exp(float(np.mean(np.log(one.values[kind]))))
    ratio, noise = now / before, band(one, kind, baseline, len(cost.samples), count)
    verdict: Verdict = "ok"
    if max(ratio, 1 / ratio) > max(limit, noise):
        verdict = "worse" if ratio > 1 else "better"
    change = f"x {ratio:.2f}, noise up to x {noise:.2f}"
    return replace(finding, verdict=verdict, before=f"{before:.0f} MiB", now=f"{now:.0f} MiB", change=change)


def _why(one: Known, measured: Measured) -> str:
    """Return why a cost of the baseline cannot be compared."""
    same = [cost for cost in measured.costs if cost.name == one.name]
    if not measured.costs:
        return "the run has no cells measured in processes of their own"
    if not same:
        return "no cell of this name was measured from its begin to its end in a process of its own"
    if all(cost.digest != one.digest for cost in same):
        return "the settings are others than in the baseline"
    if all(cost.hardware != one.hardware for cost in same):
        return f"other hardware: {same[0].hardware}; baseline: {one.hardware}"
    return "not measured"


def band(one: Known, kind: str, baseline: Baseline, seeds: int, count: int) -> float:
    """Return the ratio that an unchanged run exceeds in any of `count` costs with a probability of `RISK`.

    kind must be one that the baseline has a spread of. seeds: of the run, for a spread between seeds.
    """
    from scipy import stats as distributions

    spread = baseline.spread[kind]
    terms = 1 + 1 / len(one.values[kind]) if spread.over == "runs" else 1 / one.seeds + 1 / seeds
    bound = float(distributions.t.isf(RISK / max(1, count), spread.df))
    return math.exp(bound * max(spread.std, one.spread.get(kind, 0.0)) * terms**0.5)
