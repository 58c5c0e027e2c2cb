"""Suite -> plan: the cells of a suite in dependency order, each with its key.

Pure and deterministic: the same suite, data and versions give the same keys on every machine. What `only` leaves
out changes no key of what stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import bench.data
from bench.errors import MissingData, UserError
from bench.suite import only as selections
from bench.suite.cells import Cell, Cells, coordinates, place
from bench.suite.keys import key
from bench.suite.load import Suite
from bench.suite.problems import Problems
from bench.suite.resolve import Variant, skip_reason

NO_DATA = "no data"
"""Reason of cells whose dataset is not on this machine."""


@dataclass(frozen=True)
class Plan:
    """The cells of a suite, every cell after its inputs; and one cell for each coordinate left out, with `skip`."""

    suite: Suite
    cells: list[Cell]
    skipped: list[Cell]


def plan(suite: Suite, only: str | None = None, *, skip_missing: bool = False) -> Plan:
    """Return the cells of a suite, or the part that `only` selects together with what it builds on.

    skip_missing: datasets that are not on this machine, and methods that need another one which is not, give skipped
    cells with the reason `no data`.
    Raises `UserError` (`MissingData` for data that is not there), or `SuiteErrors` holding several.
    """
    selection = None if only is None else selections.parse(only)
    found = Problems(suite.where)
    data, missing = _fingerprints(suite, found)
    cells, rehearsal = (
        Cells({**dict.fromkeys(missing, ""), **data}, suite.spec.threads, suite.spec.evaluation.replicates, found)
        for _ in range(2)
    )
    skipped = [
        _skip({**one.coordinates, "seed": seed}, one.reason) for one in suite.left for seed in suite.spec.grid.all_seeds
    ]
    lacking: dict[str, tuple[Variant, MissingData]] = {}
    for variant in suite.variants:
        lacks = _lacks(variant)
        for seed in suite.spec.grid.all_seeds[:1] if variant.kind.seed_free else suite.spec.grid.all_seeds:
            coords = coordinates(variant, seed)
            reason = NO_DATA if lacks or coords["dataset"] in missing else skip_reason(suite.spec, coords)
            chosen = [evaluator for evaluator in suite.evaluators if evaluator.where.matches(coords)]
            if reason is None:
                cells.add_variant(variant, seed, chosen)
                continue
            skipped.append(_skip(coords, reason))
            if lacks:
                lacking[skipped[-1].key] = variant, lacks
            elif reason == NO_DATA:  # planned all the same, for the mistakes that it shows
                rehearsal.add_variant(variant, seed, chosen)
    result = Plan(suite, list(cells.by_key.values()), skipped)
    if selection is not None:
        result = select(result, selection)
    if not skip_missing:
        without = [cell for cell in result.skipped if cell.skip == NO_DATA]
        for variant, error in (lacking[cell.key] for cell in without if cell.key in lacking):
            found.add(variant.path, error.what, error.hint, MissingData)
        for name in dict.fromkeys(cell.coords["dataset"] for cell in without if cell.coords["dataset"] in missing):
            index = suite.spec.grid.datasets.index(name)
            found.add(("grid", "datasets", index), missing[name].what, missing[name].hint, MissingData)
    found.raise_all()
    return result


def select(whole: Plan, selection: selections.Selection) -> Plan:
    """Return the cells that an expression selects, with all they build on. Raises `UserError` if there is none."""
    cells = [cell for cell in whole.cells if any(selection.matches(place) for place in _places(cell))]
    skipped = [cell for cell in whole.skipped if selection.matches(_places(cell)[0], lenient=True)]
    if not (cells or skipped):
        raise UserError(f"{selection.text!r} selects no cell", where="--only", hint=_choices(whole, selection.clauses))
    needed = {cell.key for cell in cells}
    for cell in reversed(whole.cells):  # inputs come before the cells that use them
        if cell.key in needed:
            needed.update(cell.inputs.values())
    return Plan(whole.suite, [cell for cell in whole.cells if cell.key in needed], skipped)


def _choices(whole: Plan, wanted: Iterable[str]) -> str:
    """Return the values that some keys have in a plan, as a hint."""
    places = [place for cell in whole.cells for place in _places(cell)]
    texts = []
    for name in wanted:
        values = {selections.as_text(place[name]) for place in places if name in place}
        texts.append(f"{name} is one of: {', '.join(sorted(values, key=lambda text: (len(text), text)))}")
    return "; ".join(texts)


def _fingerprints(suite: Suite, found: Problems) -> tuple[dict[str, str], dict[str, MissingData]]:
    """Return the fingerprints of the datasets on this machine, and what is missing; damage is noted."""
    there: dict[str, str] = {}
    missing: dict[str, MissingData] = {}
    for index, name in enumerate(suite.spec.grid.datasets):
        try:
            bench.data.require(name)
            there[name] = bench.data.fingerprint(name)
        except MissingData as error:
            missing[name] = error
        except UserError as error:
            found.add(("grid", "datasets", index), error.what, error.hint)
            there[name] = "damaged"
    return there, missing


def _lacks(variant: Variant) -> MissingData | None:
    """Return what is said of a dataset that a method needs besides its own, if it is not on this machine."""
    try:
        for need in variant.kind.needs(variant.params, variant.task).values():
            if "dataset" in need.task:
                bench.data.require(need.task["dataset"].name)
    except MissingData as error:
        return error
    except Exception:  # a mistake or a defect is told of when the method is planned
        return None
    return None


def _skip(coords: Mapping[str, Any], reason: str) -> Cell:
    """Return the cell that stands for coordinates left out; it has no configuration, so the key is of its place."""
    coords = {"settings": "modified", "distil_network": None, **coords}
    return Cell(key({"skipped": coords}), "distil", {}, {}, f"distil {place(coords)}", coords, skip=reason)


def _places(cell: Cell) -> list[dict[str, Any]]:
    return [{**coords, "kind": cell.kind} for coords in (cell.coords, *cell.also)]
