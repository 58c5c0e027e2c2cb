"""A results folder as pandas frames, and the word for every cell that has no number.

The runner writes one line per measured number and one per cell; here they become frames with one row per line. A cell
that could not run because an earlier one failed is shown with the state of the one that failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import stats
from bench.errors import UserError

OWN = ("dataset", "method", "label", "settings", "evaluator", "metric", "unit", "tags", "cell")
TEXTS = (*OWN, "network", "distil_network", "recipe", "selection")
RECORD_COLUMNS = ("suite", "preset", *TEXTS, "ipc", "seed", "replicate", "step", "value")
COORDS = ("dataset", "method", "label", "settings", "ipc", "seed", "distil_network", "evaluator", "network")
DONE = frozenset({"ok", "cached"})
SUMMARY = ("mean", "std", "n", "n_sets", "low", "high", "over")


@dataclass(frozen=True)
class Results:
    """What a run left behind.

    records: one row per measured number, columns of `bench.api.Record`; `tags` as text (`a=1, b=x`), texts that do
        not apply are empty, whole numbers that do not apply are missing.
    plan: one row per cell in the order of the plan: key, kind, cell (its words), timed, inputs (list of keys), COORDS;
        then what the suite leaves out, as distillations that are skipped.
    states: one row per cell: key, kind, cell, state, reason, seconds, COORDS; a cell no line tells of is `planned`.
    """

    out: Path
    suite: str
    preset: str
    records: pd.DataFrame
    plan: pd.DataFrame
    states: pd.DataFrame
    summaries: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """What `bench.report.grid` and `cost` have summarised already, by evaluator."""

    @cached_property
    def labels(self) -> list[str]:
        """The methods as the suite calls them, in the order of the plan."""
        return [text for text in pd.unique(pd.concat([self.plan["label"], self.records["label"]])) if text]

    @cached_property
    def datasets(self) -> list[str]:
        """The datasets in the order of the plan."""
        return [text for text in pd.unique(pd.concat([self.plan["dataset"], self.records["dataset"]])) if text]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Whose settings each cell used, by key: paper or modified."""
        return dict(zip(self.plan["key"], self.plan["settings"], strict=True))

    @cached_property
    def _states(self) -> dict[str, tuple[str, str]]:
        return {row.key: (row.state, row.reason) for row in rows_of(self.states)}

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        return dict(zip(self.plan["key"], self.plan["inputs"], strict=True))

    def cause(self, key: str) -> tuple[str, str]:
        """Return (word, reason) of a cell; for a skipped one, those of the input it was skipped for."""
        state, reason = self._states.get(key, ("planned", ""))
        if state == "skipped":
            for parent in self._inputs.get(key, []):
                word, why = self.cause(parent)
                if word not in (*DONE, "planned"):
                    return word, why
            if reason.startswith("no data"):
                return "no data", reason
        return state, reason

    def planned(self, evaluator: str) -> pd.DataFrame:
        """Return the planned cells of an evaluator with the columns COORDS, key, done and word.

        A distillation that no evaluation builds on was left out as a whole: it stands for all evaluators.
        """
        used = {key for inputs in self.plan["inputs"] for key in inputs}
        left = (self.plan["kind"] == "distil") & ~self.plan["key"].isin(used)
        left &= self.plan["key"].map(lambda key: self._states[key][0] == "skipped")
        cells = self.plan[(self.plan["kind"] == "evaluate") & (self.plan["evaluator"] == evaluator) | left]
        words = pd.Series([self.cause(key)[0] for key in cells["key"]], index=cells.index, dtype="object")
        return cells.assign(word=words, done=words.isin(DONE))


