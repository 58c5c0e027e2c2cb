"""The HTML page: tables, plots, pictures, claims, the environment and every cell that did not end well, in one file.

Pictures travel inside the page as data addresses and nothing is loaded from anywhere, so the file can be mailed,
archived and opened without a network. The same tables and plots lie beside it as files.
"""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import bench
from bench.report import accuracy, claims, cost, measures, published, results, table
from bench.report.beside import beside
from bench.report.pictures import write as draw_sets
from bench.report.results import DONE, Results, rows_of
from bench.run.atomic import atomic_write

FILE = "report.html"
TROUBLES = 500
"""Most cells that are listed with what kept them from a result, those that failed themselves first."""


def write(out: Path, reference: Path | None, stamp: str, *, pictures: bool = True) -> Path:
    """Write everything; see `bench.report.write`. stamp: fingerprint of the inputs, kept in the page."""
    run = results.load(out)
    # the pictures need torch: in a fork, but not where this process has torch, whose threads a fork would lack
    apart = [partial(draw_sets, run, out / "pictures")] if pictures and "torch" not in sys.modules else []
    with beside(out / "pictures", *apart):
        review, remark = read_reference(reference)
        groups = {
            "Accuracy": accuracy.accuracy_tables(run, review if remark[:1] == ("accuracy",) else None),
            "Transfer to other networks": accuracy.cross_arch_tables(
                run, review if remark[:1] == ("cross_arch",) else None
            ),
            "Cost": cost.cost_tables(run),
            "Further measures": measures.measure_tables(run),
            "Claims": claims.tables(run),
        }
        _clear(out / "tables", ("csv", "md", "tex"))
        for one in (one for tables in groups.values() for one in tables):
            table.write(one, out / "tables")
        figures = _plots(run, out / "plots") if pictures else []
    sets = _sets(run, out / "pictures") if pictures else []  # those the fork drew are not drawn again
    bad = run.states[~run.states["state"].isin(DONE)]
    listed = bad.loc[(bad["state"] == "skipped").sort_values(kind="stable").index[:TROUBLES]].sort_index()
    template = templates().get_template("report.html.j2")
    page = template.render(
        stamp=stamp,
        run=run,
        version=bench.__version__,
        groups={title: tables for title, tables in groups.items() if tables},
        figures=figures,
        sets=sets,
        counts=Counter(run.states["state"]),
        troubles=_troubles(run, listed),
        more=Counter(bad["state"]) - Counter(listed["state"]),
        environment=environment(run.environments),
        reference=remark,
    )
    with atomic_write(out / FILE, "w") as file:
        file.write(page)
    return out / FILE


def templates() -> jinja2.Environment:
    """Return the templates of this package; what they are given is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def data_address(path: Path) -> str:
    """Return a file as an address that holds its content."""
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def read_reference(path: Path | None) -> tuple[Any, tuple[str, ...]]:
    """Return the user's published numbers, and (shape, file name, how many) for the page."""
    if path is None:
        return None, ()
    shape, frame = published.read_reference(path)
    return frame, (shape, path.name, str(len(frame)))


def _clear(folder: Path, endings: tuple[str, ...]) -> None:
    """Remove what an earlier report wrote: a table that no longer exists must not look current."""
    for ending in endings:
        for path in folder.glob(f"*.{ending}"):
            path.unlink()


def _plots(run: Results, folder: Path) -> list[dict[str, str]]:
    """Write the plots; return what the page shows of them."""
    from bench.report import plots

    _clear(folder, ("svg", "png"))
    return [
        {"title": title, "address": data_address(folder / f"{name}.svg"), "name": name}
        for name, title in plots.write(run, folder)
    ]


def _sets(run: Results, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures of the sets; return what the page shows of them."""
    sets = []
    for one in draw_sets(run, folder):
        title = f"{one.label}, {one.dataset}" + ("" if one.ipc is None else f", IPC {one.ipc}")
        address = data_address(one.path) if one.path else ""
        sets.append({"dataset": one.dataset, "title": title, "address": address, "reason": one.reason})
    return sets


def _troubles(run: Results, cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return cells that are not done, each with the reason and links to what is left of it."""
    logs: dict[str, list[str]] = {}
    for path in sorted(run.out.glob("slurm/*/*.log")):
        logs.setdefault(path.stem, []).append(str(path.relative_to(run.out)))
    rows = []
    for row in rows_of(cells):
        work = f"work/{row.key}" if row.state != "skipped" else ""
        places = [place for place in (f"failed/{row.key}.json", work) if place and (run.out / place).exists()]
        places += logs.get(row.key, [])
        word, cause = run.cause(row.key)
        reason = row.reason if row.reason or word == row.state else f"{word}: {cause}"
        rows.append({"cell": row.cell, "state": row.state, "reason": reason, "places": places})
    return rows


def environment(found: Iterable[tuple[int, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Return what (cells, provenance) say of where cells were computed; different answers with their counts."""
    answers: dict[str, Counter[str]] = {}
    for cells, provenance in found:
        for name, value in _flat(provenance):
            answers.setdefault(name, Counter())[value] += cells
    texts = []
    for name, counter in answers.items():
        several = len(counter) > 1
        words = [f"{value} ({count} cells)" if several else value for value, count in counter.most_common()]
        texts.append((name, "; ".join(words)))
    return texts


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, "yes" if value is True else "no" if value is False else str(value)
