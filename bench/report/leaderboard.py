"""The leaderboard of a site: the tables of several runs as lists of rows that a reader can sort and filter.

A view is what one kind of table shows, over all runs: a row for each run, dataset, method, IPC and way of making the
networks, a column for each measure. Rows are made of the tidy frames behind the tables of the report, so text,
rounding and states are theirs, and published numbers stand beside ours by their rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from bench.report import accuracy, cost, measures
from bench.report.grid import SELECTIONS
from bench.report.results import DONE, Results, groups_of, rows_of
from bench.report.table import percent, significant

Place = tuple[str, str, int | None]
"""Dataset, label of the method, IPC: what has a page of its own."""


class Value(NamedTuple):
    """What stands in one place: printed text, the number to sort by, its interval in words, `Cell.kind`."""

    text: str
    value: float | None
    interval: str
    kind: str


class Beside(NamedTuple):
    """A published number that may stand beside ours: its text, number, how it is called, its source."""

    text: str
    value: float | None
    title: str
    source: str


class Column(NamedTuple):
    """A measure of a view. better: `high`, `low` or nothing."""

    title: str
    better: str = ""


@dataclass
class Entry:
    """A row. run: index of the run. tags: values of the view's `tags`. state, reason: why there is no number."""

    run: int
    place: Place
    method: str
    settings: str
    protocol: str
    tags: tuple[str, ...]
    values: dict[str, Value] = field(default_factory=dict)
    published: list[Beside] = field(default_factory=list)
    state: str = ""
    reason: str = ""


@dataclass
class View:
    """One kind of table over all runs. columns: by name. tags: titles of further columns that tell rows apart."""

    name: str
    title: str
    tags: tuple[str, ...] = ()
    columns: dict[str, Column] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


def views(runs: Sequence[Results], review: pd.DataFrame | None = None) -> list[View]:
    """Return the views of several runs. review: published accuracies from the user's file, see `accuracy_tables`."""
    found: dict[str, View] = {}
    for number, run in enumerate(runs):
        reasons = _reasons(run)
        fresh: dict[str, dict[Any, Entry]] = {}
        for part in _parts(run, review):
            view = found.setdefault(part.view.name, part.view)
            view.columns |= part.view.columns
            view.notes |= part.view.notes
            _collect(fresh.setdefault(view.name, {}), number, part, reasons)
        for name, entries in fresh.items():
            measured = {entry.place for entry in entries.values() if not entry.state}
            found[name].entries += [one for one in entries.values() if not one.state or one.place not in measured]
    return [view for view in found.values() if view.entries]


def place_of(row: Any) -> Place:
    """Return the place of a row of any frame of the report."""
    return row.dataset, row.label, None if pd.isna(row.ipc) else int(row.ipc)


# ------------------------------------------------------------------------------------------------ from tables to rows


@dataclass(frozen=True)
class _Part:
    """What one table of one run adds to a view.

    frame: its tidy frame with `name`, the column of the view. tags: columns of `frame` that tell rows apart. rest:
    what else all of its rows have in common. others: published numbers made the same way, as `accuracy.others` has
    them.
    """

    view: View
    frame: pd.DataFrame
    tags: Sequence[str] = ()
    rest: str = ""
    others: Sequence[tuple[str, pd.DataFrame, str]] = ()


def _parts(run: Results, review: pd.DataFrame | None) -> Iterator[_Part]:
    for table in accuracy.accuracy_tables(run):
        for (recipe, network, distil_network), frame in groups_of(table.data, ["recipe", "network", "distil_network"]):
            others = accuracy.others(run, network, distil_network, recipe, review)
            view = View("accuracy", "Accuracy in percent", columns={"accuracy": Column("accuracy", "high")})
            yield _Part(view, frame.assign(name="accuracy", unit="fraction"), others=others)
    for table in accuracy.cross_arch_tables(run):
        columns = {network: Column(network, "high") for _, network in table.columns}
        frame = table.data.assign(name=table.data["network"], unit="fraction", network="")
        yield _Part(View("cross_arch", "Transfer to other networks: accuracy in percent", columns=columns), frame)
    for table in cost.cost_tables(run):
        frame = _named(table.data)
        columns = {name: _cost(name) for name in sorted(_names(frame), key=cost.order)}
        yield _Part(View("cost", "Cost of the distillation", columns=columns), frame)
    for sheet in measures.sheets(run):
        yield _further(sheet)