def load(out: Path) -> Results:
    """Read suite.json, records.jsonl and states.jsonl. Raises `UserError` where one is missing or damaged."""
    try:
        suite = json.loads((out / "suite.json").read_text())
        plan, preset = suite["plan"], str(suite["preset"])
    except FileNotFoundError:
        raise UserError(f"{out} holds no run", hint="give the folder that `ddbench run` named as its results") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"damaged: {error!r}", where=str(out / "suite.json"), hint="run the suite again") from error
    lines = {row["key"]: row for row in _lines(out / "states.jsonl")}
    planned = {cell["key"] for cell in plan}
    plan = [*plan, *(line for key, line in lines.items() if key not in planned)]
    columns = ["key", "kind", "cell", "timed", "inputs", *COORDS]
    cells = pd.DataFrame([_flat(cell) for cell in plan], columns=columns, dtype="object")  # faster than text columns
    for column in ("ipc", "seed"):
        cells[column] = cells[column].astype("Int64")
    states = cells.drop(columns=["inputs", "timed"])
    found = [
        (lines.get(key, {}).get("state", "planned"), lines.get(key, {}).get("reason") or "") for key in cells["key"]
    ]
    states[["state", "reason"]] = pd.DataFrame(found, columns=["state", "reason"], dtype="object")
    states["seconds"] = pd.Series([lines.get(key, {}).get("seconds") for key in cells["key"]], dtype="float64")
    return Results(out, str(suite.get("name", out.name)), preset, frame(_lines(out / "records.jsonl")), cells, states)


def summarise(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one row per group of `by` with SUMMARY over its values, grouped by seed (one seed, one set).

    n counts values (trained networks), n_sets the sets they were trained on. std and the 95 % interval low to high
    are over the means of the sets or over networks, as `over` says; NaN where there is only one. See
    `bench.stats.summary`. flagged counts the values whose `flag` (bool, a column of records) is set.
    """
    codes = records.groupby(by, sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    values, seeds, flags = (records[name].to_numpy()[order] for name in ("value", "seed", "flag"))
    rows = []
    for start, end in pairwise([*starts, len(order)]):
        own = seeds[start:end].tolist()
        one = stats.summary(values[start:end], groups=own)
        spread = (one.mean, one.std, end - start, len(set(own)), one.low, one.high, one.over)
        rows.append((*spread, int(flags[start:end].sum())))
    found = pd.DataFrame(rows, columns=[*SUMMARY, "flagged"])
    found = found.astype({**dict.fromkeys(("mean", "std", "low", "high"), "float64"), "over": "object"})
    return pd.concat([records[by].iloc[order[starts]].reset_index(drop=True), found], axis=1)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over the rows of a frame as named tuples."""
    return frame.itertuples()


def stored(out: Path, key: str) -> dict[str, Any]:
    """Return the `result.json` of a finished cell; nothing where the folder keeps none that can be read."""
    try:
        found = json.loads((out / "cells" / key[:2] / key / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def groups_of(frame: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Iterate over (key, rows) in the order of first appearance; a missing value is a key like any other."""
    return iter(frame.groupby(by, sort=False, dropna=False))


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return records as a frame, one row each; see `Results.records`. The rows are changed."""
    for row in rows:
        row["tags"] = ", ".join(f"{name}={value}" for name, value in sorted((row.get("tags") or {}).items()))
    found = pd.DataFrame(rows, columns=list(RECORD_COLUMNS), dtype="object")
    for column in TEXTS:
        found[column] = found[column].fillna("")
    for column in ("ipc", "seed", "replicate", "step"):
        found[column] = found[column].astype("Int64")
    found["value"] = found["value"].astype("float64")
    return found


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    coords, inputs = cell.get("coords", {}), cell.get("inputs", {})
    keys = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    texts = {name: coords.get(name) or "" for name in COORDS if name not in ("ipc", "seed")}
    own = {"key": cell["key"], "kind": cell["kind"], "cell": cell.get("label", ""), "timed": bool(cell.get("timed"))}
    return {**own, "inputs": keys, **texts, "ipc": coords.get("ipc"), "seed": coords.get("seed")}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; none where there is no such file yet."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError("not a JSON line", where=f"{path}:{number}", hint="run the suite again") from error
    return rows
