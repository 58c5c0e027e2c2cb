"""Tables of all further evaluators: a declared layout where there is one, else every measure in a column of its own.

What no layout of `bench.report.layouts` shows follows in the plain table, and in full precision with intervals in the
CSV files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pandas as pd

from bench.report import cost
from bench.report.grid import MARK, WHERE
from bench.report.layouts import LAYOUTS, Layout
from bench.report.results import Results, groups_of, rows_of, summarise
from bench.report.table import Row, Table, file_name, percent

MADE = ["dataset", "distil_network", "network", "recipe", "selection"]
MANY = 24
"""A plain table with more columns than this goes to its CSV only."""
OWN = ("accuracy", "cross_arch")
"""Evaluators whose accuracies have tables of their own; so has all of `cost`."""
DIVERGED = "diverged"
SPREAD = "mean ± standard deviation; 95 % intervals are in the CSV"


@dataclass(frozen=True)
class Sheet:
    """A table with where it comes from: its evaluator, its layout (none for a plain one), and what it alone holds.

    notes: those that hold whatever made the networks. rest: the values of tags that split the table, as text.
    """

    table: Table
    evaluator: str
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    rest: str = ""


def measure_tables(results: Results) -> list[Table]:
    """Return the tables of all layouts, then one plain table per evaluator, dataset and way of making its networks."""
    return [sheet.table for sheet in sheets(results)]


def sheets(results: Results) -> list[Sheet]:
    """Return the tables of `measure_tables` with where they come from."""
    laid = [sheet for name, layouts in LAYOUTS.items() for one in layouts for sheet in _laid_out(results, name, one)]
    return laid + _plain(results)


def plain_tables(results: Results) -> list[Table]:
    """Return the plain tables of what nothing else shows."""
    return [sheet.table for sheet in _plain(results)]


def _plain(results: Results) -> list[Sheet]:
    records = results.records
    shown = (records["evaluator"] == "cost") | records["evaluator"].isin(OWN) & records["metric"].isin(
        ("accuracy", "storage")
    )
    for name, layouts in LAYOUTS.items():
        metrics = {metric for layout in layouts for metric in (*layout.metrics, layout.missing)}
        shown |= (records["evaluator"] == name) & records["metric"].isin(metrics)
    rest = records[~shown]
    evaluators = {*rest["evaluator"], *results.plan["evaluator"]} - {*OWN, *LAYOUTS, "cost", ""}
    extra = [name for name in (*OWN, *LAYOUTS) if (rest["evaluator"] == name).any()]
    found_sheets = []
    for evaluator in [*extra, *sorted(evaluators)]:
        found = cost.summary(rest, evaluator)
        for key, here, wanted, unique in _split(results, evaluator, found):
            columns = list(dict.fromkeys(here["column"]))
            shown_columns = (columns or ["state"]) if len(columns) <= MANY else []
            rows = cost.table_rows(results, here, wanted, shown_columns)
            lines = [*_made(results, key), "mean ± standard deviation"]
            lines += [f"{len(columns)} columns: see the CSV"] if len(columns) > MANY else []
            name = file_name(evaluator, "measures", *key[: 1 if unique else None])
            heads = tuple(("", column) for column in shown_columns)
            title = f"Measures of {evaluator}, {key[0]}"
            table = Table(name, title, tuple(lines), ("method", "IPC"), heads, rows, cost.tidy(here, wanted))
            found_sheets.append(Sheet(table, evaluator))
    return found_sheets


def _split(
    results: Results, evaluator: str, found: pd.DataFrame, by: Sequence[str] = (), together: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame, pd.DataFrame, bool]]:
    """Yield (values of MADE and `by`, rows, planned cells, whether the dataset tells the tables apart).

    together: those of MADE that do not split; their value is empty.
    """
    planned = results.planned(evaluator)
    apart = found.assign(**dict.fromkeys(together, ""))
    groups = [(key, found.loc[part.index]) for key, part in groups_of(apart, [*MADE, *by])]
    if not groups and len(planned):
        empty = [""] * (len(MADE) - 1 + len(by))
        groups = [((dataset, *empty), found) for dataset in planned["dataset"].unique()]
    unique = len(groups) == len({key[0] for key, _ in groups})
    for key, here in groups:
        yield key, here, planned[planned["dataset"] == key[0]], unique


def _made(results: Results, key: Sequence[str]) -> list[str]:
    """Return preset, networks, recipe and selection as notes."""
    how = [f"{name.replace('_', ' ')}: {text}" for name, text in zip(MADE[1:], key[1 : len(MADE)], strict=True) if text]
    return [f"preset: {results.preset}", *(["; ".join(how)] if how else [])]


# ------------------------------------------------------------------------------------------------ layouts


def _laid_out(results: Results, evaluator: str, layout: Layout) -> list[Sheet]:
    """Return the tables of one layout: one per dataset, way of making the networks, and tags it does not name."""
    records = results.of(evaluator)
    records = records[records["step"].isna()]
    lost = records[records["metric"] == layout.missing] if layout.missing else records[:0]
    measured, chosen = _chosen(_with_tags(records[records["metric"].isin(list(layout.metrics))], layout), layout)
    found_sheets = []
    text = _with_interval if layout.intervals else cost.printed
    for key, here, wanted, unique in _split(
        results, evaluator, _summaries(measured, layout), ["rest"], layout.together
    ):
        columns, by = _columns(here, layout), [_tag(name) for name in layout.rows]
        rows = cost.table_rows(results, here, wanted, [_column(*column) for column in columns], by, text)
        if not rows:  # the suite did not ask for these metrics
            continue
        shown = [layout.metrics[metric] for _, metric in columns]
        fixed = [f"{tag}: {value}" for tag, value in chosen.items()]
        lines = [*_made(results, key), *fixed, *key[len(MADE) :]]
        lines += ["mean [95 % interval]" if layout.intervals else SPREAD, *layout.notes]
        marks = [f"{MARK} networks that diverged are among the mean"] if here[DIVERGED].any() else []
        reasons = _reasons(lost[lost["dataset"] == key[0]])
        table = Table(
            name=file_name(evaluator, layout.name, key[0], *(() if unique else key[1:])),
            title=f"{layout.title}, {key[0]}",
            notes=tuple(line for line in [*lines, *marks, *reasons] if line),
            index=("method", "IPC", *layout.rows.values()),
            columns=tuple((group, one.title) for (group, _), one in zip(columns, shown, strict=True)),
            rows=_best(rows, [one.better for one in shown]),
            data=cost.tidy(here, wanted, [*by, "head", "metric"]),
        )
        notes = (*fixed, *layout.notes, *marks, *(f"{key[0]}: {reason}" for reason in reasons))
        found_sheets.append(
            Sheet(table, evaluator, layout, notes, "; ".join(text for text in key[len(MADE) :] if text))
        )
    return found_sheets


def _columns(found: pd.DataFrame, layout: Layout) -> list[tuple[str, str]]:
    """Return (group, metric) of the columns: groups as they come, metrics as in the layout; one where none is known."""
    there = dict.fromkeys(found[["head", "metric"]].itertuples(index=False, name=None))
    order, groups = list(layout.metrics), list(dict.fromkeys(group for group, _ in there))
    return sorted(there, key=lambda one: (groups.index(one[0]), order.index(one[1]))) or [("", order[0])]


def _with_tags(records: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Return records with `tag_<name>` for each tag of a layout, `head`, `flag`, and `rest`: the other tags."""
    tags = [_parsed(text) for text in records["tags"]]
    named = [name for name in (layout.columns, layout.means, *layout.rows, *layout.only) if name]
    columns = {_tag(name): [one.get(name, "") for one in tags] for name in named}
    columns["head"] = [one.get(layout.columns, "") for one in tags]
    columns["rest"] = [", ".join(f"{k}={v}" for k, v in one.items() if k not in (*named, DIVERGED)) for one in tags]
    series = {name: pd.Series(values, records.index, dtype="object") for name, values in columns.items()}
    return records.assign(**series, flag=pd.Series([DIVERGED in one for one in tags], records.index, dtype=bool))