def _further(sheet: measures.Sheet) -> _Part:
    """Return what a table of a further evaluator adds; in a plain table the title of a column is its name."""
    frame, layout = _named(sheet.table.data), sheet.layout
    if layout is None:
        columns = {name: Column(name) for name in _names(frame)}
        return _Part(View(f"{sheet.evaluator}_measures", f"Measures of {sheet.evaluator}", columns=columns), frame)
    columns = {}
    for row in rows_of(frame[frame["name"] != ""].drop_duplicates("name")):
        shown = layout.metrics[row.metric]
        columns[row.name] = Column(f"{row.head}: {shown.title}" if row.head else shown.title, shown.better)
    name = "_".join(text for text in (sheet.evaluator, layout.name) if text)
    view = View(name, layout.title, tuple(layout.rows.values()), columns, dict.fromkeys(sheet.notes))
    return _Part(view, frame, [f"tag_{tag}" for tag in layout.rows], sheet.rest)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a tidy frame with its column names as `name`; rows without a number have none."""
    return frame.assign(name=frame["column"].fillna(""))


def _names(frame: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(frame["name"]) if name]


def _cost(name: str) -> Column:
    group, title = cost.heading(name)
    better = "" if name == "steps" else "low"
    return Column(f"{group}: {title}" if group else title, better)


# ------------------------------------------------------------------------------------------------ rows


def _collect(entries: dict[Any, Entry], run: int, part: _Part, reasons: dict[tuple[Place, str], str]) -> None:
    """Add the rows of a part to the entries of one run in one view; what several tables repeat is one row."""
    for row in rows_of(part.frame):
        place, lost = place_of(row), row.state not in ("ok", "partial")
        protocol = "" if lost else _protocol(row, part.rest)
        tags = tuple("" if lost else str(getattr(row, tag)) for tag in part.tags)
        entry = Entry(run, place, row.method, row.settings, protocol, tags)
        entry = entries.setdefault((place, row.method, row.settings, protocol, tags, lost), entry)
        if lost:
            entry.state, entry.reason = row.text, reasons.get((place, row.text), "")
            continue
        kind = "partial" if row.state == "partial" else "value"
        entry.values[row.name] = Value(row.text, _number(row.mean), _interval(row), kind)
        entry.published = entry.published or list(_published(row, part.others))


def _published(row: Any, others: Sequence[tuple[str, pd.DataFrame, str]]) -> Iterator[Beside]:
    for title, table, source in others:
        cell = accuracy.beside(table, row, {"ipc": row.ipc})
        if cell.value is not None:
            yield Beside(cell.text, cell.value, title, source)


def _protocol(row: Any, rest: str) -> str:
    """Return how the networks behind a number were made, and what else sets its row apart."""
    parts = [row.network, row.recipe]
    parts += [f"distilled with {row.distil_network}"] if row.distil_network not in ("", row.network) else []
    parts += [SELECTIONS.get(row.selection, row.selection)] if row.selection not in ("", "last") else []
    return ", ".join(text for text in [*parts, rest] if text)


def _interval(row: Any) -> str:
    """Return the interval of the mean in words, with what it is over; nothing for a single number."""
    if pd.isna(row.low):
        return ""
    count = row.n_sets if row.over == "sets" else row.n
    low, high = (percent(end) if row.unit == "fraction" else significant(end) for end in (row.low, row.high))
    return f"95 %: {low} to {high}, {count} {row.over}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _reasons(run: Results) -> dict[tuple[Place, str], str]:
    """Return why places have no number, by place and state; the first reason stands for all."""
    found: dict[tuple[Place, str], str] = {}
    for row in rows_of(run.states[~run.states["state"].isin(DONE) & (run.states["label"] != "")]):
        word, reason = run.cause(row.key)
        found.setdefault((place_of(row), word), reason)
    return found
