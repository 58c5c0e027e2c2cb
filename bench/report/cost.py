"""Cost tables, and the rows and the CSV of every table that has methods and images per class for its rows.

Cost is shown over images per class, as the field prints it: seconds of an outer step and what they are spent on, the
whole distillation, peak memory. A cell that ran out of memory is a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from bench.report.grid import MARK, WHERE
from bench.report.results import SUMMARY, Results, rows_of, summarise
from bench.report.table import Cell, Row, Table, percent, significant

COLUMNS = {
    "seconds_per_step": ("seconds per outer step", "whole step"),
    "seconds_per_step/data": ("seconds per outer step", "data"),
    "seconds_per_step/network": ("seconds per outer step", "network update"),
    "seconds_per_step/set": ("seconds per outer step", "set update"),
    "seconds_per_step/evaluation": ("seconds per outer step", "evaluation"),
    "seconds_per_step/other": ("seconds per outer step", "other"),
    "steps": ("distillation", "outer steps"),
    "seconds": ("distillation", "seconds"),
    "peak_host_MiB": ("peak memory [MiB]", "host"),
    "peak_device_MiB": ("peak memory [MiB]", "device"),
}
"""Metrics of the cost evaluator -> heading and title; metrics not listed here follow in the order they come in."""

UPPER = "bound=upper"
"""Tag of a number that is an upper bound of what was measured."""


def summary(records: pd.DataFrame, evaluator: str) -> pd.DataFrame:
    """Return the summarised measures of an evaluator: WHERE, made, column (metric and tags), unit, SUMMARY, upper.

    upper: how many of the n values are upper bounds.
    """
    records = records[(records["evaluator"] == evaluator) & records["step"].isna()]
    upper = records["tags"].str.contains(UPPER, regex=False)
    tags = records["tags"].str.replace(UPPER, "", regex=False).str.strip(", ")
    names = records["metric"].where(tags == "", records["metric"] + " (" + tags + ")")
    by = [*WHERE, "distil_network", "network", "recipe", "selection", "column", "metric", "unit"]
    return summarise(records.assign(column=names, flag=upper), by).rename(columns={"flagged": "upper"})


def cost_tables(results: Results) -> list[Table]:
    """Return one table per dataset and distillation network: rows (method, IPC), columns as in COLUMNS."""
    found, planned = summary(results.records, "cost"), results.planned("cost")
    places = pd.concat([found[["dataset", "distil_network"]], planned[["dataset", "distil_network"]]])
    places = places[(places["distil_network"] != "") | ~places["dataset"].isin(found["dataset"])].drop_duplicates()
    tables = []
    for dataset, network in places.itertuples(index=False):
        here = found[(found["dataset"] == dataset) & (found["distil_network"] == network)]
        wanted = planned[(planned["dataset"] == dataset) & planned["distil_network"].isin([network, ""])]
        columns = sorted(dict.fromkeys(here["column"]), key=order) or [next(iter(COLUMNS))]
        rows = table_rows(results, here, wanted, columns)
        lines = [f"preset: {results.preset}", *([f"distilled with: {network}"] if network else [])]
        lines.append("median over the outer steps after warm-up; mean ± standard deviation where there are more sets")
        if any(column.startswith("seconds_to_fraction") for column in columns):
            lines.append("seconds to x %: until the set first gave x % of its final accuracy (≤: at the first look)")
        name = f"cost_{dataset}" + (f"_{network}" if places["dataset"].duplicated(keep=False).any() else "")
        heads = tuple(heading(column) for column in columns)
        title = f"Cost of the distillation, {dataset}"
        tables.append(Table(name, title, tuple(lines), ("method", "IPC"), heads, rows, tidy(here, wanted)))
    return tables


def table_rows(
    results: Results,
    found: pd.DataFrame,
    planned: pd.DataFrame,
    columns: list[str],
    by: Sequence[str] = (),
    text: Callable[[Any], str] | None = None,
) -> tuple[Row, ...]:
    """Return one row per method and IPC in plan order; one without any number shows its state in every place.

    by: further columns of `found` whose values make rows of their own, with a header each. text: prints a number.
    """
    text = text or printed
    values = {(row.label, _ipc(row.ipc), *_values(row, by), row.column): row for row in rows_of(found)}
    words = {(row.label, _ipc(row.ipc)): row.word for row in rows_of(planned[~planned["done"]])}
    places = dict.fromkeys(key[:-1] for key in values)
    places |= {(*place, *[""] * len(by)): None for place in words if place not in {key[:2] for key in values}}
    rows = []
    for label in results.labels:
        own = [place for place in places if place[0] == label]
        for place in sorted(own, key=lambda place: (place[1] is None, place[1] or 0)):
            missing = Cell(words[place[:2]], kind="state") if place[:2] in words else Cell()
            have = [values.get((*place, column)) for column in columns]
            cells = [missing if row is None else Cell(text(row), row.mean, kind="value") for row in have]
            rows.append(Row((label, "all" if place[1] is None else str(place[1]), *place[2:]), tuple(cells)))
    return tuple(rows)


def _values(row: Any, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in names)


def printed(row: Any) -> str:
    """Return a measured number with the digits its unit deserves."""
    mark = MARK if getattr(row, "diverged", 0) else ""
    if row.unit == "fraction":
        return f"{percent(row.mean, row.std)} %{mark}"
    text = f"{row.mean:g}" if row.unit in ("steps", "groups") else significant(row.mean, row.std)
    return (f"≤ {text}" if row.upper else text) + mark


def order(column: str) -> float:
    """Return the place of a column: as in COLUMNS, the seconds to a share after all seconds, others last."""
    known = list(COLUMNS)
    if column.startswith("seconds_to_fraction"):
        return known.index("seconds") + 0.5
    return known.index(column) if column in COLUMNS else len(known)


def heading(column: str) -> tuple[str, str]:
    """Return the heading and the title of a column."""
    return COLUMNS.get(column) or _fraction(column)


def _fraction(column: str) -> tuple[str, str]:
    """Return the heading of the seconds to a share of the final accuracy, or the column as it is."""
    name, _, share = column.removesuffix(")").partition(" (fraction=")
    if name != "seconds_to_fraction" or not share:
        return "", column
    return "distillation", f"seconds to {100 * float(share):g} %"


def tidy(found: pd.DataFrame, planned: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of the CSV: every summarised number, and every method and IPC without any.

    by: further columns of `found` to keep.
    """
    have = {(row.label, _ipc(row.ipc)) for row in rows_of(found)}
    lost = planned[~planned["done"]].drop_duplicates(["label", "ipc"])
    lost = lost.loc[[row.Index for row in rows_of(lost) if (row.label, _ipc(row.ipc)) not in have]]
    rows = found.assign(state="ok", text=[printed(row) for row in rows_of(found)])
    none = lost[[*WHERE, "distil_network"]].assign(n=0, n_sets=0, state=lost["word"], text=lost["word"])
    made = ["distil_network", "network", "recipe", "selection"]
    frame = pd.concat([rows, none])
    return frame[[*WHERE, *made, *by, "column", "unit", *SUMMARY, "upper", "state", "text"]].reset_index(drop=True)


def _ipc(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
