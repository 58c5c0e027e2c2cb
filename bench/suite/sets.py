"""The suite around distilled sets that lie in files: what `ddbench evaluate` and `bench.evaluate` run.

Every file is a row of the method `given` on the dataset and at the number of images per class that it was made for.
How to evaluate comes from the caller, or from another suite: its protocol, and those of its evaluators that it would
let the set's own method have. Planning, caching, tables and reports are then those of any suite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import bench.data
from bench import distilled
from bench.api import Header
from bench.errors import UserError
from bench.registry import METHODS
from bench.suite.load import NO_PRESET, Suite, from_values
from bench.suite.resolve import NATIVE


def around(
    files: Sequence[Path],
    name: str,
    *,
    evaluators: Sequence[str | Mapping[str, Any]] | None = None,
    dataset: str | None = None,
    preprocessing: str | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    network: str | Mapping[str, Any] | None = None,
    replicates: int | None = None,
    seed: int = 0,
    base: Suite | None = None,
) -> Suite:
    """Return the checked suite that evaluates sets of ddbench.

    name: of the suite, also in errors. evaluators: names or entries; default: those of `base`, or `accuracy`. dataset,
    preprocessing: default those of each file. recipe: default that of `base`, or the set's own, or `review`. network:
    default that of `base`, or the one that goes with the recipe. base: the suite whose protocol is used.
    Raises `UserError` for a file that is no set, and for everything a suite is refused for.
    """
    sets = [distilled.read_header(file) for file in files]
    names = labels(files, sets)
    places = [(dataset or made.dataset, images_per_class(made)) for made in sets]
    entries = [
        {"name": "given", "label": label, "params": {"file": str(file)}, "preprocessing": preprocessing}
        for label, file in zip(names, files, strict=True)
    ]
    grid: dict[str, Any] = {
        "datasets": list(dict.fromkeys(place for place, _ in places)),
        "methods": entries,
        "ipc": sorted({ipc for _, ipc in places}),
        "seeds": [seed],
    }
    evaluation: dict[str, Any] = {"recipe": NATIVE} if base is None else _protocol(base, sets, names)
    if recipe is not None:
        evaluation |= {"recipe": recipe, "recipes": {}}
    given: dict[str, Any] = {"network": network, "replicates": replicates}
    values: dict[str, Any] = {
        "title": ", ".join(names),
        "grid": grid,
        "evaluation": evaluation | {key: value for key, value in given.items() if value is not None},
        "evaluators": _evaluators(evaluators, base, sets, names, places, seed),
        "skip": [clause for label, place in zip(names, places, strict=True) for clause in _skips(label, place, grid)],
    }
    if base is not None:
        values |= {"threads": base.spec.threads, "limits": base.spec.limits.model_dump(mode="json")}
    return from_values(values, name, base.preset if base else NO_PRESET)


def labels(files: Sequence[Path], sets: Sequence[Header]) -> list[str]:
    """Return what the rows are called: the method that made the set, the file's name, or its path; all different."""
    methods = [
        made.method if made.method in METHODS.targets else file.stem for file, made in zip(files, sets, strict=True)
    ]
    for names in (methods, [file.stem for file in files], [str(file) for file in files]):
        if max(Counter(names).values()) == 1:
            return names
    raise UserError("the same file is named twice", where=Counter(map(str, files)).most_common(1)[0][0])


def images_per_class(made: Header) -> int:
    """Return the column of a set: its images per class, about as many as there are where the classes differ in it."""
    if made.ipc is not None:
        return made.ipc
    info = bench.data.info(made.dataset)
    images = made.floats.get("decoded", 0) / prod(made.shape)
    return max(1, min(round(images / made.classes), info.train_size // info.classes))


def _protocol(base: Suite, sets: Sequence[Header], names: Sequence[str]) -> dict[str, Any]:
    """Return the evaluation of a suite; a recipe that it has for a method is for the rows of its sets."""
    protocol = base.spec.evaluation.model_dump(mode="json")
    by_method = protocol["recipes"]
    own = {label: by_method[made.method] for label, made in zip(names, sets, strict=True) if made.method in by_method}
    return {**protocol, "recipes": own}


def _evaluators(
    wanted: Sequence[str | Mapping[str, Any]] | None,
    base: Suite | None,
    sets: Sequence[Header],
    names: Sequence[str],
    places: Sequence[tuple[str, int]],
    seed: int,
) -> list[Any]:
    """Return the entries of the evaluators, those of another suite with the rows that it would apply them to."""
    if base is None:
        return list(wanted if wanted is not None else ["accuracy"])
    found: list[Any] = []
    for entry in base.spec.evaluators:
        if wanted is not None and entry.name not in wanted:
            continue
        rows = [
            label
            for label, made, (dataset, ipc) in zip(names, sets, places, strict=True)
            if entry.where.matches(
                {"dataset": dataset, "method": made.method, "label": made.method, "ipc": ipc, "seed": seed}
            )
        ]
        if rows:
            found.append({"name": entry.name, "params": entry.params, "where": {"label": rows}})
    there = {entry.name for entry in base.spec.evaluators}
    return found + [one for one in wanted or () if not isinstance(one, str) or one not in there]


def _skips(label: str, place: tuple[str, int], grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the clauses that keep a row to the place its set was made for."""
    dataset, ipc = place
    others = {
        "dataset": [one for one in grid["datasets"] if one != dataset],
        "ipc": [one for one in grid["ipc"] if one != ipc],
    }
    reason = f"the set is for {dataset}, {ipc} images per class"
    return [{"label": label, key: values, "reason": reason} for key, values in others.items() if values]
