"""The names in a suite: whether they exist, stand once, and choose something."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import bench.data
from bench.api import DatasetInfo
from bench.errors import nearest
from bench.registry import METHODS
from bench.suite.problems import Problems, call
from bench.suite.resolve import Row, check_recipe, label
from bench.suite.spec import SuiteSpec, Where
from bench.suite.yaml import KeyPath

MAX_COMBINATIONS = 100_000


def datasets(spec: SuiteSpec, found: Problems) -> dict[str, DatasetInfo]:
    """Return what is known of the datasets of the grid, without those that are unknown."""
    infos = {}
    for index, name in enumerate(spec.grid.datasets):
        info = found.attempt(("grid", "datasets", index), call, f"dataset {name!r}", bench.data.info, name)
        if info is not None:
            infos[name] = info
    return infos


def lists(spec: SuiteSpec, found: Problems) -> None:
    """Note what stands twice in the grid, and empty lists."""
    grid = spec.grid
    labels = [label(entry) for entry in grid.methods]
    seeds: Sequence[int] = () if isinstance(grid.seeds, int) else grid.seeds
    columns: list[tuple[str, Sequence[Any], str]] = [
        ("datasets", grid.datasets, "leave one out"),
        ("methods", labels, "give one of them a label of its own"),
        ("ipc", grid.ipc, "leave one out"),
        ("seeds", seeds, "leave one out"),
    ]
    for key, values, hint in columns:
        for index, value in enumerate(values):
            if value in values[:index]:
                found.add(("grid", key, index), f"{value!r} stands twice", hint)
        if not values and not isinstance(getattr(grid, key), int):
            found.add(("grid", key), f"the list of {key} is empty")
    if grid.seeds == 0:
        found.add(("grid", "seeds"), "there must be at least one seed")


def reasonable(spec: SuiteSpec, found: Problems) -> bool:
    """Note a grid beyond all reason; tell whether it is not."""
    grid = spec.grid
    count = len(grid.datasets) * len(grid.methods) * len(grid.ipc) * len(grid.all_seeds)
    if count > MAX_COMBINATIONS:
        found.add(("grid",), f"the grid has {count} combinations", f"at most {MAX_COMBINATIONS} are planned")
    return count <= MAX_COMBINATIONS


def recipes(spec: SuiteSpec, found: Problems) -> None:
    """Note recipes that are wrong whatever the method."""
    found.attempt(("evaluation", "recipe"), check_recipe, spec.evaluation.recipe)
    for name, recipe in spec.evaluation.recipes.items():
        found.attempt(("evaluation", "recipes", name), check_recipe, recipe)


def references(spec: SuiteSpec, infos: Iterable[str], rows: Sequence[Row], found: Problems) -> None:
    """Note names in `methods`, `where` and `skip` that neither the grid nor ddbench knows."""
    methods = {*METHODS.names(), *(row.entry.name for row in rows)}
    labels = methods | {label(row.entry) for row in rows}
    known = {"dataset": {*bench.data.names(), *infos}, "method": methods, "label": labels}
    named: list[tuple[KeyPath, Iterable[str]]] = [
        (("methods",), spec.methods),
        (("evaluation", "recipes"), spec.evaluation.recipes),
    ]
    for path, names in named:
        for name in names:
            if name not in labels:
                found.add((*path, name), f"there is no method or label {name!r}", nearest(name, labels))
    clauses: list[tuple[KeyPath, Where]] = [(("skip", i), clause) for i, clause in enumerate(spec.skip)]
    clauses += [(("evaluators", i, "where"), entry.where) for i, entry in enumerate(spec.evaluators)]
    for path, clause in clauses:
        for key, there in known.items():
            for index, name in enumerate(getattr(clause, key) or ()):
                if name not in there:
                    found.add((*path, key, index), f"there is no {key} {name!r}", nearest(name, there))
