"""What a site says of one method on one task in one run: where its numbers come from, and how to make them again.

Everything is read from the results folder: the cells of the place, what each of them keeps in its `result.json`, the
log of the distillation, the records. A folder without stored cells (records alone were kept) says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from bench.report import page
from bench.report.leaderboard import Place, place_of
from bench.report.results import DONE, Results, environments, rows_of, stored
from bench.report.table import percent, significant

POINTS = 200
"""Points drawn of a log at most."""

CURVES = 4
"""Logged quantities drawn at most."""

WIDTH, HEIGHT = 300, 120
RECORD = ["evaluator", "metric", "unit", "tags", "network", "recipe", "selection", "step"]


@dataclass(frozen=True)
class Cell:
    """A cell as a page shows it. saved: its `result.json` but for the measures, as text; own: it is of this place."""

    key: str
    words: str
    state: str
    reason: str
    seconds: str
    own: bool
    saved: str = ""
    started: str = ""


@dataclass(frozen=True)
class Curve:
    """A logged quantity over the steps, one line for each seed: points of an SVG, and the ends of the axes."""

    name: str
    lines: tuple[tuple[str, str], ...]
    low: str
    high: str
    steps: str


@dataclass(frozen=True)
class Line:
    """All records of one measure: what it is, and its values by seed."""

    what: tuple[str, ...]
    values: tuple[tuple[str, str], ...]


class Places:
    """The places of one run."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @cached_property
    def _states(self) -> dict[Place, list[Any]]:
        """The cells of each place, in the order of the plan."""
        found: dict[Place, list[Any]] = {}
        for row in rows_of(self.results.states):
            found.setdefault(place_of(row), []).append(row)
        return found

    @cached_property
    def _records(self) -> dict[Place, dict[tuple[Any, ...], dict[str, list[str]]]]:
        """Place -> what was measured -> seed -> printed values; plain loops, for pandas is slow on small groups."""
        found: dict[Place, dict[tuple[Any, ...], dict[str, list[str]]]] = {}
        for row in rows_of(self.results.records):
            what = tuple("" if pd.isna(text := getattr(row, name)) else str(text) for name in RECORD)
            seeds = found.setdefault(place_of(row), {}).setdefault(what, {})
            text = percent(row.value) if row.unit == "fraction" else significant(row.value)
            seeds.setdefault(str(row.seed), []).append(text)
        return found

    @cached_property
    def _by_key(self) -> dict[str, Any]:
        return {row.key: row for row in rows_of(self.results.states)}

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        return dict(zip(self.results.plan["key"], self.results.plan["inputs"], strict=True))

    def cells(self, place: Place) -> list[Cell]:
        """Return the cells of a place, then those of other places that they build on."""
        own = {row.key: row for row in self._states.get(place, [])}
        needed, waiting = dict.fromkeys(own), list(own)
        while waiting:
            fresh = [key for key in self._inputs.get(waiting.pop(), []) if key not in needed]
            needed |= dict.fromkeys(fresh)
            waiting += fresh
        cells = [self._cell(row, own=True) for row in own.values()]
        return cells + [self._cell(self._by_key[key], own=False) for key in needed if key not in own]

    def _cell(self, row: Any, own: bool) -> Cell:
        seconds = "" if pd.isna(row.seconds) else significant(row.seconds)
        plain = Cell(row.key, row.cell, row.state, row.reason, seconds, own)
        saved = stored(self.results.out, row.key) if own and row.state in DONE else {}
        if not saved:
            return plain
        kept = {name: value for name, value in saved.items() if name not in ("measures", "key", "label")}
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        return Cell(row.key, row.cell, row.state, row.reason, seconds, own, text, str(saved.get("started", "")))

    def facts(self, place: Place) -> list[tuple[str, str]]:
        """Return what the cells of a place say of themselves: seeds, networks, data, code, packages, hardware."""
        rows = [row for row in self._states.get(place, []) if row.state in DONE]
        data = dict.fromkeys(
            str(task["data"])
            for row in rows
            if (task := stored(self.results.out, row.key).get("config", {}).get("task", {})).get("data")
        )
        seeds = sorted({int(row.seed) for row in self._states.get(place, []) if not pd.isna(row.seed)})
        distilled = dict.fromkeys(row.distil_network for row in self._states.get(place, []) if row.distil_network)
        facts = [
            ("seeds", ", ".join(map(str, seeds))),
            ("distilled with", ", ".join(distilled)),
            ("sha256 of the data", ", ".join(data)),
            *page.environment(environments(self.results.out, [row.key for row in rows])),
        ]
        return [(name, text) for name, text in facts if text]

    def lines(self, place: Place) -> list[Line]:
        """Return the records of a place, those of one measure together."""
        measured = self._records.get(place, {})
        return [
            Line(what, tuple((seed, ", ".join(texts)) for seed, texts in seeds.items()))
            for what, seeds in measured.items()
        ]

    def curves(self, place: Place) -> list[Curve]:
        """Return what the distillations of a place logged and what changed on the way."""
        logs = {}
        for row in self._states.get(place, []):
            if row.kind == "distil" and row.state in DONE:
                logs[f"seed {row.seed}"] = list(self._log(row.key))
        names = dict.fromkeys(name for log in logs.values() for point in log for name in point)
        drawn = [_curve(name, logs) for name in names if name not in ("step", "seconds")]
        return [curve for curve in drawn if curve][:CURVES]

    def _log(self, key: str) -> Iterator[dict[str, float]]:
        """Yield the points of a log that can be read; the numbers of each."""
        path = self.results.out / "cells" / key[:2] / key / "log.jsonl"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return
        for line in text.splitlines():
            try:
                point = json.loads(line)
            except ValueError:
                continue
            if isinstance(point, dict) and "step" in point:
                yield {name: float(value) for name, value in point.items() if isinstance(value, int | float)}


def _curve(name: str, logs: dict[str, list[dict[str, float]]]) -> Curve | None:
    """Return the lines of one quantity; nothing where it never changes. Every k-th point is drawn of a long log."""
    series = {seed: [(point["step"], point[name]) for point in log if name in point] for seed, log in logs.items()}
    series = {seed: [(x, y) for x, y in points if abs(y) < float("inf")] for seed, points in series.items()}
    values = [y for points in series.values() for _, y in points]
    steps = [x for points in series.values() for x, _ in points]
    if not values or min(values) == max(values) or min(steps) == max(steps):
        return None
    scale = (min(steps), max(steps), min(values), max(values))
    lines = tuple((seed, " ".join(_points(points, scale))) for seed, points in series.items() if points)
    return Curve(name, lines, significant(scale[2]), significant(scale[3]), f"{scale[0]:g} to {scale[1]:g}")


def _points(points: Sequence[tuple[float, float]], scale: tuple[float, float, float, float]) -> Iterator[str]:
    first, last, low, high = scale
    for x, y in points[:: max(1, len(points) // POINTS)]:
        yield f"{WIDTH * (x - first) / (last - first):.1f},{HEIGHT * (high - y) / (high - low):.1f}"