def _tag(name: str) -> str:
    return f"tag_{name}"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> dict[str, str]:
    """Return the tags behind the text that `bench.report.results` made of them."""
    parts = [part.partition("=") for part in text.split(", ") if part]
    return {name: value for name, _, value in parts}


def _chosen(records: pd.DataFrame, layout: Layout) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the records of the values a layout prefers, and those values."""
    chosen = {}
    for tag, preferred in layout.only.items():
        there = list(dict.fromkeys(records[_tag(tag)]))
        if there:
            chosen[tag] = next((value for value in preferred if value in there), there[0])
            records = records[records[_tag(tag)] == chosen[tag]]
    return records, chosen


def _summaries(records: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Return the summarised values of a layout and, after them, those of its means."""
    by = [*WHERE, *MADE[1:], "rest", *map(_tag, layout.rows), "metric", "unit"]
    if layout.means and len(records):
        within = records.groupby([*by, "seed", "replicate", _tag(layout.means)], sort=False, dropna=False)
        means = within.agg(value=("value", "mean"), flag=("flag", "any"), count=("head", "nunique")).reset_index()
        means["head"] = [
            f"mean of {count} {name} {layout.noun}".strip()
            for count, name in zip(means["count"], means[_tag(layout.means)], strict=True)
        ]
        records = pd.concat([records, means[means["count"] > 1]], ignore_index=True)
    names = [_column(group, metric) for group, metric in zip(records["head"], records["metric"], strict=True)]
    records = records.assign(column=pd.Series(names, records.index, dtype="object"), flag=records["flag"].astype(bool))
    return summarise(records, [*by, "head", "column"]).rename(columns={"flagged": DIVERGED}).assign(upper=0)


