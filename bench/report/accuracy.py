"""Accuracy tables in the shape the field prints: methods x (dataset, images per class), and methods x networks.

One table per selection rule, recipe, evaluation network and distillation network: numbers that were made differently
never stand in one column. The full dataset is an upper bound in a row of its own. Published values appear only in a
table made exactly as they were, beside cells with the paper's settings.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pandas as pd

from bench import data
from bench.errors import UserError
from bench.report import published
from bench.report.grid import MADE, WHOLE, Grid, bold, fits, notes, summary
from bench.report.results import Results, groups_of
from bench.report.table import Cell, Row, Table, file_name, percent

REVIEW_NOTE = "review: published values from the user's file, not checked here"


def accuracy_tables(results: Results, review: pd.DataFrame | None = None) -> list[Table]:
    """Return the accuracy tables. review: filled rows of the user's reference file (method, dataset, ipc, mean, std).

    All cells of the plan appear: those without a number as the word for their state.
    """
    found, planned = summary(results, "accuracy"), results.planned("accuracy")
    bound = found[found["method"] == WHOLE]
    groups = list(groups_of(found[found["method"] != WHOLE], MADE)) or list(groups_of(bound, MADE))
    if not groups and len(planned):
        groups = [(("", "", "", planned["distil_network"].iloc[0]), found)]
    tables = []
    for made, frame in groups:
        extra = bound[(bound["selection"] == made[0]) & (bound["network"] == made[2])]
        rows = pd.concat([frame, extra]).drop_duplicates() if len(extra) else frame
        grid = Grid.make(rows, planned[fits(planned, made[3])], "ipc")
        name = file_name("accuracy", *(made if len(groups) > 1 else ()))
        tables.append(_accuracy_table(results, name, made, grid, review))
    return tables


def _accuracy_table(
    results: Results, name: str, made: tuple[str, ...], grid: Grid, review: pd.DataFrame | None
) -> Table:
    _, recipe, network, distil_network = made
    columns = _columns(results, grid)
    comparable = others(results, network, distil_network, recipe, review)
    rows: list[Row] = []
    sources: dict[str, None] = {}
    for label in grid.labels(results.labels):
        cells = [grid.cell(label, dataset, ipc) for dataset, ipc in columns]
        rows.append(Row((grid.name(label),), tuple(cells), "bound" if grid.whole(label) else "method"))
        for title, table, source in comparable:
            cells = [beside(table, grid.values.get((label, dataset, ipc)), {"ipc": ipc}) for dataset, ipc in columns]
            if any(cell.value is not None for cell in cells):
                rows.append(Row((f"{label}, {title}",), tuple(cells), "published"))
                sources[source] = None
    heads = tuple((dataset, "all" if ipc is None else f"IPC {ipc}") for dataset, ipc in columns)
    title = "Accuracy in percent: methods by dataset and images per class (IPC)"
    lines = (*notes(results, made, grid.frame), *_storage(results, grid), *sources)
    return Table(name, title, lines, ("method",), heads, bold(rows), grid.tidy())


def _storage(results: Results, grid: Grid) -> list[str]:
    """Return a line that names the methods whose sets store clearly more or less than as many real images."""
    records = results.records
    own = records[(records["metric"] == "storage") & records["label"].isin(grid.frame["label"])]
    ratios = own.groupby("label", sort=False)["value"].agg(["min", "max"])
    uneven = ratios[(ratios["max"] > 1.005) | (ratios["min"] < 0.995)]
    texts = [f"{label} {_times(row['min'], row['max'])}" for label, row in uneven.iterrows()]
    return [f"storage, as a multiple of that of the real images: {', '.join(texts)}"] if texts else []


def _times(low: float, high: float) -> str:
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _columns(results: Results, grid: Grid) -> list[tuple[str, int | None]]:
    """Return (dataset, ipc) in plan order and rising; a dataset that has only its bound gets one column for it."""
    places = {key[1:] for key in (*grid.values, *grid.gaps)}
    columns: list[tuple[str, int | None]] = []
    for dataset in results.datasets:
        ipcs = {ipc for name, ipc in places if name == dataset}
        columns += [(dataset, int(ipc)) for ipc in sorted(ipcs - {None})] or [(dataset, None)] * bool(ipcs)
    return columns


def cross_arch_tables(results: Results, review: pd.DataFrame | None = None) -> list[Table]:
    """Return one table per dataset, IPC and way of making: rows methods, columns evaluation networks."""
    found, planned = summary(results, "cross_arch"), results.planned("cross_arch")
    fixed = ["selection", "recipe", "distil_network", "dataset", "ipc"]
    groups = list(groups_of(found[found["method"] != WHOLE], fixed))
    mixed = len(groups) > len({key[3:] for key, _ in groups})
    tables = []
    for (selection, recipe, distil_network, dataset, ipc), frame in groups:
        here = planned[(planned["dataset"] == dataset) & (planned["ipc"] == ipc)]
        grid = Grid.make(frame, here[fits(here, distil_network)].assign(network=""), "network")
        networks = list(dict.fromkeys(frame["network"]))
        same = review is not None and (distil_network, recipe) == published.REVIEW and _complete(dataset)
        rows = []
        for label in grid.labels(results.labels):
            rows.append(Row((grid.name(label),), tuple(grid.cell(label, dataset, network) for network in networks)))
            wanted = [{"network": network, "ipc": ipc} for network in networks] if same else []
            cells = [beside(review, grid.values.get((label, dataset, only["network"])), only) for only in wanted]
            if any(cell.value is not None for cell in cells):
                rows.append(Row((f"{label}, review",), tuple(cells), "published"))
        lines = notes(results, (selection, recipe, "", distil_network), frame)
        lines += [REVIEW_NOTE] if any(row.kind == "published" for row in rows) else []
        name = file_name("cross_arch", dataset, ipc, *((selection, recipe, distil_network) if mixed else ()))
        title = f"Transfer to other networks: accuracy in percent, {dataset}, IPC {ipc}"
        heads = tuple(("", network) for network in networks)
        tables.append(Table(name, title, tuple(lines), ("method",), heads, bold(rows), grid.tidy()))
    return tables


# ------------------------------------------------------------------------------------------------ published values


def others(
    results: Results, network: str, distil_network: str, recipe: str, review: pd.DataFrame | None
) -> list[tuple[str, pd.DataFrame, str]]:
    """Return (title, rows, note) of the published numbers made as this table was."""
    if network != distil_network:
        return []
    found = []
    datasets = [dataset for dataset in results.datasets if _complete(dataset)]
    theirs = [published.beside(dataset, network, recipe) for dataset in datasets]
    for source, rows in groups_of(pd.concat(theirs), "source") if theirs else []:
        found.append(("published", rows, f"published: {source}"))
    if review is not None and (network, recipe) == published.REVIEW:
        found.append(("review", review[review["dataset"].isin(datasets)], REVIEW_NOTE))
    return found


def beside(table: pd.DataFrame | None, ours: Any, only: dict[str, Any]) -> Cell:
    """Return the published value beside one of ours (a summarised row) made with the paper's settings, else none."""
    if table is None or ours is None or ours.settings != "paper":
        return Cell()
    same = (table["method"] == ours.method) & (table["dataset"] == ours.dataset)
    for column, value in only.items():
        same &= (table[column] == value).fillna(False)
    if not same.any():
        return Cell()
    mean, std = table[same][["mean", "std"]].iloc[0]
    return Cell(percent(mean, std), float(mean), kind="published")


@lru_cache(maxsize=64)
def _complete(dataset: str) -> bool:
    """Return whether the whole published dataset is meant; a part of it has no published numbers."""
    try:
        return data.info(dataset).complete
    except UserError:
        return False
