"""Cost tables, and a plain table for every evaluator that has no table of its own.

Cost is shown over images per class, as the field prints it: seconds of an outer step and what they are spent on, the
whole distillation, peak memory. A cell that ran out of memory is a row that says so.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.grid import WHERE
from bench.report.results import SUMMARY, Results, groups_of, rows_of, summarise
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

MANY = 24
"""A generic table with more columns than this goes to its CSV only."""


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
        columns = sorted(dict.fromkeys(here["column"]), key=_order) or [next(iter(COLUMNS))]
        rows = _rows(results, here, wanted, columns)
        lines = [f"preset: {results.preset}", *([f"distilled with: {network}"] if network else [])]
        lines.append("median over the outer steps after warm-up; mean ± standard deviation where there are more sets")
        if any(column.startswith("seconds_to_fraction") for column in columns):
            lines.append("seconds to x %: until the set first gave x % of its final accuracy (≤: at the first look)")
        name = f"cost_{dataset}" + (f"_{network}" if places["dataset"].duplicated(keep=False).any() else "")
        heads = tuple(COLUMNS.get(column) or _fraction(column) for column in columns)
        title = f"Cost of the distillation, {dataset}"
        tables.append(Table(name, title, tuple(lines), ("method", "IPC"), heads, rows, _tidy(here, wanted)))
    return tables


def other_tables(results: Results) -> list[Table]:
    """Return one plain table per further evaluator, dataset and way of making its networks."""
    records = results.records
    own = records["evaluator"].isin(["accuracy", "cross_arch"]) & (records["metric"] == "accuracy")
    rest = records[~own]
    tables = []
    made = ["dataset", "distil_network", "network", "recipe", "selection"]
    evaluators = {*records["evaluator"], *results.plan["evaluator"]} - {"accuracy", "cross_arch", "cost", ""}
    extra = [name for name in ("accuracy", "cross_arch") if (rest["evaluator"] == name).any()]
    for evaluator in [*extra, *sorted(evaluators)]:
        found, planned = summary(rest, evaluator), results.planned(evaluator)
        groups = list(groups_of(found, made))
        if not groups and len(planned):
            groups = [((dataset, "", "", "", ""), found) for dataset in planned["dataset"].unique()]
        for key, here in groups:
            columns = list(dict.fromkeys(here["column"]))
            wanted = planned[planned["dataset"] == key[0]]
            shown = (columns or ["state"]) if len(columns) <= MANY else []
            rows = _rows(results, here, wanted, shown)
            how = [f"{name.replace('_', ' ')}: {text}" for name, text in zip(made[1:], key[1:], strict=True) if text]
            lines = [f"preset: {results.preset}", *(["; ".join(how)] if how else []), "mean ± standard deviation"]
            lines += [f"{len(columns)} columns: see the CSV"] if len(columns) > MANY else []
            unique = len(groups) == len({group[0] for group, _ in groups})
            name = "_".join([evaluator, "measures", *(text for text in key[: 1 if unique else None] if text)])
            heads = tuple(("", column) for column in shown)
            title = f"Measures of {evaluator}, {key[0]}"
            tables.append(Table(name, title, tuple(lines), ("method", "IPC"), heads, rows, _tidy(here, wanted)))
    return tables


def _rows(results: Results, found: pd.DataFrame, planned: pd.DataFrame, columns: list[str]) -> tuple[Row, ...]:
    """Return one row per method and IPC in plan order; one without any number shows its state in every place."""
    values = {(row.label, _ipc(row.ipc), row.column): row for row in rows_of(found)}
    words = {(row.label, _ipc(row.ipc)): row.word for row in rows_of(planned[~planned["done"]])}
    places = {key[:2] for key in values} | set(words)
    rows = []
    for label in results.labels:
        for ipc in sorted((ipc for name, ipc in places if name == label), key=lambda ipc: (ipc is None, ipc or 0)):
            cells = []
            for column in columns:
                row = values.get((label, ipc, column))
                missing = Cell(words[label, ipc], kind="state") if (label, ipc) in words else Cell()
                cells.append(missing if row is None else Cell(_text(row), row.mean, kind="value"))
            rows.append(Row((label, "all" if ipc is None else str(ipc)), tuple(cells)))
    return tuple(rows)


def _text(row: Any) -> str:
    """Return a measured number with the digits its unit deserves."""
    if row.unit == "fraction":
        return f"{percent(row.mean, row.std)} %"
    text = f"{row.mean:g}" if row.unit == "steps" else significant(row.mean, row.std)
    return f"≤ {text}" if row.upper else text


def _order(column: str) -> float:
    """Return the place of a column: as in COLUMNS, the seconds to a share after all seconds, others last."""
    known = list(COLUMNS)
    if column.startswith("seconds_to_fraction"):
        return known.index("seconds") + 0.5
    return known.index(column) if column in COLUMNS else len(known)


def _fraction(column: str) -> tuple[str, str]:
    """Return the heading of the seconds to a share of the final accuracy, or the column as it is."""
    name, _, share = column.removesuffix(")").partition(" (fraction=")
    if name != "seconds_to_fraction" or not share:
        return "", column
    return "distillation", f"seconds to {100 * float(share):g} %"


def _tidy(found: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the CSV: every summarised number, and every method and IPC without any."""
    have = {(row.label, _ipc(row.ipc)) for row in rows_of(found)}
    lost = planned[~planned["done"]].drop_duplicates(["label", "ipc"])
    lost = lost.loc[[row.Index for row in rows_of(lost) if (row.label, _ipc(row.ipc)) not in have]]
    rows = found.assign(state="ok", text=[_text(row) for row in rows_of(found)])
    none = lost[[*WHERE, "distil_network"]].assign(n=0, n_sets=0, state=lost["word"], text=lost["word"])
    made = ["distil_network", "network", "recipe", "selection"]
    frame = pd.concat([rows, none])
    return frame[[*WHERE, *made, "column", "unit", *SUMMARY, "upper", "state", "text"]].reset_index(drop=True)


def _ipc(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