def _with_interval(row: Any) -> str:
    """Return a fraction in percent with its interval, where there is one."""
    if pd.isna(row.low):
        return cost.printed(row)
    return f"{percent(row.mean)} % [{percent(row.low)}, {percent(row.high)}]{MARK if row.diverged else ''}"


def _column(group: str, metric: str) -> str:
    return f"{metric} ({group})" if group else metric


def _best(rows: Sequence[Row], better: Sequence[str]) -> tuple[Row, ...]:
    """Mark the best value of every column at each IPC where one direction is better; three digits count."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        for index, cell in enumerate(row.cells):
            if cell.value is not None and better[index]:
                choose, place = max if better[index] == "high" else min, (row.header[1], index)
                best[place] = choose(best.get(place, round(cell.value, 3)), round(cell.value, 3))
    marked = []
    for row in rows:
        cells = [
            replace(cell, best=cell.value is not None and round(cell.value, 3) == best.get((row.header[1], index)))
            for index, cell in enumerate(row.cells)
        ]
        marked.append(replace(row, cells=tuple(cells)))
    return tuple(marked)


def _reasons(records: pd.DataFrame) -> list[str]:
    """Return what could not be measured, why, and for which methods, one note for each."""
    notes = []
    for tags, rows in groups_of(records, "tags"):
        named = _parsed(tags)
        what = " ".join(value for name, value in named.items() if name != "reason")
        ipcs = ("all" if pd.isna(row.ipc) else row.ipc for row in rows_of(rows))
        places = dict.fromkeys(f"{label} IPC {ipc}" for label, ipc in zip(rows["label"], ipcs, strict=True))
        notes.append(f"no number for {what}: {named.get('reason', 'no reason given')} ({', '.join(places)})")
    return notes
